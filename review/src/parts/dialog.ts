/** Dialogs: the focus stays inside, Escape leaves, and what had the focus gets it back. */

import { t } from "../catalogue";
import { h } from "../dom";

export interface Dialog {
  readonly element: HTMLDialogElement;
  readonly body: HTMLElement;
  close(): void;
}

/** Opens a dialog over the page. `onclose` is told however it was closed. */
export function openDialog(title: string, content: HTMLElement, options: { wide?: boolean; onclose?: () => void } = {}): Dialog {
  const heading = h("h2", { id: "dialog-title" }, title);
  const body = h("div", { class: "dialog-body" }, content);
  const element = h(
    "dialog",
    { "aria-labelledby": "dialog-title", class: options.wide ? "wide" : "" },
    h("div", { class: "dialog-head" }, heading, h("button", { class: "quiet", "aria-label": t("page.close"), onclick: () => element.close() }, "✕")),
    body,
  );
  element.addEventListener("close", () => {
    element.remove();
    options.onclose?.();
  });
  document.body.append(element);
  element.showModal();
  return { element, body, close: () => element.close() };
}

/** Whether a dialog has the page. */
export function dialogIsOpen(): boolean {
  return document.querySelector("dialog[open]") !== null;
}
