/** Buttons of the viewer: each stands for a command that has a key, and shows what is so now. */

import { t, told } from "../catalogue";
import { h, press, show } from "../dom";
import { cc, local, number, personName } from "../format";
import type { Command, EditingState, Tool, Viewer, ViewerState } from "../viewer";
import { KEYS } from "../viewer";
import { say } from "./toast";

export interface Tools<S> {
  readonly root: HTMLElement;
  update(state: S): void;
}

/** What stands beside a button's words: its key. */
function keyOf(command: Command): string {
  return KEYS.find((each) => each.command === command)?.keys[0] ?? "";
}

function commandButton(viewer: Viewer, command: Command, words: string): HTMLButtonElement {
  return h("button", { title: `${told("key", command)} (${keyOf(command)})`, onclick: () => viewer.run(command) }, words);
}

function segments(label: string, ...buttons: (Node | false)[]): HTMLElement {
  return h("div", { class: "segments small", role: "group", "aria-label": label }, buttons);
}

export function imageTools(viewer: Viewer, hasPlanning: boolean): Tools<ViewerState> {
  const compare = (["blend", "checkerboard", "spyglass", "side-by-side", "difference"] as const).map((mode) => ({
    mode,
    button: commandButton(viewer, `compare-${mode}`, t(`tools.${mode}`)),
  }));
  const windows = (["lung", "soft", "bone", "auto"] as const).map((preset) => ({
    preset,
    button: commandButton(viewer, `window-${preset}`, t(`tools.${preset}`)),
  }));
  const share = h("input", {
    type: "range",
    min: 0,
    max: 100,
    step: 5,
    "aria-label": t("tools.share"),
    title: `${t("tools.share")} (+ −)`,
    oninput: () => viewer.setCompare({ mode: "blend", blend_percent: share.valueAsNumber }),
  });
  const shareValue = h("output", { class: "value" });
  const smooth = commandButton(viewer, "interpolation", t("tools.smooth_image"));
  const distance = commandButton(viewer, "tool-distance", t("tools.distance"));
  const worst = commandButton(viewer, "worst-slice-next", t("tools.worst"));
  for (const { button } of compare) button.disabled = !hasPlanning;
  share.disabled = !hasPlanning;
  const root = h(
    "div",
    { class: "tools", role: "toolbar", "aria-label": t("tools.images") },
    segments(t("tools.compare"), ...compare.map(({ button }) => button)),
    h("span", { class: "share" }, "CBCT", share, "CT", shareValue),
    segments(t("tools.window"), ...windows.map(({ button }) => button)),
    segments(t("tools.images"), smooth, distance, worst),
  );
  const update = (state: ViewerState): void => {
    for (const { mode, button } of compare) press(button, hasPlanning && state.compare.mode === mode);
    for (const { preset, button } of windows) press(button, state.preset === preset);
    share.value = String(state.compare.blend_percent);
    shareValue.value = `${number(state.compare.blend_percent, 0)} %`;
    press(smooth, state.interpolation);
    press(distance, state.tool === "distance");
  };
  return { root, update };
}

/** What editing needs beyond the viewer. */
export interface EditingHost {
  discard(): void;
  /** Asks whose draft is kept, when somebody else saved another one. */
  settle(by: string): void;
  /** Contours that a slice may be copied from. */
  sources: readonly { name: string; words: string }[];
}

