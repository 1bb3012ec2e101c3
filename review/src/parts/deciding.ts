/** Approving and rejecting: what will be written is repeated, the credential is asked for again, refusals are told. */

import type { App } from "../app";
import { Problem } from "../api/problem";
import type { Decision, Reviewed, View } from "../api/types";
import { t, told } from "../catalogue";
import { h, show } from "../dom";
import { cc, day, duration, mm, number, patientName, personName, taken } from "../format";
import { fractionOf } from "./banner";
import { reasonsOf } from "./figures";
import { openDialog, type Dialog } from "./dialog";
import { badge, line } from "./marks";
import { problemBox } from "./problem";
import { editedSlices } from "./tools";

/** What somebody is about to sign. */
export interface Subject {
  view: View;
  etag: string;
  method: string;
  /** Of an edited contour; null: the machine's, unchanged. */
  edit: { edited_slices: readonly number[]; volume_cc: number; machine_volume_cc: number | null } | null;
}

/** What the screen does before and after. */
export interface Deciding {
  /** Saves the draft and says its ETag. */
  saveDraft(): Promise<string>;
  /** Shows what is there now. */
  lookAgain(): void;
  next(): void;
}

const REASONS = [
  "registration wrong",
  "target wrong",
  "image artefact",
  "wrong patient or plan",
  "anatomy changed: physician needed",
  "other",
] as const;

