/** A course in two small charts: volume and shift over fractions. */

import type { FractionHistory, Method, Verdict } from "../api/types";
import { t } from "../catalogue";
import { h } from "../dom";
import { length_mm } from "../format";
import { chart, type Series } from "./charts";
import { reasonOf } from "./figures";
import { shape } from "./marks";

const INK = "currentColor";

/** The charts of one ROI; volumes of `methods` are drawn as lines. */
export function coursePlots(
  history: readonly FractionHistory[],
  methods: readonly Pick<Method, "method" | "colour" | "dash">[],
  current: number | null,
  size: { width: number; height: number },
): HTMLElement {
  const numbered = history.filter((each) => each.fraction !== null);
  const fractions = numbered.map((each) => each.fraction ?? 0);
  if (fractions.length === 0) return h("p", { class: "soft" }, t("history.none"));
  const volumes: Series[] = methods.map((method) => ({
    label: method.method,
    colour: method.colour,
    dash: method.dash,
    points: numbered.map((each) => ({ n: each.fraction ?? 0, value: each.volumes_cc[method.method] ?? null })),
  }));
  const signedOff: Series = {
    label: t("history.signed"),
    colour: INK,
    dash: [],
    marks: true,
    points: numbered.map((each) => ({ n: each.fraction ?? 0, value: each.signed_volume_cc })),
  };
  const shift: Series = {
    label: t("history.shift"),
    colour: INK, // of the recommended method, whichever is looked at
    dash: [],
    points: numbered.map((each) => ({ n: each.fraction ?? 0, value: each.shift_xyz_mm === null ? null : length_mm(each.shift_xyz_mm) })),
  };
  return h(
    "div",
    { class: "plots" },
    chart(t("history.volume"), [...volumes, signedOff], fractions, size, current),
    chart(t("history.shift"), [shift], fractions, size, current),
    h(
      "ol",
      { class: "verdicts", "aria-label": t("worklist.verdict") },
      numbered.map((each) => h("li", { title: `${t("history.point", { n: each.fraction ?? 0, value: reasonOf(each) || verdictWord(each.verdict) })}` }, shape(each.verdict), h("span", { class: "unseen" }, `${each.fraction}: ${verdictWord(each.verdict)}`))),
    ),
  );
}

function verdictWord(verdict: Verdict | ""): string {
  return t(`verdict.${verdict || "none"}`);
}
