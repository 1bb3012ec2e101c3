/** The line at the top of screens that are about no single patient. */

import type { App } from "../app";
import { t } from "../catalogue";
import { h } from "../dom";
import { personName } from "../format";

export function header(app: App, title: string, ...middle: HTMLElement[]): HTMLElement {
  return h(
    "header",
    { class: "top" },
    h("a", { class: "brand", href: "#/worklist" }, "Contourcast"),
    h("h1", {}, title),
    h("div", { class: "grow" }, middle),
    corner(app),
  );
}

/** Keys, settings, who is signed in. */
export function corner(app: App): HTMLElement {
  const name = app.session?.name ?? "";
  return h(
    "nav",
    { class: "corner", "aria-label": t("page.settings") },
    h("button", { class: "quiet", title: `${t("page.keys")} (?)`, onclick: () => app.help() }, "?"),
    h("a", { class: "button quiet", href: "#/settings" }, t("page.settings")),
    name !== "" && h("span", { class: "who", title: t("page.signed_in_as", { name: personName(name) }) }, personName(name)),
    app.session?.kind === "person" && h("button", { class: "quiet", onclick: () => void app.signOut() }, t("page.sign_out")),
  );
}

/** What a user would assume otherwise. */
export function disclaimer(): HTMLElement {
  return h("p", { class: "disclaimer" }, t("page.not_a_device"));
}
