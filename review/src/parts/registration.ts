/** Where the planning CT lies today: six numbers, how good, and a way to change it and begin again. */

import type { App } from "../app";
import type { Adjusted, Change, Figure, Triple, View } from "../api/types";
import { t, told } from "../catalogue";
import { h, show } from "../dom";
import { number, signed, towards } from "../format";
import { openDialog } from "./dialog";
import { figureName, figureValue, limitWords } from "./figures";
import { shape } from "./marks";
import { inOneLine, problemBox } from "./problem";

const PREVIEW_AFTER_MS = 200;
const AXES = ["x", "y", "z"] as const;
const REACH = { mm: 30, deg: 15 } as const;
const STEP = 0.5;
// The six numbers say it already.
const SAID = new Set(["angle_x_deg", "angle_y_deg", "angle_z_deg", "near_bone_ncc"]);

export const NO_CHANGE: Change = { translation_xyz_mm: [0, 0, 0], rotation_xyz_deg: [0, 0, 0] };

/** What the panel asks of the screen. */
export interface Adjusting {
  begin(): void;
  end(): void;
  preview(adjusted: Adjusted | null): void;
}

export interface RegistrationPanel {
  readonly root: HTMLElement;
  readonly adjusting: () => boolean;
  begin(): void;
  leave(): void;
}

export function registrationPanel(app: App, view: View, screen: Adjusting): RegistrationPanel {
  const { registration } = view;
  const root = h("section", { class: "panel registration", "aria-labelledby": "registration-title" });
  let adjusting = false;
  let stop: (() => void) | null = null;

  const begin = (): void => {
    if (registration === null || adjusting || !mayAdjust(view)) return;
    adjusting = true;
    screen.begin();
    const made = sliders(app, view, told("at", registration.at), screen, leave);
    stop = made.stop;
    show(root, panelHead(t("registration.adjusting")), made.root);
    root.querySelector("input")?.focus();
  };
  const leave = (): void => {
    if (!adjusting) return;
    adjusting = false;
    stop?.();
    screen.preview(null);
    screen.end();
    rest();
  };
  const rest = (): void => {
    if (registration === null) {
      show(root, panelHead(t("registration.title")), h("p", { class: "soft" }, t("registration.none")));
      return;
    }
    const button = h("button", { class: "small", title: "r", disabled: !mayAdjust(view), onclick: begin }, t("registration.adjust"));
    show(
      root,
      panelHead(t("registration.title"), button),
      h(
        "dl",
        { class: "six", title: registration.direction },
        h("dt", {}, `${t("registration.translation")} `, h("span", { class: "tiny" }, t("registration.at", { at: told("at", registration.at) }))),
        h("dd", {}, `${towards(registration.translation_xyz_mm)} mm`),
        h("dt", {}, t("registration.rotation")),
        h("dd", {}, `${registration.rotation_xyz_deg.map((value, axis) => `${AXES[axis]} ${signed(value, 1)}`).join(" · ")} °`),
      ),
      h("ul", { class: "figure-grid" }, registration.figures.filter((figure) => !SAID.has(figure.name) && figure.value !== null).map(chip)),
    );
  };
  rest();
  return { root, adjusting: () => adjusting, begin, leave };
}

function panelHead(words: string, ...more: HTMLElement[]): HTMLElement {
  return h("div", { class: "panel-head" }, h("h2", { id: "registration-title" }, words), more);
}

function chip(figure: Figure): HTMLElement {
  const title = [limitWords(figure.limit), figure.reason].filter(Boolean).join("\n");
  return h(
    "li",
    { class: "figure", title: title || null },
    shape(figure.verdict ?? ""),
    h("span", { class: "clip" }, figureName(figure.name)),
    figure.verdict !== null && h("span", { class: "unseen" }, told("verdict", figure.verdict)),
    h("span", { class: "value" }, figureValue(figure)),
  );
}

