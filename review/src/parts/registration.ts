/** Where the planning CT lies today: six numbers, how good, and a way to change it and begin again. */

import type { App } from "../app";
import type { Adjusted, Change, Figure, Registration, Triple, View } from "../api/types";
import { t, told } from "../catalogue";
import { h, show } from "../dom";
import { number, signed, towards } from "../format";
import type { Dragged } from "../viewer";
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
  /** A hand moved the planning CT in a plane. */
  dragged(by: Dragged): void;
}

export function registrationPanel(app: App, view: View, screen: Adjusting): RegistrationPanel {
  const { registration } = view;
  const root = h("section", { class: "panel registration", "aria-labelledby": "registration-title" });
  let adjusting = false;
  let open: Sliders | null = null;

  const begin = (): void => {
    if (registration === null || adjusting || !mayAdjust(view)) return;
    adjusting = true;
    screen.begin();
    open = sliders(app, view, registration, screen, leave);
    show(root, panelHead(t("registration.adjusting")), open.root);
    root.querySelector("input")?.focus();
  };
  const leave = (): void => {
    if (!adjusting) return;
    adjusting = false;
    open?.stop();
    open = null;
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
  return { root, adjusting: () => adjusting, begin, leave, dragged: (by) => open?.dragged(by) };
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

interface Sliders {
  readonly root: HTMLElement;
  dragged(by: Dragged): void;
  stop(): void;
}

function sliders(app: App, view: View, { at, at_xyz_mm }: Registration, screen: Adjusting, leave: () => void): Sliders {
  const inputs: Record<"mm" | "deg", HTMLInputElement[]> = { mm: [], deg: [] };
  const trouble = h("div", {});
  const doing = h("span", { class: "soft", role: "status" });
  // What a hand dragged to, between the sliders' steps.
  let exact = NO_CHANGE;
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
        exact = change();
        later();
      },
    });
    inputs[unit].push(input);
    return h("div", { class: "slider" }, h("label", { for: id }, t(`registration.${axis}_${unit}`)), input, output);
  };
  const dragged = (by: Dragged): void => {
    const to = draggedTo(exact, by, at_xyz_mm);
    inputs.mm.forEach((input, axis) => (input.value = String(to.translation_xyz_mm[axis])));
    inputs.deg.forEach((input, axis) => (input.value = String(to.rotation_xyz_deg[axis])));
    for (const input of [...inputs.mm, ...inputs.deg]) input.dispatchEvent(new Event("input"));
    exact = to;
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
    h("p", { class: "hint" }, t("registration.pivot", { at: told("at", at) })),
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
    dragged,
    stop: () => {
      window.clearTimeout(timer);
      flight?.abort();
      flight = null;
    },
  };
}

/** A change after a hand dragged the planning CT: pushed along with it, or turned about its centre as it lies now; never out of reach. */
export function draggedTo(change: Change, { from_xyz_mm: from, to_xyz_mm: to, axis, turns }: Dragged, pivot_xyz_mm: Triple): Change {
  const within = (reach: number, values: readonly number[]): Triple => {
    const [x = 0, y = 0, z = 0] = values.map((value) => Math.min(reach, Math.max(-reach, value)));
    return [x, y, z];
  };
  const { translation_xyz_mm: moved, rotation_xyz_deg: turned } = change;
  if (!turns) return { ...change, translation_xyz_mm: within(REACH.mm, moved.map((value, n) => value + (to[n] ?? 0) - (from[n] ?? 0))) };
  // As seen along the axis; the turn about z is the outermost of R = Rz Ry Rx, the others are so nearly, for angles as small as these.
  const [u, v] = [(axis + 1) % 3, (axis + 2) % 3] as const;
  const angle = (at: Triple): number => {
    const centre = (n: number): number => (pivot_xyz_mm[n] ?? 0) + (moved[n] ?? 0);
    return Math.atan2((at[v] ?? 0) - centre(v), (at[u] ?? 0) - centre(u));
  };
  const by = angle(to) - angle(from);
  const deg = (Math.atan2(Math.sin(by), Math.cos(by)) * 180) / Math.PI;
  return { ...change, rotation_xyz_deg: within(REACH.deg, turned.map((value, n) => value + (n === axis ? deg : 0))) };
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
