/** Signs that say a verdict by shape and word, so that colour is never needed. */

import { told } from "../catalogue";
import { h, s } from "../dom";
import type { Verdict } from "../api/types";

const SHAPES: Record<Verdict | "", () => SVGElement[]> = {
  accept: () => [s("circle", { cx: 8, cy: 8, r: 6.6 }), s("path", { d: "m5 8.300 2.200 2.200 4-4.600", class: "cut" })],
  look: () => [
    s("path", { d: "M8 1.500 15 14H1Z" }),
    s("path", { d: "M8 6v3.800M8 11.600v1", class: "cut" }),
  ],
  reject: () => [
    s("path", { d: "M5.200 1.300h5.600l3.900 3.900v5.600l-3.900 3.900H5.200l-3.900-3.900V5.200Z" }),
    s("path", { d: "m5.400 5.400 5.200 5.200m0-5.200-5.200 5.200", class: "cut" }),
  ],
  "": () => [s("circle", { cx: 8, cy: 8, r: 6, class: "hollow" })],
};

/** Circle with a tick, triangle, octagon with a cross; a ring while nothing is known. */
export function shape(verdict: Verdict | ""): SVGElement {
  return s("svg", { viewBox: "0 0 16 16", class: `mark mark-${verdict || "none"}`, "aria-hidden": "true" }, SHAPES[verdict]());
}

/** Shape and word. */
export function badge(verdict: Verdict | "", large = false): HTMLElement {
  return h(
    "span",
    { class: `badge badge-${verdict || "none"}${large ? " badge-large" : ""}` },
    shape(verdict),
    h("span", {}, told("verdict", verdict || "none")),
  );
}

/** A piece of a method's line: its colour and its dash. */
export function line(colour: string, dash: readonly number[], width = 2.5): SVGElement {
  return s(
    "svg",
    { viewBox: "0 0 28 10", class: "line", "aria-hidden": "true" },
    s("line", {
      x1: 1,
      y1: 5,
      x2: 27,
      y2: 5,
      stroke: colour,
      "stroke-width": width,
      "stroke-dasharray": dash.length > 0 ? dash.join(" ") : null,
    }),
  );
}
