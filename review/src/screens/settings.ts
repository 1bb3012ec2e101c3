/** What one person likes; kept in this browser. */

import type { App, Screen } from "../app";
import { t } from "../catalogue";
import { h } from "../dom";
import { disclaimer, header } from "../parts/header";
import type { Preferences } from "../preferences";

export function settings(app: App): Screen {
  const choice = <K extends keyof Preferences>(
    name: K,
    label: string,
    options: readonly (readonly [Preferences[K], string])[],
    hint = "",
  ): HTMLElement => {
    const hintId = `hint-${name}`;
    return h(
      "fieldset",
      { "aria-describedby": hint ? hintId : null },
      h("legend", {}, label),
      h(
        "div",
        { class: "radios" },
        options.map(([value, words]) =>
          h(
            "label",
            { class: "radio" },
            h("input", {
              type: "radio",
              name,
              value: String(value),
              checked: app.preferences[name] === value,
              onchange: () => app.prefer({ [name]: value }),
            }),
            words,
          ),
        ),
      ),
      hint !== "" && h("p", { id: hintId, class: "hint" }, hint),
    );
  };
  const root = h(
    "div",
    { class: "screen settings" },
    header(app, t("settings.title")),
    h(
      "form",
      { class: "card wide" },
      choice("theme", t("settings.theme"), [
        ["dark", t("settings.dark")],
        ["light", t("settings.light")],
      ]),
      choice("language", t("settings.language"), [
        ["en", t("settings.en")],
        ["zh", t("settings.zh")],
      ]),
      choice("contour_px", t("settings.contour_px"), [
        [1, t("settings.px", { px: 1 })],
        [2, t("settings.px", { px: 2 })],
        [3, t("settings.px", { px: 3 })],
      ]),
      choice("interpolation", t("settings.interpolation"), [
        [true, t("settings.on")],
        [false, t("settings.off")],
      ]),
      choice(
        "names",
        t("settings.names"),
        [
          ["full", t("settings.full")],
          ["initials", t("settings.initials")],
          ["id", t("settings.id")],
        ],
        t("settings.names_hint"),
      ),
      h("p", { class: "hint" }, t("settings.kept")),
    ),
    disclaimer(),
  );
  return {
    title: t("settings.title"),
    root,
    actions: () => [{ id: "back", keys: ["q"], run: () => window.history.back() }],
  };
}