/** Slices as people list them: 3–5, 8. Counted from 1, as the slice bar does. */
export function sliceList(slices: readonly number[]): string {
  const sorted = [...new Set(slices)].sort((a, b) => a - b).map((slice) => slice + 1);
  const runs: [number, number][] = [];
  for (const slice of sorted) {
    const last = runs.at(-1);
    if (last !== undefined && slice === last[1] + 1) last[1] = slice;
    else runs.push([slice, slice]);
  }
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}–${last}`)).join(", ");
}

/** Opens the dialog of a signature. */
export function openSigning(app: App, subject: Subject, screen: Deciding): void {
  const { view, edit } = subject;
  const text = h("textarea", { rows: 2, maxlength: 1024 });
  const credential = credentialField(app);
  const trouble = h("div", {});
  const go = h("button", { class: "main", type: "submit" }, t("sign.go"));

  const decision = async (): Promise<Decision> =>
    edit === null
      ? { decision: "approved", method: subject.method, text: text.value.trim() }
      : { decision: "edited", method: subject.method, draft_etag: await screen.saveDraft(), text: text.value.trim() };
  const submit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    go.disabled = true;
    show(go, t("sign.going"));
    show(trouble);
    const outcome = await decided(app, view.propagation, subject.etag, credential, decision);
    go.disabled = false;
    show(go, t("sign.go"));
    if (outcome.kind === "done") signed(dialog, subject, outcome.review, screen);
    else refused(trouble, outcome, dialog, screen);
  };
  const form = h(
    "form",
    { class: "signing", onsubmit: (event: SubmitEvent) => void submit(event) },
    repeated(app, subject),
    view.verdict.verdict !== "accept" &&
      view.verdict.verdict !== "" &&
      h(
        "p",
        { class: `callout callout-${view.verdict.verdict}` },
        badge(view.verdict.verdict),
        " ",
        t("sign.verdict_warning", { verdict: told("verdict", view.verdict.verdict), reason: reasonsOf(view)[0] ?? "" }),
      ),
    h("label", {}, t("sign.text"), text),
    credential.root,
    trouble,
    h("p", { class: "disclaimer" }, t("page.not_a_device")),
    h("div", { class: "buttons" }, h("button", { type: "button", onclick: () => dialog.close() }, t("page.cancel")), go),
  );
  const dialog = openDialog(t(edit === null ? "sign.title" : "sign.title_edited"), form);
  credential.focus();
}

function repeated(app: App, { view, method, edit }: Subject): HTMLElement {
  const { patient } = view;
  const chosen = view.methods.find((each) => each.method === method);
  const row = (label: string, ...value: (Node | string)[]): HTMLElement[] => [h("dt", {}, label), h("dd", {}, value)];
  const who = [patientName(patient, "full"), t("patient.id", { id: patient.id }), patient.birth_date && t("patient.born", { date: day(patient.birth_date) })];
  const edits =
    edit === null
      ? t("sign.edits_none")
      : t("sign.edits_some", {
          edited: editedSlices(edit.edited_slices.length),
          slices: sliceList(edit.edited_slices),
          before: cc(edit.machine_volume_cc),
          after: cc(edit.volume_cc),
        });
  return h(
    "dl",
    { class: "repeated" },
    row(t("sign.patient"), h("strong", {}, who.filter(Boolean).join(" · "))),
    row(t("sign.fraction"), [view.roi, fractionOf(view)].filter(Boolean).join(" · ")),
    row(t("sign.cbct"), [taken(view.acquired_at), view.machine].filter(Boolean).join(" · ")),
    row(
      t("sign.contour"),
      ...(chosen === undefined ? [] : [line(chosen.colour, chosen.dash)]),
      ` ${method}, ${cc(edit?.volume_cc ?? chosen?.volume_cc)}`,
    ),
    row(t("sign.edits"), edits),
    row(t("sign.who"), personName(app.session?.name ?? "")),
    row(t("sign.written"), t("sign.written_text", { roi: view.roi })),
  );
}

function signed(dialog: Dialog, { view }: Subject, review: Reviewed, screen: Deciding): void {
  const figures = review.figures ?? null;
  const row = (label: string, value: string): HTMLElement[] => [h("dt", {}, label), h("dd", {}, value)];
  const next = h("button", { class: "main", onclick: () => leaveBy(screen.next) }, t("sign.next"));
  const leaveBy = (then: () => void): void => {
    dialog.close();
    then();
  };
  show(
    dialog.body,
    h(
      "div",
      { class: "signed" },
      h("p", { class: "callout callout-accept", role: "status" }, h("strong", {}, t("sign.done")), ` · ${patientName(view.patient, "full")} · ${fractionOf(view)}`),
      h(
        "dl",
        { class: "repeated" },
        row(t("sign.uid"), review.structures_uid),
        row(t("sign.destinations"), (review.deliveries ?? []).join(", ") || t("sign.no_destination")),
        figures !== null &&
          row(
            t("sign.distance"),
            t("sign.distance_text", {
              dice: number(figures.surface_dice_1mm, 3),
              mean: mm(figures.mean_surface_mm, 2),
              slices: figures.edited_slices ?? 0,
              seconds: duration(figures.seconds),
            }),
          ),
      ),
      h("div", { class: "buttons" }, h("button", { onclick: () => leaveBy(screen.lookAgain) }, t("sign.stay")), next),
    ),
  );
  dialog.element.addEventListener("close", screen.lookAgain, { once: true });
  next.addEventListener("click", () => dialog.element.removeEventListener("close", screen.lookAgain), { capture: true });
  next.focus();
}

/** Opens the dialog of a rejection. */
export function openRejecting(app: App, view: View, etag: string, screen: Deciding): void {
  const credential = credentialField(app);
  const text = h("textarea", { rows: 2, maxlength: 1024 });
  const trouble = h("div", {});
  const go = h("button", { class: "main danger", type: "submit" }, t("reject.go"));
  let reason = "";

  const complain = (words: string): void => show(trouble, h("p", { class: "problem-line", role: "alert" }, words));
  const submit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    if (reason === "") return complain(t("reject.reason_needed"));
    if (reason === "other" && text.value.trim() === "") {
      text.focus();
      return complain(t("reject.text_needed"));
    }
    go.disabled = true;
    show(trouble);
    const decision: Decision = { decision: "rejected", reason, text: text.value.trim() };
    const outcome = await decided(app, view.propagation, etag, credential, () => Promise.resolve(decision));
    go.disabled = false;
    if (outcome.kind !== "done") return refused(trouble, outcome, dialog, screen);
    const leaveBy = (then: () => void): void => {
      dialog.close();
      then();
    };
    show(
      dialog.body,
      h("p", { class: "callout callout-reject", role: "status" }, h("strong", {}, t("reject.done")), ` · ${outcome.review.reason}`),
      h(
        "div",
        { class: "buttons" },
        h("button", { onclick: () => leaveBy(screen.lookAgain) }, t("sign.stay")),
        h("button", { class: "main", autofocus: true, onclick: () => leaveBy(screen.next) }, t("sign.next")),
      ),
    );
  };
  const form = h(
    "form",
    { class: "signing", onsubmit: (event: SubmitEvent) => void submit(event) },
    h(
      "dl",
      { class: "repeated" },
      h("dt", {}, t("sign.patient")),
      h("dd", {}, h("strong", {}, `${patientName(view.patient, "full")} · ${t("patient.id", { id: view.patient.id })}`)),
      h("dt", {}, t("sign.fraction")),
      h("dd", {}, [view.roi, fractionOf(view), taken(view.acquired_at)].filter(Boolean).join(" · ")),
    ),
    h(
      "fieldset",
      {},
      h("legend", {}, t("reject.why")),
      REASONS.map((each) =>
        h("label", { class: "radio" }, h("input", { type: "radio", name: "reason", value: each, onchange: () => (reason = each) }), t(`reject.${each}`)),
      ),
    ),
    h("label", {}, t("reject.text"), text),
    credential.root,
    trouble,
    h("div", { class: "buttons" }, h("button", { type: "button", onclick: () => dialog.close() }, t("page.cancel")), go),
  );
  const dialog = openDialog(t("reject.title"), form);
  form.querySelector("input")?.focus();
}

interface Credential {
  root: HTMLElement;
  focus(): void;
  /** Shows it to the service. */
  prove(): Promise<void>;
}

/** The password of a local account; whoever comes from the issuer signs in there again. */
function credentialField(app: App): Credential {
  if (app.session?.name.startsWith("oidc:")) {
    // In a window of its own: what is looked at here stays as it is.
    const link = h("a", { class: "button", href: "/v1/session/oidc?again=true", target: "_blank", rel: "noopener" }, t("sign.oidc_go"));
    return {
      root: h("div", { class: "callout" }, h("p", {}, t("sign.oidc")), link),
      focus: () => link.focus(),
      prove: async () => {
        const now = await app.client.session();
        if (now === null) throw new Problem(401, t("sign_in.ended"), "", "", "", "");
        if (now.name !== app.session?.name) throw new Problem(401, t("sign.other_person"), "", "", "", "");
        if (now.proven_at === null) throw new Problem(401, t("sign.not_at_issuer"), "", "", "", "");
      },
    };
  }
  const password = h("input", { type: "password", name: "password", autocomplete: "current-password", required: true });
  // For password managers: whose password it is.
  const name = h("input", { type: "text", name: "name", autocomplete: "username", value: personName(app.session?.name ?? ""), hidden: true });
  return {
    root: h("label", {}, t("sign.password"), name, password),
    focus: () => password.focus(),
    prove: async () => {
      try {
        await app.client.prove(password.value);
      } finally {
        password.value = "";
      }
    },
  };
}

type Outcome =
  | { kind: "done"; review: Reviewed }
  | { kind: "not-proven" | "no-draft" | "changed" | "refused"; error: unknown };

async function decided(app: App, id: string, etag: string, credential: Credential, decision: () => Promise<Decision>): Promise<Outcome> {
  try {
    await credential.prove();
  } catch (error) {
    return { kind: error instanceof Problem && error.status === 401 ? "not-proven" : "refused", error };
  }
  let what: Decision;
  try {
    what = await decision(); // saves the draft, under the name of whoever has just shown who it is
  } catch (error) {
    return { kind: "no-draft", error };
  }
  try {
    return { kind: "done", review: await app.client.decide(id, etag, what) };
  } catch (error) {
    const changed = error instanceof Problem && (error.status === 412 || error.status === 409);
    return { kind: changed ? "changed" : "refused", error };
  }
}

function refused(place: HTMLElement, outcome: Exclude<Outcome, { kind: "done" }>, dialog: Dialog, screen: Deciding): void {
  const look = h(
    "button",
    {
      type: "button",
      class: "main",
      onclick: () => {
        dialog.close();
        screen.lookAgain();
      },
    },
    t("sign.look_again"),
  );
  const words = {
    "not-proven": t("sign.not_proven"),
    "no-draft": t("sign.no_draft"),
    changed: t("sign.changed"),
    refused: t("sign.refused"),
  }[outcome.kind];
  show(place, h("p", { class: "problem-line", role: "alert" }, words), problemBox(outcome.error, ...(outcome.kind === "changed" ? [look] : [])));
}