function sliders(app: App, view: View, at: string, screen: Adjusting, leave: () => void): { root: HTMLElement; stop(): void } {
  const inputs: Record<"mm" | "deg", HTMLInputElement[]> = { mm: [], deg: [] };
  const trouble = h("div", {});
  const doing = h("span", { class: "soft", role: "status" });
  let timer = 0;
  let flight: AbortController | null = null;

  const change = (): Change => {
    const of = (unit: "mm" | "deg"): Triple => {
      const [x = 0, y = 0, z = 0] = inputs[unit].map((input) => input.valueAsNumber);
      return [x, y, z];
    };
    return { translation_xyz_mm: of("mm"), rotation_xyz_deg: of("deg") };
  };
  const preview = async (): Promise<void> => {
    flight?.abort();
    const mine = new AbortController();
    flight = mine;
    show(doing, t("registration.previewing"));
    try {
      const answer = isNothing(change()) ? null : await app.client.adjusted(view.propagation, change(), mine.signal);
      if (flight !== mine) return;
      show(trouble);
      show(doing);
      screen.preview(answer);
    } catch (error) {
      if (flight === mine) {
        show(doing);
        show(trouble, h("p", { class: "problem-line", role: "alert" }, inOneLine(error)));
      }
    }
  };
  const later = (): void => {
    window.clearTimeout(timer);
    timer = window.setTimeout(() => void preview(), PREVIEW_AFTER_MS);
  };
  const slider = (unit: "mm" | "deg", axis: "x" | "y" | "z"): HTMLElement => {
    const id = `adjust-${unit}-${axis}`;
    const output = h("output", { for: id, class: "value" }, "0.0");
    const input = h("input", {
      id,
      type: "range",
      min: -REACH[unit],
      max: REACH[unit],
      step: STEP,
      value: 0,
      oninput: () => {
        output.value = signed(input.valueAsNumber, 1);
        later();
      },
    });
    inputs[unit].push(input);
    return h("div", { class: "slider" }, h("label", { for: id }, t(`registration.${axis}_${unit}`)), input, output);
  };
  const reset = (): void => {
    for (const input of [...inputs.mm, ...inputs.deg]) {
      input.value = "0";
      input.dispatchEvent(new Event("input"));
    }
  };
  const again = (): void => askAgain(app, view.propagation, change());
  const root = h(
    "div",
    {},
    h("p", { class: "hint" }, t("registration.pivot", { at })),
    AXES.map((axis) => slider("mm", axis)),
    AXES.map((axis) => slider("deg", axis)),
    trouble,
    h(
      "div",
      { class: "buttons" },
      h("button", { class: "small", onclick: reset }, t("registration.reset")),
      h("button", { class: "small", title: "q", onclick: leave }, t("registration.leave")),
      h("button", { class: "small main", title: t("registration.run_hint"), onclick: again }, `${t("registration.run")} …`),
      doing,
    ),
  );
  return {
    root,
    stop: () => {
      window.clearTimeout(timer);
      flight?.abort();
      flight = null;
    },
  };
}

/** Whoever may decide may begin anew; also where nothing was drawn. */
export function mayAdjust(view: View): boolean {
  return view.registration !== null && view.stale === null && (view.may.sign || view.may.edit);
}

/** Whether it changes nothing. */
export function isNothing(change: Change): boolean {
  return [...change.translation_xyz_mm, ...change.rotation_xyz_deg].every((value) => value === 0);
}

function askAgain(app: App, id: string, change: Change): void {
  const trouble = h("div", {});
  const go = async (): Promise<void> => {
    try {
      const made = await app.client.again(id, change);
      dialog.close();
      app.go({ screen: "review", id: made.propagation });
    } catch (error) {
      show(trouble, problemBox(error));
    }
  };
  const numbers = `${towards(change.translation_xyz_mm)} mm; ${change.rotation_xyz_deg.map((value) => number(value, 1)).join(" · ")} °`;
  const content = h(
    "div",
    {},
    h("p", {}, t("again.text")),
    h("p", { class: "value" }, numbers),
    trouble,
    h(
      "div",
      { class: "buttons" },
      h("button", { onclick: () => dialog.close() }, t("page.cancel")),
      h("button", { class: "main", onclick: () => void go() }, t("again.go")),
    ),
  );
  const dialog = openDialog(t("again.title"), content);
}
