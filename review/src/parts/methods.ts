/** Every contour in its colour and dash, with the figures that set them apart. */

import type { Ghost, Method, View } from "../api/types";
import { t } from "../catalogue";
import { h, press, show } from "../dom";
import { length_mm, number, signed, towards } from "../format";
import { line } from "./marks";

export interface ContourChoice {
  show: "all" | "one" | "none";
  selected: string;
  ghosts: readonly string[];
}

export interface MethodsPanel {
  readonly root: HTMLElement;
  update(choice: ContourChoice): void;
}

/** What a ghost is, and of a prior whose contour it was: the plan's, or the one that was signed last. */
export function ghostName(ghost: Pick<Ghost, "ghost" | "carried_from">): string {
  return t(ghost.ghost === "approved" ? "ghost.approved" : `ghost.prior_${ghost.carried_from ?? "planning"}`);
}

function changeHint(view: View): string {
  const prior = view.ghosts.find(({ ghost }) => ghost === "prior");
  return prior === undefined ? t("methods.change_hint") : `${t("methods.change_hint")}: ${ghostName(prior)}`;
}

/** How alike two methods' contours are, whichever of the two says so. */
export function likeness(methods: readonly Method[], first: string, second: string): { dice: number | null; mean_surface_mm: number | null } | null {
  const of = (from: string, to: string): { dice: number | null; mean_surface_mm: number | null } | null =>
    methods.find((method) => method.method === from)?.agreement[to] ?? null;
  return of(first, second) ?? of(second, first);
}

export function methodsPanel(view: View, choose: (change: Partial<ContourChoice>) => void): MethodsPanel {
  const modes = (["all", "one", "none"] as const).map((mode) => {
    const button = h("button", { title: `Shift+${mode === "all" ? "A" : mode === "one" ? "O" : "N"}`, onclick: () => choose({ show: mode }) }, t(`methods.${mode}`));
    return { mode, button };
  });
  const rows = h("tbody", {});
  const ghosts = h("div", { class: "ghosts", role: "group", "aria-label": t("methods.ghosts") });
  const head = (words: string, hint: string): HTMLElement => h("th", { scope: "col", title: hint }, words);
  const root = h(
    "section",
    { class: "panel methods", "aria-labelledby": "methods-title" },
    h(
      "div",
      { class: "panel-head" },
      h("h2", { id: "methods-title" }, t("methods.title")),
      h("div", { class: "segments small", role: "group", "aria-label": t("methods.show") }, modes.map(({ button }) => button)),
    ),
    h(
      "table",
      { class: "figures-table" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, t("methods.method")),
          head(t("methods.volume"), t("methods.volume_hint")),
          head(t("methods.change"), changeHint(view)),
          head(t("methods.shift"), t("methods.shift_head_hint")),
          head(t("methods.dice"), t("methods.dice_hint")),
          head(t("methods.surface"), t("methods.surface_hint")),
        ),
      ),
      rows,
    ),
    view.ghosts.length > 0 && ghosts,
  );

  const update = (choice: ContourChoice): void => {
    for (const { mode, button } of modes) press(button, choice.show === mode);
    const focused = root.contains(document.activeElement) ? document.activeElement?.getAttribute("data-of") : null;
    show(rows, view.methods.map((method, index) => row(view, method, index, choice, choose)));
    show(
      ghosts,
      view.ghosts.map((ghost) => {
        const on = choice.ghosts.includes(ghost.ghost);
        const others = choice.ghosts.filter((name) => name !== ghost.ghost);
        return h(
          "button",
          {
            class: "ghost",
            "data-of": ghost.ghost,
            "aria-pressed": String(on),
            title: ghost.ghost === "prior" ? "Shift+P" : "Shift+L",
            onclick: () => choose({ ghosts: on ? others : [...others, ghost.ghost] }),
          },
          line(ghost.colour, ghost.dash, 2),
          h("span", {}, ghostName(ghost)),
          h("span", { class: "soft" }, ghost.volume_cc === null ? "" : `${number(ghost.volume_cc, 1)} cm³`),
        );
      }),
    );
    if (focused) root.querySelector<HTMLElement>(`[data-of="${CSS.escape(focused)}"]`)?.focus();
  };
  return { root, update };
}

function row(view: View, method: Method, index: number, choice: ContourChoice, choose: (change: Partial<ContourChoice>) => void): HTMLElement {
  const selected = method.method === choice.selected;
  const alike = selected ? null : likeness(view.methods, method.method, choice.selected);
  const shift = method.shift_xyz_mm;
  return h(
    "tr",
    { class: `method${selected ? " method-selected" : ""}${method.empty ? " method-empty" : ""}` },
    h(
      "th",
      { scope: "row" },
      h(
        "button",
        {
          class: "method-name",
          "data-of": method.method,
          "aria-pressed": String(selected),
          title: `${method.note || t("methods.select", { method: method.method })}${index < 5 ? ` (${index + 5})` : ""}`,
          onclick: () => choose({ selected: method.method }),
        },
        line(method.colour, method.dash),
        h("span", {}, method.method),
        method.recommended && h("span", { class: "star", title: t("methods.recommended") }, "★", h("span", { class: "unseen" }, t("methods.recommended"))),
      ),
    ),
    method.empty
      ? h("td", { colspan: 5, class: "soft" }, t("methods.empty"))
      : [
          h("td", {}, number(method.volume_cc, 1)),
          h("td", {}, signed(method.change_percent, 0)),
          h("td", { title: shift === null ? null : t("methods.shift_hint", { towards: towards(shift) }) }, shift === null ? "–" : number(length_mm(shift), 1)),
          h("td", {}, selected ? "·" : number(alike?.dice ?? null, 2)),
          h("td", {}, selected ? "·" : number(alike?.mean_surface_mm ?? null, 1)),
        ],
  );
}
