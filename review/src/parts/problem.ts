/** A refusal as a person reads it: cause, where, what to do. */

import { Problem, Unreachable } from "../api/problem";
import { t } from "../catalogue";
import { h } from "../dom";

interface Told {
  cause: string;
  where: string;
  remedy: string;
  trace: string;
}

/** The four parts of any failure. */
export function parts(error: unknown): Told {
  if (error instanceof Problem) {
    return { cause: error.cause_ || error.title, where: error.where, remedy: error.remedy, trace: error.trace };
  }
  if (error instanceof Unreachable) {
    return { cause: t("problem.unreachable"), where: "", remedy: t("problem.unreachable_remedy"), trace: "" };
  }
  const words = error instanceof Error ? error.message : String(error);
  return { cause: words ? `${t("problem.own")} ${words}` : t("problem.own"), where: "", remedy: "", trace: "" };
}

/** A box with all that is known of a failure, and what can be done at once. */
export function problemBox(error: unknown, ...actions: HTMLElement[]): HTMLElement {
  const told = parts(error);
  const row = (label: string, text: string): HTMLElement[] =>
    text ? [h("dt", {}, label), h("dd", {}, text)] : [];
  return h(
    "div",
    { class: "problem", role: "alert" },
    h("p", { class: "problem-cause" }, told.cause),
    h(
      "dl",
      {},
      row(t("problem.where"), told.where),
      row(t("problem.remedy"), told.remedy),
      row(t("problem.trace"), told.trace),
    ),
    actions.length > 0 && h("div", { class: "buttons" }, actions),
  );
}

/** The same in one line, for a bar. */
export function inOneLine(error: unknown): string {
  const told = parts(error);
  return [told.cause, told.where, told.remedy].filter(Boolean).join("; ");
}
