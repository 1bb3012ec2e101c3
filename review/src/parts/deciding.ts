/** Approving and rejecting: what will be written is repeated, the credential is asked for again, refusals are told. */

import type { App } from "../app";
import { Problem, Unreachable } from "../api/problem";
import type { Decision, Draft, Reviewed, Session, View } from "../api/types";
import { t, told } from "../catalogue";
import { h, show } from "../dom";
import { cc, duration, fullName, local, mm, number, patientName, personName, taken } from "../format";
import { fractionOf } from "./banner";
import { reasonsOf } from "./figures";
import { openDialog, type Dialog } from "./dialog";
import { badge, line } from "./marks";
import { draftWords } from "./notices";
import { inOneLine, problemBox } from "./problem";
import { say } from "./toast";
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
  /** A draft that lies there and is no part of what is shown, as far as that is known; asks when called. */
  draft(): Promise<Draft | null>;
  /** Shows what is there now. */
  lookAgain(): void;
  next(): void;
}

/** Longer than any signature takes; who hears nothing until then is told so. */
const LONGEST_MS = 60_000;
/** As the service answers (409) where somebody else is signed in than is meant to decide. */
const OTHER_PERSON = 409;

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

  const decision = async (): Promise<Decision> => {
    const what = { method: subject.method, text: text.value.trim(), reviewer: app.session?.name ?? "" };
    return edit === null ? { decision: "approved", ...what } : { decision: "edited", draft_etag: await screen.saveDraft(), ...what };
  };
  const submit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    show(go, t("sign.going"));
    const review = await send({ app, id: view.propagation, etag: subject.etag, credential, decision, dialog, trouble, go, screen });
    show(go, t("sign.go"));
    if (review !== null) signed(dialog, subject, review, screen);
  };
  const beside = h("div", {});
  const form = h(
    "form",
    { class: "signing", onsubmit: (event: SubmitEvent) => void submit(event) },
    view.patient === null && h("p", { class: "callout callout-reject" }, t("review.patient_unknown")),
    repeated(app, subject),
    beside,
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
  if (edit === null) void tellDraft(beside, screen);
}

/** An edit that was left is not what is signed here: that is said before the signature. */
async function tellDraft(place: HTMLElement, screen: Deciding): Promise<void> {
  const draft = await screen.draft();
  if (draft !== null) show(place, h("p", { class: "callout callout-look" }, draftWords(draft), " ", t("sign.draft_not_signed")));
}

function repeated(app: App, { view, method, edit }: Subject): HTMLElement {
  const chosen = view.methods.find((each) => each.method === method);
  const row = (label: string, ...value: (Node | string)[]): HTMLElement[] => [h("dt", {}, label), h("dd", {}, value)];
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
    row(t("sign.patient"), h("strong", {}, fullName(view.patient))),
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
  show(
    dialog.body,
    h(
      "div",
      { class: "signed" },
      h("p", { class: "callout callout-accept", role: "status" }, h("strong", {}, t("sign.done")), ` · ${patientName(view.patient, "full")} · ${fractionOf(view)}`),
      h(
        "dl",
        { class: "repeated" },
        row(t("sign.who"), personName(review.reviewer)),
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
      whatNext(dialog, screen),
    ),
  );
  dialog.body.querySelector<HTMLElement>("button.main")?.focus();
}

/** What is done after a decision; however the dialog is closed, the screen behind it is old. */
function whatNext(dialog: Dialog, screen: Deciding): HTMLElement {
  lookAgainAtClose(dialog, screen);
  const next = (): void => {
    dialog.element.removeEventListener("close", screen.lookAgain);
    dialog.close();
    screen.next();
  };
  return h(
    "div",
    { class: "buttons" },
    h("button", { onclick: () => dialog.close() }, t("sign.stay")),
    h("button", { class: "main", onclick: next }, t("sign.next")),
  );
}

function lookAgainAtClose(dialog: Dialog, screen: Deciding): void {
  dialog.element.addEventListener("close", screen.lookAgain, { once: true });
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
    const decision: Decision = { decision: "rejected", reason, text: text.value.trim(), reviewer: app.session?.name ?? "" };
    const asked = { app, id: view.propagation, etag, credential, decision: () => Promise.resolve(decision), dialog, trouble, go, screen };
    const review = await send(asked);
    if (review === null) return;
    const by = t("course.by", { decision: t("reject.done"), reviewer: personName(review.reviewer) });
    show(
      dialog.body,
      h("p", { class: "callout callout-reject", role: "status" }, h("strong", {}, by), ` · ${review.reason}`),
      whatNext(dialog, screen),
    );
    dialog.body.querySelector<HTMLElement>("button.main")?.focus();
  };
  const form = h(
    "form",
    { class: "signing", onsubmit: (event: SubmitEvent) => void submit(event) },
    h(
      "dl",
      { class: "repeated" },
      h("dt", {}, t("sign.patient")),
      h("dd", {}, h("strong", {}, fullName(view.patient))),
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
        const now = await samePerson(app);
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
        await samePerson(app);
        await within(app.client.prove(password.value));
      } finally {
        password.value = "";
      }
    },
  };
}

/** Whoever this page names is who is signed in: another tab of the browser may have changed that.
 *
 * @throws Problem It is somebody else, or nobody.
 */
