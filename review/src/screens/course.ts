/** A course over its fractions; what people had to mend; and a question of matching, where one is open. */

import type { App, Screen } from "../app";
import type { Tagged } from "../api/client";
import { Problem } from "../api/problem";
import type { Course, EditingStatistics, FractionHistory, History, Method, View } from "../api/types";
import { t, told } from "../catalogue";
import { h, show } from "../dom";
import { duration, fullName, length_mm, number, patientName, personName, taken } from "../format";
import { chart } from "../parts/charts";
import { coursePlots } from "../parts/course-plots";
import { disclaimer, header } from "../parts/header";
import { reasonOf } from "../parts/figures";
import { badge, line } from "../parts/marks";
import { problemBox } from "../parts/problem";
import { say } from "../parts/toast";
import type { Place } from "../router";

/** The answer that is no UID and no number. */
const NONE_OF_THESE = "none";
const PLOT = { width: 560, height: 200 };

export function course(app: App, place: Place): Screen {
  const id = place.screen === "course" ? place.id : "";
  const body = h("div", { class: "course-body" }, h("p", { class: "empty" }, t("page.loading")));
  const root = h("div", { class: "screen course" }, header(app, t("course.title")), body, disclaimer());

  const load = async (): Promise<void> => {
    try {
      const [asked, history, statistics] = await Promise.all([
        ifThere(app.client.course(id)),
        ifThere(app.client.history(id)),
        ifThere(app.client.editing()),
      ]);
      // Whose it is, and what colours the methods have, stands in what the last fraction shows.
      const last = history?.fractions.at(-1);
      const shown = last === undefined ? null : await ifThere(app.client.view(last.propagation));
      const open = asked === null ? [] : questions(app, asked, () => void load());
      show(
        body,
        open,
        open.length === 0 && history === null && h("p", { class: "empty" }, t("course.no_question")),
        history !== null && historyOf(app, history, shown?.body ?? null),
        statistics !== null && statisticsOf(statistics, new Map(shown?.body.methods.map((each) => [each.method, each]))),
      );
    } catch (error) {
      show(body, problemBox(error, h("button", { onclick: () => void load() }, t("page.again"))));
    }
  };
  void load();
  return {
    title: t("course.title"),
    root,
    actions: () => [{ id: "back", keys: ["q"], run: () => window.history.back() }],
  };
}

/** Null where there is no such thing; other refusals are told. */
async function ifThere<T>(asked: Promise<T>): Promise<T | null> {
  try {
    return await asked;
  } catch (error) {
    if (error instanceof Problem && error.status === 404) return null;
    throw error;
  }
}

function historyOf(app: App, history: History, shown: View | null): HTMLElement {
  if (history.fractions.length === 0) return h("p", { class: "empty" }, t("course.no_fractions"));
  const names = [...new Set(history.fractions.flatMap((each) => Object.keys(each.volumes_cc)))];
  const looks = new Map(shown?.methods.map((each) => [each.method, each]));
  const methods = names.map((method) => looks.get(method) ?? { method, colour: "currentColor", dash: [] });
  const patient = shown?.patient ?? null;
  const rois = [...new Set(history.fractions.map((each) => each.roi))];
  return h(
    "section",
    { class: "card full" },
    h(
      "h2",
      { class: "patient" },
      [patientName(patient, app.preferences.names), patient !== null && t("patient.id", { id: patient.id }), history.roi].filter(Boolean).join(" · "),
    ),
    h(
      "ul",
      { class: "legend" },
      methods.map(({ method, colour, dash }) => h("li", {}, line(colour, dash), method)),
      h("li", {}, "◆ ", t("history.signed")),
    ),
    rois.map((roi) => {
      const its = history.fractions.filter((each) => each.roi === roi);
      return [rois.length > 1 && h("h3", {}, roi), coursePlots(its, methods, null, PLOT), tableOf(its, names)];
    }),
  );
}

function tableOf(fractions: readonly FractionHistory[], names: readonly string[]): HTMLElement {
  const heads = [
    t("course.fraction"),
    t("course.taken"),
    t("course.verdict"),
    t("course.reason"),
    ...names,
    t("history.signed"),
    t("course.shift"),
    t("course.decision"),
    t("course.surface_dice"),
    t("course.mean_surface"),
    t("course.edits"),
    t("course.seconds"),
  ];
  const inWords = (index: number): boolean => index === 2 || index === 3 || heads[index] === t("course.decision");
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "figures-table course-table" },
      h("thead", {}, h("tr", {}, heads.map((words, index) => h("th", { scope: "col", class: inWords(index) ? "words" : null }, words)))),
      h("tbody", {}, fractions.map((each) => fractionRow(each, names))),
    ),
  );
}