/** Tools above the images; undo and whether all is safe stand below them, beside the decision. */
export function editTools(viewer: Viewer, host: EditingHost): Tools<ViewerState> & { readonly below: HTMLElement } {
  const chosen: readonly Tool[] = ["navigate", "brush", "eraser", "nudge", "add", "subtract"];
  const tools = chosen.map((tool) => ({ tool, button: commandButton(viewer, `tool-${tool}` as Command, told("tools", tool)) }));
  const diameter = h("input", {
    type: "range",
    min: 1,
    max: 30,
    step: 1,
    "aria-label": t("tools.diameter"),
    title: `${t("tools.diameter")} (< >)`,
    oninput: () => viewer.setBrush({ diameter_mm: diameter.valueAsNumber }),
  });
  const size = h("output", { class: "value" });
  const sphere = commandButton(viewer, "brush-sphere", t("tools.sphere"));
  const undo = commandButton(viewer, "undo", t("tools.undo"));
  const redo = commandButton(viewer, "redo", t("tools.redo"));
  const facts = h("span", { class: "value edit-facts" });
  const saving = h("span", { class: "saving", role: "status" });
  let other = "";
  const settle = h("button", { class: "small", hidden: true, onclick: () => host.settle(other) }, t("conflict.settle"));
  const root = h(
    "div",
    { class: "tools tools-edit", role: "toolbar", "aria-label": t("tools.editing") },
    segments(t("tools.editing"), ...tools.map(({ button }) => button)),
    h("span", { class: "share" }, diameter, size),
    segments(
      t("tools.editing"),
      sphere,
      commandButton(viewer, "interpolate", t("tools.interpolate")),
      commandButton(viewer, "smooth", t("tools.smooth")),
      commandButton(viewer, "delete-slice", t("tools.delete")),
    ),
    copyTool(viewer, host.sources),
  );
  const below = h(
    "div",
    { class: "below" },
    segments(t("tools.undo"), undo, redo),
    h("button", { class: "small quiet", onclick: () => host.discard() }, t("tools.discard")),
    h("div", { class: "safe" }, facts, saving),
    settle,
  );
  const update = (state: ViewerState): void => {
    const { editing } = state;
    if (editing === null) return;
    for (const { tool, button } of tools) press(button, state.tool === tool);
    diameter.value = String(state.brush.diameter_mm);
    size.value = `${number(state.brush.diameter_mm, 0)} mm`;
    press(sphere, state.brush.sphere);
    undo.disabled = !editing.can_undo;
    redo.disabled = !editing.can_redo;
    const now = `${cc(editing.volume_cc)} · ${editedSlices(editing.edited_slices.length)}`;
    if (facts.textContent !== now) show(facts, now);
    const { words, bad } = savingWords(editing);
    saving.classList.toggle("saving-bad", bad);
    if (saving.textContent !== words) show(saving, words);
    other = editing.saving.state === "conflict" ? personName(editing.saving.by) : "";
    settle.hidden = other === "";
  };
  return { root, below, update };
}

/** Choosing whose contour changes nothing; the button copies, and gives the keys back to the image. */
function copyTool(viewer: Viewer, sources: EditingHost["sources"]): HTMLElement {
  const copy = (): void => {
    const from = sources.find(({ name }) => name === chosen.value);
    if (from === undefined) return;
    say(t(viewer.copySlice(from.name) ? "tools.copied" : "tools.copied_not", { from: from.words }));
    viewer.focus();
  };
  const go = h("button", { class: "small", disabled: true, title: t("tools.copy"), onclick: copy }, t("tools.copy_go"));
  const chosen: HTMLSelectElement = h(
    "select",
    { class: "small", "aria-label": t("tools.copy"), onchange: () => (go.disabled = chosen.value === "") },
    h("option", { value: "" }, t("tools.copy")),
    sources.map(({ name, words }) => h("option", { value: name }, words)),
  );
  return h("span", { class: "share" }, chosen, go);
}

export function editedSlices(count: number): string {
  return count === 1 ? t("tools.edited_one") : t("tools.edited", { count });
}

/** Whether what was drawn is safe, in words. */
export function savingWords(editing: Pick<EditingState, "saving">): { words: string; bad: boolean } {
  const { saving } = editing;
  switch (saving.state) {
    case "saved":
    case "unsaved":
    case "saving":
      return { words: t(`saving.${saving.state}`), bad: false };
    case "offline":
      return { words: t(saving.kept ? "saving.offline" : "saving.lost"), bad: true };
    case "conflict":
      return { words: t("saving.conflict", { by: personName(saving.by) }), bad: true };
    case "refused":
      return { words: t("saving.refused", { title: saving.detail || saving.title }), bad: true };
  }
}

/** Whether closing the page now would lose what was drawn. */
export function wouldBeLost({ saving }: Pick<EditingState, "saving">): boolean {
  return saving.state === "refused" || (saving.state === "offline" && !saving.kept);
}

/** That an earlier draft was taken up, and whose; `me` is who is signed in. */
export function restoredWords(restored: { edited_slices: readonly number[]; saved_at: string | null; by: string }, me: string): string {
  const by = personName(restored.by);
  // What lay in this browser has no name on it: it is only ever taken up by its owner.
  const own = by === "" || by === personName(me);
  return t(own ? "saving.restored" : "saving.restored_other", { count: restored.edited_slices.length, by, at: local(restored.saved_at) });
}
