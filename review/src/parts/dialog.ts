/** Dialogs: the focus stays inside, Escape leaves, and what had the focus gets it back. */

import { t } from "../catalogue";
import { h } from "../dom";

export interface Dialog {
  readonly element: HTMLDialogElement;
  readonly body: HTMLElement;
  close(): void;
  /** While it is held nobody closes it, and none of its buttons does anything. */
  hold(on: boolean): void;
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
  let held = false;
  element.addEventListener("cancel", (event) => {
    if (held) event.preventDefault();
  });
  const hold = (on: boolean): void => {
    held = on;
    // A second Escape would close what only `cancel` keeps open.
    element.setAttribute("closedby", on ? "none" : "closerequest");
    element.querySelectorAll("button").forEach((button) => (button.disabled = on));
  };
  document.body.append(element);
  element.showModal();
  return { element, body, close: () => element.close(), hold };
}

/** Whether a dialog has the page. */
export function dialogIsOpen(): boolean {
  return document.querySelector("dialog[open]") !== null;
}
