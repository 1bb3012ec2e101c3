/** What must not be overlooked, each in one sentence; worked out from what the service said. */

import type { Draft, View } from "../api/types";
import { t, told } from "../catalogue";
import { local, personName } from "../format";

export interface Notice {
  kind: "bad" | "look" | "info";
  words: string;
  /** A place to go on at. */
  go?: { words: string; hash: string };
}

const WORKING = new Set(["received", "complete", "matched", "registering", "drawing", "comparing", "writing", "delivering"]);
const IN_VIEW = "prior_in_view";

/** Notices of what is shown, the worst first. */
export function noticesOf(view: View): Notice[] {
  const found: Notice[] = [];
  if (view.patient === null) found.push({ kind: "bad", words: t("review.patient_unknown") });
  if (view.stale !== null) {
    const { why, propagation } = view.stale;
    const go = propagation === null ? {} : { go: { words: t("review.open_newer"), hash: `#/propagations/${propagation}` } };
    found.push({ kind: "bad", words: t("review.stale", { why }), ...go });
  }
  const working = WORKING.has(view.state);
  if (working) found.push({ kind: "look", words: t("review.still_working", { state: told("state", view.state) }) });
  const nothingDrawn = view.methods.every((method) => method.empty);
  const rejected = view.registration !== null && view.verdict.verdict === "reject";
  const outside = [...view.verdict.figures, ...(view.registration?.figures ?? [])].find(
    (figure) => figure.name === IN_VIEW && figure.verdict !== null && figure.verdict !== "accept",
  );
  if (outside !== undefined) {
    found.push({ kind: "bad", words: t("review.out_of_view", { why: outside.reason || outside.limit }) });
  }
  if (view.registration === null && !working) found.push({ kind: "look", words: t("review.no_registration") });
  if (rejected && nothingDrawn) found.push({ kind: "bad", words: t("review.rejected") });
  else if (nothingDrawn && !working) found.push({ kind: "bad", words: t("review.no_contour") });
  else {
    for (const method of view.methods) {
      if (method.empty) {
        const note = method.note ? ` ${method.note}` : "";
        found.push({ kind: "look", words: t("review.empty_method", { method: method.method }) + note });
      }
    }
  }
  if (view.images.planning === null && !working) {
    found.push({ kind: "look", words: t("review.no_planning", { why: view.images.planning_why_not }) });
  }
  if (!view.may.sign && view.stale === null && !working && view.approved === null && view.may.why_not !== "") {
    found.push({ kind: "info", words: t("review.may_not", { why: view.may.why_not }) });
  }
  if (view.approved !== null) {
    const { reviewer, at, method } = view.approved;
    found.push({ kind: "info", words: t("banner.approved", { reviewer: personName(reviewer), at: local(at), method }) });
  }
  return found;
}

/** That an edit lies there which is no part of what is shown. */
export function draftWords({ edited_slices: count, by, saved_at }: Draft): string {
  const what = count === 1 ? t("draft.one") : t("draft.of", { count });
  return t("draft.not_shown", { what, by: personName(by), at: clock(saved_at) });
}

/** The time of day, with the day where that is another one. */
function clock(at: string): string {
  const [then, today] = [local(at), local(new Date().toISOString())];
  return then.slice(0, 10) === today.slice(0, 10) ? then.slice(11) : then;
}

/** Why it cannot be rejected now; empty: it can, also where it is out of date and nothing newer stands in its place. */
export function whyNotReject(view: View, changed: boolean): string {
  if (changed) return t("review.changed");
  if (view.stale !== null && view.stale.propagation !== null) return t("review.stale", { why: view.stale.why });
  return view.may.reject ? "" : t("review.may_not", { why: view.may.why_not });
}

/** Why nothing can be signed now; empty: it can. */
export function whyNotSign(view: View, changed: boolean): string {
  if (view.stale !== null) return t("review.stale", { why: view.stale.why });
  if (changed) return t("review.changed");
  if (!view.may.sign) return t("review.may_not", { why: view.may.why_not });
  return "";
}
