/** What went to other systems, what waits to, and what was given up: that a person sends again. */

import type { App } from "../app";
import type { Delivery } from "../api/types";
import { t, told } from "../catalogue";
import { h, show } from "../dom";
import { local } from "../format";
import { inOneLine } from "./problem";
import { say } from "./toast";

/** The deliveries of one propagation, or all that were given up. */
export function deliveriesList(app: App, of: { propagation: string } | { state: "dead" }): HTMLElement {
  const list = h("div", { class: "deliveries", role: "status" }, h("p", { class: "soft" }, t("page.loading")));
  const load = async (): Promise<void> => {
    try {
      const found = await app.client.deliveries(of);
      show(list, found.length === 0 ? h("p", { class: "soft" }, t("delivery.none")) : h("ul", { class: "plain" }, found.map(row)));
    } catch (error) {
      show(list, h("p", { class: "problem-line", role: "alert" }, inOneLine(error)));
    }
  };
  const again = async (delivery: Delivery): Promise<void> => {
    try {
      await app.client.resend(delivery.id);
      await load();
    } catch (error) {
      say(inOneLine(error));
    }
  };
  const row = (delivery: Delivery): HTMLElement =>
    h(
      "li",
      { class: `delivery delivery-${delivery.state}` },
      h("strong", {}, delivery.destination),
      h("span", {}, deliveryWords(delivery)),
      "propagation" in of || delivery.propagation === null
        ? null
        : h("a", { href: `#/propagations/${delivery.propagation}` }, t("delivery.whose")),
      delivery.state === "dead" && app.has("reviewer") && h("button", { class: "small", onclick: () => void again(delivery) }, t("delivery.again")),
    );
  void load();
  return list;
}

/** What goes, where it is, and why it is not there. */
export function deliveryWords({ objects, state, attempts, next_at, problem }: Pick<Delivery, "objects" | "state" | "attempts" | "next_at" | "problem">): string {
  const what = t(objects.some(({ role }) => role === "signed") ? "delivery.signed" : "delivery.drawn");
  const why = state === "delivered" || attempts === 0 ? "" : (problem.detail ?? problem.cause ?? "");
  const when = state === "waiting" && attempts > 0 ? t("delivery.next", { attempts, at: local(next_at) }) : "";
  return [`${what}: ${told("delivery", state)}`, when, why].filter(Boolean).join(" · ");
}