function fractionRow(each: FractionHistory, names: readonly string[]): HTMLElement {
  const { review } = each;
  const decision =
    review === null
      ? told("state", each.state)
      : t("course.by", { decision: told("state", review.decision), reviewer: personName(review.reviewer) });
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, h("a", { href: `#/propagations/${each.propagation}` }, placeIn(each))),
    h("td", {}, taken(each.acquired_at)),
    h("td", { class: "words short" }, badge(each.verdict)),
    h("td", { class: "words" }, reasonOf(each)),
    names.map((name) => h("td", {}, number(each.volumes_cc[name], 1))),
    h("td", {}, number(each.signed_volume_cc, 1)),
    h("td", {}, each.shift_xyz_mm === null ? "–" : number(length_mm(each.shift_xyz_mm), 1)),
    h("td", { class: "words" }, decision),
    h("td", {}, number(review?.surface_dice_1mm, 3)),
    h("td", {}, number(review?.mean_surface_mm, 2)),
    h("td", {}, review?.edited_slices ?? "–"),
    h("td", {}, duration(review?.seconds)),
  );
}

/** `7`, or `7, scan 2` where it was scanned again. */
function placeIn({ fraction, scan }: FractionHistory): string {
  if (fraction === null) return "–";
  return (scan ?? 1) > 1 ? `${fraction}, ${t("worklist.scan", { n: scan ?? "" })}` : String(fraction);
}

/** How near signed contours were to each method's, month by month: whether it gets better or worse. */
function monthsOf({ methods }: EditingStatistics, looks: ReadonlyMap<string, Pick<Method, "colour" | "dash">>): HTMLElement | null {
  const months = [...new Set(methods.flatMap((each) => each.months.map(({ month }) => month)))].sort();
  if (months.length < 2) return null;
  const series = methods.map(({ method, months: its }) => ({
    label: method,
    colour: looks.get(method)?.colour ?? "currentColor",
    dash: looks.get(method)?.dash ?? [],
    points: its.map((each) => ({ n: months.indexOf(each.month) + 1, value: each.median_surface_dice_1mm })),
  }));
  const ends = [1, months.length];
  return h("div", { class: "plots" }, chart(t("course.surface_dice_by_month"), series, ends, PLOT, null, (n) => months[n - 1] ?? ""));
}

function statisticsOf(statistics: EditingStatistics, looks: ReadonlyMap<string, Pick<Method, "colour" | "dash">>): HTMLElement {
  const heads = ["method", "signed", "unchanged", "edited", "rejected", "surface_dice", "mean_surface", "seconds"] as const;
  return h(
    "section",
    { class: "card full" },
    h("h2", {}, t("course.statistics")),
    h("p", { class: "hint" }, t("course.statistics_hint")),
    statistics.methods.length === 0
      ? h("p", { class: "soft" }, t("course.statistics_none"))
      : h(
          "table",
          { class: "figures-table" },
          h("thead", {}, h("tr", {}, heads.map((name) => h("th", { scope: "col" }, t(`course.${name}`))))),
          h(
            "tbody",
            {},
            statistics.methods.map((each) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, each.method),
                [each.signed, each.unchanged, each.edited, each.rejected].map((value) => h("td", {}, value)),
                h("td", {}, number(each.median_surface_dice_1mm, 3)),
                h("td", {}, number(each.median_mean_surface_mm, 2)),
                h("td", {}, duration(each.median_seconds)),
              ),
            ),
          ),
        ),
    monthsOf(statistics, looks),
  );
}

/** The open questions; each says whose scan it is about, as the scan itself does. */
function questions(app: App, { body: asked, etag }: Tagged<Course>, again: () => void): HTMLElement[] {
  return asked.fractions.flatMap((fraction) => {
    const { question } = fraction;
    if (question === null) return [];
    const trouble = h("div", {});
    const submit = async (event: SubmitEvent): Promise<void> => {
      event.preventDefault();
      const form = event.currentTarget as HTMLFormElement;
      const choice = new FormData(form).getAll("choice").map(String);
      try {
        await app.client.answer(asked.id, etag, { question: question.question, choice, fraction: fraction.id });
        say(t("course.answered"));
        if (asked.question === null) again();
        else app.go({ screen: "worklist" }); // what was asked under its own id belongs to a course by now, or to none
      } catch (error) {
        const changed = error instanceof Problem && (error.status === 412 || error.status === 409);
        show(trouble, problemBox(error, ...(changed ? [h("button", { type: "button", onclick: again }, t("sign.look_again"))] : [])));
      }
    };
    return [
      h(
        "section",
        { class: "card full question" },
        h("h2", { class: "patient" }, fullName(fraction.patient)),
        h("p", {}, t("review.cbct", { time: taken(fraction.acquired_at) })),
        h("h3", {}, told("question", question.question)),
        h("p", { lang: "en" }, question.why),
        question.missing.length > 0 && h("p", { class: "hint" }, t("course.missing", { uids: question.missing.join(", ") })),
        question.choices.length === 0
          ? h("p", { class: "soft" }, t("course.waits"))
          : h(
              "form",
              { onsubmit: (event: SubmitEvent) => void submit(event) },
              question.choices.map(({ value, label }) =>
                h(
                  "label",
                  { class: "radio" },
                  h("input", { type: question.several ? "checkbox" : "radio", name: "choice", value, required: !question.several }),
                  value === NONE_OF_THESE ? t("course.none_of_these") : label,
                ),
              ),
              trouble,
              h("div", { class: "buttons" }, h("button", { class: "main", type: "submit", disabled: !app.has("reviewer") }, t("course.answer"))),
            ),
      ),
    ];
  });
}
