/** What a fraction was drawn from and why, and where it went: whoever signs can see that it is the right plan. */

import type { App } from "../app";
import type { Source, View } from "../api/types";
import { t, told } from "../catalogue";
import { h } from "../dom";
import { fullName, taken } from "../format";
import { deliveriesList } from "./deliveries";
import { openDialog } from "./dialog";

export function openAbout(app: App, view: View): void {
  const { basis } = view;
  const row = (label: string, ...value: (Node | string)[]): HTMLElement[] => [h("dt", {}, label), h("dd", {}, value)];
  const source = ({ taken_at, description, series }: Source): HTMLElement => h("span", { title: series }, [taken(taken_at), description].filter(Boolean).join(" · "));
  const content = h(
    "div",
    { class: "about" },
    h(
      "dl",
      { class: "repeated" },
      row(t("sign.patient"), h("strong", {}, fullName(view.patient))),
      row(t("about.planning_ct"), source(basis.planning_ct)),
      row(t("about.structures"), source(basis.structures)),
      row(t("about.prior"), basis.signed_on === null ? t("about.prior_planning") : t("about.prior_signed", { at: taken(basis.signed_on) })),
      basis.vouched === "" ? [] : row(t("about.vouched"), basis.vouched),
    ),
    h("h3", {}, t("about.why")),
    basis.reasons.length === 0
      ? h("p", { class: "soft" }, t("about.asked"))
      : h("dl", { class: "repeated" }, basis.reasons.map(({ question, sentence }) => row(told("topic", question), sentence))),
    h("h3", {}, t("about.deliveries")),
    deliveriesList(app, { propagation: view.propagation }),
  );
  openDialog(t("about.title"), content, { wide: true });
}