async function samePerson(app: App): Promise<Session> {
  const now = await within(app.client.session());
  if (now === null) throw new Problem(401, t("sign_in.ended"), "", "", "", "");
  if (now.name === app.session?.name) return now;
  const name = personName(now.name);
  throw new Problem(OTHER_PERSON, t("sign.other_person", { name }), "", "", t("sign.other_person_remedy", { name }), "");
}

/** An answer that does not come in time is none. */
function within<T>(answer: Promise<T>): Promise<T> {
  let timer = 0;
  const silence = new Promise<never>((_, reject) => {
    timer = window.setTimeout(() => reject(new Unreachable(t("problem.unreachable"))), LONGEST_MS);
  });
  return Promise.race([answer, silence]).finally(() => window.clearTimeout(timer));
}

type Outcome =
  | { kind: "done"; review: Reviewed }
  | { kind: "not-proven" | "not-you" | "no-draft" | "changed" | "refused" | "unknown"; error: unknown };

/** A decision, and the dialog that it is made in. */
interface Asked {
  app: App;
  id: string;
  etag: string;
  credential: Credential;
  decision: () => Promise<Decision>;
  dialog: Dialog;
  trouble: HTMLElement;
  go: HTMLButtonElement;
  screen: Deciding;
}

/** Sends a decision; whatever comes of it but success is told here, and null. */
async function send(asked: Asked): Promise<Reviewed | null> {
  const { dialog, trouble, credential } = asked;
  show(trouble);
  dialog.hold(true);
  const outcome = await decided(asked);
  dialog.hold(false);
  if (!dialog.element.open) {
    // The page went elsewhere, as when the sign-in ends: what came of it is said all the same.
    say(outcome.kind === "done" ? t("course.by", { decision: told("state", outcome.review.decision), reviewer: personName(outcome.review.reviewer) }) : wordsOf(outcome.kind));
    return null;
  }
  if (outcome.kind === "done") return outcome.review;
  if (outcome.kind === "unknown") await tellWhatStands(asked, outcome.error);
  else refused(trouble, outcome, dialog, asked.screen);
  credential.focus();
  return null;
}

async function decided({ app, id, etag, credential, decision }: Asked): Promise<Outcome> {
  try {
    await credential.prove();
  } catch (error) {
    const status = error instanceof Problem ? error.status : 0;
    return { kind: status === 401 ? "not-proven" : status === OTHER_PERSON ? "not-you" : "refused", error };
  }
  let what: Decision;
  try {
    what = await within(decision()); // saves the draft, under the name of whoever has just shown who it is
  } catch (error) {
    return { kind: "no-draft", error };
  }
  try {
    return { kind: "done", review: await within(app.client.decide(id, etag, what)) };
  } catch (error) {
    return { kind: kindOf(error), error };
  }
}

/** What is known when a decision was sent and no good answer came. */
export function kindOf(error: unknown): "changed" | "refused" | "unknown" {
  if (!(error instanceof Problem) || error.status >= 500) return "unknown";
  return error.status === 412 || error.status === 409 ? "changed" : "refused";
}

function wordsOf(kind: Exclude<Outcome["kind"], "done">): string {
  return {
    "not-proven": t("sign.not_proven"),
    "not-you": t("sign.not_you"),
    "no-draft": t("sign.no_draft"),
    changed: t("sign.changed"),
    refused: t("sign.refused"),
    unknown: t("sign.unknown"),
  }[kind];
}

function lookButton({ close }: Dialog, then: () => void): HTMLButtonElement {
  const look = (): void => {
    close();
    then();
  };
  return h("button", { type: "button", class: "main", onclick: look }, t("sign.look_again"));
}

function refused(place: HTMLElement, outcome: Exclude<Outcome, { kind: "done" }>, dialog: Dialog, screen: Deciding): void {
  const look = outcome.kind === "changed" ? [lookButton(dialog, screen.lookAgain)] : [];
  show(place, h("p", { class: "problem-line", role: "alert" }, wordsOf(outcome.kind)), problemBox(outcome.error, ...look));
}

/** The answer was lost: nobody says "not signed" of what may stand there. It is read, and can be read again. */
async function tellWhatStands(asked: Asked, error: unknown): Promise<void> {
  const { app, id, dialog, trouble, go, screen } = asked;
  lookAgainAtClose(dialog, screen);
  go.disabled = true; // until it is known that nothing stands there
  const stands = h("div", { class: "stands", role: "status" }, t("page.loading"));
  const read = async (): Promise<void> => {
    try {
      const reviews = await within(app.client.reviews(id));
      go.disabled = reviews.length > 0;
      show(stands, reviews.length === 0 ? t("sign.stands_none") : reviews.map((each) => h("p", {}, standsWords(each))));
    } catch (failure) {
      show(stands, t("sign.stands_unknown", { why: inOneLine(failure) }));
    }
  };
  show(
    trouble,
    h("p", { class: "problem-line", role: "alert" }, wordsOf("unknown")),
    problemBox(error),
    stands,
    h(
      "div",
      { class: "buttons" },
      h("button", { type: "button", onclick: () => void read() }, t("sign.ask_again")),
      lookButton(dialog, () => undefined), // closing looks again
    ),
  );
  await read();
}

function standsWords({ decision, reviewer, at, method, reason }: Reviewed): string {
  const what = reason || method;
  return t("sign.stands", { decision: told("state", decision), reviewer: personName(reviewer), at: local(at), what });
}
