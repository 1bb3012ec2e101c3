/** What the verdict stands on: each figure with its limit, those out of bounds first. */

import type { Figure, View } from "../api/types";
import { speaksAsTheService, t, told } from "../catalogue";
import { h } from "../dom";
import { number } from "../format";
import { shape } from "./marks";

const OF_A_METHOD = /^(.+)_(drawn|volume_over_prior|overlap_with_prior|quality)$/;
// The rigid method is the registration, which has a panel of its own.
const REGISTRATION = "rigid ";
const MOST_REASONS = 2;
const MOST_MORE_PLACES = 3;

/** A figure's name in words: `lncc`, `translation lncc`, `target prior_in_view`, `dir-l_volume_over_prior`. */
export function figureName(name: string): string {
  const [of, own] = name.includes(" ") ? [name.slice(0, name.indexOf(" ")), name.slice(name.indexOf(" ") + 1)] : ["", name];
  const found = OF_A_METHOD.exec(own);
  const words = found === null ? told("figure", own) : told("figure", found[2] ?? "").replace("{method}", found[1] ?? "");
  return of === "" ? words : `${told("part", of)}: ${words}`;
}

/** A figure's value with as many places as say something: what is out of bounds never reads as if it were on them. */
export function figureValue({ name, value, limit, verdict }: Figure): string {
  const places = /_(mm|deg)$/.test(name) ? 1 : 2;
  if (value === null || verdict === null || verdict === "accept") return number(value, places);
  const bounds = (limit.match(/-?\d+(\.\d+)?/g) ?? []).map(Number);
  let more = 0;
  while (more < MOST_MORE_PLACES && bounds.includes(Number(value.toFixed(places + more)))) more += 1;
  return number(value, places + more);
}

/** A limit in words: `accept ≥ 0.6, reject < 0.3`, `at most 15 mm and 5°`, `accept 0.25 to 2`. */
export function limitWords(limit: string): string {
  if (speaksAsTheService()) return limit;
  return limit
    .replace(/accept|look|reject/g, (verdict) => told("verdict", verdict))
    .replace("at most", "≤")
    .replace(" to ", "–")
    .replace(" and ", ", ");
}

/** Why the verdict is as it is. Where the page speaks another language than the service: the figure, its value and its limit. */
export function reasonsOf(view: View): string[] {
  const { reasons, figures } = view.verdict;
  const known = [...(view.registration?.figures ?? []), ...figures];
  return reasons.map((reason) => reasonOf({ reason, doubt: known.find((figure) => figure.reason !== "" && (figure.reason === reason || reason.endsWith(`: ${figure.reason}`))) ?? null }));
}

/** One reason in the page's language, by the figure that it is about. */
export function reasonOf({ reason, doubt }: { reason: string; doubt: Figure | null }): string {
  if (speaksAsTheService() || doubt === null) return reason;
  if (doubt.value === null) return `${figureName(doubt.name)}: ${doubt.reason}`;
  return `${figureName(doubt.name)} ${figureValue(doubt)} (${limitWords(doubt.limit)})`;
}

/** Out of bounds first, each kind in the service's order. */
export function byWeight(figures: readonly Figure[]): Figure[] {
  const weight = (figure: Figure): number => (figure.verdict === "reject" ? 0 : figure.verdict === "look" ? 1 : 2);
  return [...figures].sort((a, b) => weight(a) - weight(b));
}

/** Why the verdict is as it is, and its figures but those that the registration panel shows. */
export function figuresPanel(view: View): HTMLElement {
  const { verdict } = view.verdict;
  const reasons = reasonsOf(view);
  const elsewhere = new Set(view.registration?.figures.flatMap(({ name }) => [name, REGISTRATION + name]) ?? []);
  const own = byWeight(view.verdict.figures.filter((figure) => !elsewhere.has(figure.name)));
  const odd = own.filter((figure) => figure.verdict !== null && figure.verdict !== "accept");
  const fine = own.filter((figure) => !odd.includes(figure));
  return h(
    "section",
    { class: "panel figures", "aria-labelledby": "figures-title" },
    h("div", { class: "panel-head" }, h("h2", { id: "figures-title" }, t("figures.title"))),
    reasons.length === 0 && verdict === "accept" && h("p", { class: "soft" }, t("verdict.fine")),
    h(
      "ul",
      { class: "why" },
      reasons.slice(0, MOST_REASONS).map((reason) => h("li", {}, reason)),
      reasons.length > MOST_REASONS && h("li", { class: "soft" }, t("review.more_reasons", { count: reasons.length - MOST_REASONS })),
    ),
    odd.length > 0 && h("ul", { class: "figure-list" }, odd.map(figureRow)),
    fine.length > 0 &&
      h("details", {}, h("summary", {}, t("figures.within", { count: fine.length })), h("ul", { class: "figure-list" }, fine.map(figureRow))),
  );
}

/** One figure on a line of its own. */
export function figureRow(figure: Figure): HTMLElement {
  return h(
    "li",
    { class: "figure", title: figure.reason || null },
    shape(figure.verdict ?? ""),
    h("span", { class: "clip" }, figure.value === null && figure.reason ? figure.reason : figureName(figure.name)),
    figure.verdict !== null && h("span", { class: "unseen" }, told("verdict", figure.verdict)),
    h("span", { class: "value" }, figure.value === null ? "" : figureValue(figure)),
    h("span", { class: "limit" }, limitWords(figure.limit)),
  );
}
