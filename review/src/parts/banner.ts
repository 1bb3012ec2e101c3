/** Whose scan this is and what the machine thinks of it: on screen as long as anything of it is. */

import type { App } from "../app";
import type { View } from "../api/types";
import { t, told } from "../catalogue";
import { h } from "../dom";
import { day, patientName, taken } from "../format";
import { openDialog } from "./dialog";
import { reasonsOf } from "./figures";
import { corner } from "./header";
import { badge } from "./marks";

/** `fraction 7/30, scan 2 of 2`, as far as it is known and there is more than one. */
export function fractionOf(view: Pick<View, "fraction" | "fractions" | "scan" | "scans">): string {
  if (view.fraction === null) return "";
  const words =
    view.fractions === null
      ? t("review.fraction_alone", { n: view.fraction })
      : t("review.fraction", { n: view.fraction, of: view.fractions });
  return (view.scans ?? 1) > 1 ? `${words}, ${t("review.scan", { n: view.scan ?? "", of: view.scans ?? "" })}` : words;
}

export function banner(app: App, view: View, about: () => void): HTMLElement {
  const { patient } = view;
  const names = app.preferences.names;
  const facts = [
    view.roi,
    fractionOf(view),
    t("review.cbct", { time: taken(view.acquired_at) }),
    view.machine,
  ].filter(Boolean);
  return h(
    "header",
    { class: "top banner" },
    h(
      "div",
      { class: "banner-line" },
      h("a", { class: "brand", href: "#/worklist", title: `${t("page.worklist")} (q)` }, "Contourcast"),
      h("h1", { class: "patient" }, patientName(patient, names)),
      names !== "id" && patient !== null && h("span", { class: "fact" }, t("patient.id", { id: patient.id })),
      patient !== null && patient.birth_date !== "" && h("span", { class: "fact soft" }, t("patient.born", { date: day(patient.birth_date) })),
      h("span", { class: "facts", title: facts.join(" · ") }, facts.map((fact) => h("span", { class: "fact" }, fact))),
      h("button", { class: "quiet", title: "i", onclick: about }, t("about.open")),
      view.course !== null && h("a", { class: "fact", href: `#/courses/${view.course}`, title: "j" }, t("review.history")),
      corner(app),
    ),
    verdictLine(view),
  );
}

function verdictLine(view: View): HTMLElement {
  const { verdict } = view.verdict;
  const reasons = reasonsOf(view);
  const [first, ...others] = reasons;
  const all = (): void => {
    openDialog(t("verdict.by_machine", { verdict: told("verdict", verdict || "none") }), h("ul", { class: "reasons" }, reasons.map((reason) => h("li", {}, reason))));
  };
  return h(
    "div",
    { class: `verdict-line verdict-${verdict || "none"}` },
    badge(verdict, true),
    h("span", { class: "clip", title: reasons.join("\n") }, first ?? (verdict === "accept" ? t("verdict.fine") : "")),
    others.length > 0 && h("button", { class: "quiet small", onclick: all }, t("review.more_reasons", { count: others.length })),
    h("span", { class: "state" }, told("state", view.state)),
  );
}
