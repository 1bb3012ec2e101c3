/** Signing in: with a name and a password, or at the site's issuer, as the service offers. */

import type { App, Screen } from "../app";
import { t } from "../catalogue";
import { h, show } from "../dom";
import { disclaimer } from "../parts/header";
import { problemBox } from "../parts/problem";
import { placeOf, type Place } from "../router";

export function signIn(app: App, place: Place): Screen {
  const from = place.screen === "sign-in" ? place.from : undefined;
  const trouble = h("div", {});
  const ways = h("div", { class: "ways" }, t("page.loading"));
  const root = h(
    "div",
    { class: "screen sign-in" },
    h("div", { class: "card" }, h("p", { class: "brand" }, "Contourcast"), h("h1", {}, t("sign_in.title")), ways, trouble, disclaimer()),
  );

  const enter = async (name: string, password: string): Promise<void> => {
    show(trouble);
    try {
      app.session = await app.client.signIn(name, password);
      app.go(placeOf(from ?? ""));
    } catch (error) {
      show(trouble, problemBox(error));
    }
  };

  const offer = async (): Promise<void> => {
    try {
      const offered = await app.client.ways();
      show(
        ways,
        offered.local && form(enter),
        offered.oidc && h("a", { class: "button main", href: "/v1/session/oidc" }, t("sign_in.oidc")),
        !offered.local && !offered.oidc && h("p", {}, t("sign_in.none")),
      );
      ways.querySelector("input")?.focus();
    } catch (error) {
      show(ways, problemBox(error, h("button", { onclick: () => void offer() }, t("page.again"))));
    }
  };
  void offer();

  return { title: t("sign_in.title"), root, actions: () => [] };
}

function form(enter: (name: string, password: string) => Promise<void>): HTMLElement {
  const name = h("input", { name: "name", autocomplete: "username", required: true, spellcheck: "false" });
  const password = h("input", { name: "password", type: "password", autocomplete: "current-password", required: true });
  const button = h("button", { class: "main", type: "submit" }, t("sign_in.go"));
  const submit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    button.disabled = true;
    await enter(name.value.trim(), password.value);
    button.disabled = false;
    password.value = "";
    password.focus();
  };
  return h(
    "form",
    { class: "fields", onsubmit: (event: SubmitEvent) => void submit(event) },
    h("label", {}, t("sign_in.name"), name),
    h("label", {}, t("sign_in.password"), password),
    button,
  );
}
