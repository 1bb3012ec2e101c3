/** Small line charts of a course: figures over fractions, as SVG that needs no style of its own. */

import { t } from "../catalogue";
import { h, s } from "../dom";
import { number } from "../format";
import type { Verdict } from "../api/types";

export interface Point {
  n: number;
  value: number | null;
  /** Of the fraction, where the chart marks it. */
  verdict?: Verdict | "";
}

export interface Series {
  label: string;
  colour: string;
  dash: readonly number[];
  points: readonly Point[];
  /** Drawn as marks alone. */
  marks?: boolean;
}

const LEFT = 26;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 18;

/** Round steps that a scale from 0 or near the smallest value is divided by. */
export function ticks(low: number, high: number, wanted = 3): number[] {
  if (!(high > low)) return [low];
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= raw) ?? raw;
  const found: number[] = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step + 0); // no minus before a nought
  return found;
}

/** The scale of a chart: zero is always in it, so that no small change looks large. */
export function scaleOf(series: readonly Series[]): [number, number] {
  const values = series.flatMap((each) => each.points.map((point) => point.value)).filter((value) => value !== null);
  const top = Math.max(0, ...values);
  const bottom = Math.min(0, ...values);
  return top > bottom ? [bottom, top * 1.08] : [0, 1];
}

/** A chart of one quantity. */
export function chart(what: string, series: readonly Series[], fractions: readonly number[], size: { width: number; height: number }, current: number | null, name: (n: number) => string = String): HTMLElement {
  const [low, high] = scaleOf(series);
  const first = Math.min(...fractions);
  const last = Math.max(...fractions, first + 1);
  const x = (n: number): number => LEFT + ((n - first) / (last - first)) * (size.width - LEFT - RIGHT);
  const y = (value: number): number => TOP + ((high - value) / (high - low)) * (size.height - TOP - BOTTOM);
  // Long names stay inside the picture.
  const anchor = (n: number): string => (name === String ? "middle" : n === first ? "start" : n === last ? "end" : "middle");
  const marks = ticks(low, high);
  const places = marks.some((value) => !Number.isInteger(value)) ? 1 : 0;
  const known = series.flatMap((each) => each.points).filter((point) => point.value !== null);
  const words =
    known.length > 0
      ? t("history.summary", {
          what,
          count: new Set(known.map((point) => point.n)).size,
          first: number(known[0]?.value, 1),
          last: number(series[0]?.points.findLast((point) => point.value !== null)?.value ?? known.at(-1)?.value, 1),
        })
      : t("history.no_points", { what });
  const drawn = s(
    "svg",
    { viewBox: `0 0 ${size.width} ${size.height}`, class: "chart", role: "img", "aria-label": words },
    marks.map((value) => [
      s("line", { x1: LEFT, x2: size.width - RIGHT, y1: y(value), y2: y(value), class: "chart-grid" }),
      s("text", { x: LEFT - 5, y: y(value) + 3.5, "text-anchor": "end" }, number(value, places)),
    ]),
    current !== null && s("line", { x1: x(current), x2: x(current), y1: TOP, y2: size.height - BOTTOM, class: "chart-now" }),
    labelled(fractions, last - first).map((n) => s("text", { x: x(n), y: size.height - 4, "text-anchor": anchor(n) }, name(n))),
    series.map((each) => plot(each, x, y, name)),
  );
  return h("figure", { class: "chart-figure" }, h("figcaption", {}, what), drawn);
}

function plot(each: Series, x: (n: number) => number, y: (value: number) => number, name: (n: number) => string): SVGElement[] {
  const known = each.points.filter((point): point is Point & { value: number } => point.value !== null);
  const title = (point: Point & { value: number }): SVGElement =>
    s("title", {}, `${each.label} · ${t("history.point", { n: name(point.n), value: number(point.value, point.value < 2 ? 2 : 1) })}`);
  const dots = known.map((point) =>
    each.marks
      ? s("path", { d: diamond(x(point.n), y(point.value)), fill: each.colour, class: "chart-signed" }, title(point))
      : s("circle", { cx: x(point.n), cy: y(point.value), r: 2.2, fill: each.colour }, title(point)),
  );
  if (each.marks || known.length < 2) return dots;
  const path = known.map((point, i) => `${i === 0 ? "M" : "L"}${x(point.n).toFixed(1)} ${y(point.value).toFixed(1)}`).join("");
  const dash = each.dash.length > 0 ? each.dash.join(" ") : null;
  return [s("path", { d: path, fill: "none", stroke: each.colour, "stroke-width": 1.6, "stroke-dasharray": dash }), ...dots];
}

function diamond(cx: number, cy: number): string {
  return `M${cx} ${cy - 4.5}L${cx + 4.5} ${cy}L${cx} ${cy + 4.5}L${cx - 4.5} ${cy}Z`;
}

/** As many fraction numbers as find room. */
function labelled(fractions: readonly number[], span: number): number[] {
  const every = Math.max(1, Math.ceil(span / 8));
  return [...new Set(fractions)].filter((n) => (n - 1) % every === 0);
}
