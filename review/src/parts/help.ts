/** The list of every key, from the same tables that the listener reads. */

import { t, told } from "../catalogue";
import { h } from "../dom";
import { readable, type Action } from "../keys";
import { openDialog } from "./dialog";

export interface KeyLine {
  words: string;
  chords: readonly string[];
  held?: boolean;
}

export interface KeyGroup {
  title: string;
  lines: readonly KeyLine[];
}

/** Lines of a screen's own actions. */
export function linesOf(actions: readonly Action[]): KeyLine[] {
  return actions.map((action) => {
    const words = told("key", action.id).replace(/\{(\w+)\}/g, (whole, name: string) => String(action.values?.[name] ?? whole));
    return { words, chords: action.keys };
  });
}

const MOUSE = ["left", "wheel", "shift_wheel", "ctrl_wheel", "right", "middle"] as const;

export function openHelp(groups: readonly KeyGroup[], withMouse: boolean): void {
  const mouse: KeyGroup = {
    title: t("keys.mouse"),
    lines: MOUSE.map((name) => ({ words: t(`mouse.${name}`), chords: [t(`mouse.name.${name}`)] })),
  };
  const all = withMouse ? [...groups, mouse] : groups;
  openDialog(t("keys.title"), h("div", { class: "key-groups" }, all.map(group)), { wide: true });
}

function group(each: KeyGroup): HTMLElement {
  return h(
    "section",
    {},
    h("h3", {}, each.title),
    h(
      "dl",
      { class: "keys" },
      each.lines.map((line) => [
        h("dt", {}, line.chords.map((chord) => h("kbd", {}, readable(chord))), line.held && ` ${t("keys.held")}`),
        h("dd", {}, line.words),
      ]),
    ),
  );
}
