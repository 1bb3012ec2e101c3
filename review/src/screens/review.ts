/** One fraction on one screen: is it the right patient, is the registration right, is the contour right, may I sign? */

import type { App, Screen } from "../app";
import type { Draft, View } from "../api/types";
import { t } from "../catalogue";
import { h, onChange, show } from "../dom";
import { mm, number, personName } from "../format";
import type { Action } from "../keys";
import { openAbout } from "../parts/about";
import { banner } from "../parts/banner";
import { coursePlots } from "../parts/course-plots";
import { openRejecting, openSigning, type Deciding } from "../parts/deciding";
import { openDialog } from "../parts/dialog";
import { figuresPanel } from "../parts/figures";
import { disclaimer } from "../parts/header";
import type { KeyGroup } from "../parts/help";
import { ghostName, methodsPanel, type ContourChoice } from "../parts/methods";
import { draftWords, noticesOf, whyNotReject, whyNotSign, type Notice } from "../parts/notices";
import { inOneLine, parts, problemBox } from "../parts/problem";
import { mayAdjust, registrationPanel } from "../parts/registration";
import { say } from "../parts/toast";
import { editTools, imageTools, restoredWords, wouldBeLost } from "../parts/tools";
import type { Place } from "../router";
import { createViewer, KEYS, type Probe, type Viewer, type ViewerState, type ViewerTexts } from "../viewer";
import { openNext } from "./worklist";

const LOOK_EVERY_MS = 20_000;
const PLOT = { width: 186, height: 80 };
const SEEN_PERCENT = 50;
const FIRST_METHOD_KEY = 5;
const METHOD_KEYS = 5;

export function review(app: App, place: Place): Screen {
  const id = place.screen === "review" ? place.id : "";
  const root = h("div", { class: "screen review" }, h("p", { class: "empty", role: "status" }, t("page.loading")));
  let open: Opened | null = null;
  let left = false;
  let asked = 0;

  const load = async (): Promise<void> => {
    const mine = ++asked;
    try {
      const { body, etag } = await app.client.view(id);
      if (left || mine !== asked) return;
      await open?.close();
      if (left || mine !== asked) return;
      open = openView(app, root, body, etag, () => void load());
    } catch (error) {
      if (left || mine !== asked) return;
      const again = h("button", { onclick: () => void load() }, t("page.again"));
      const back = h("a", { class: "button", href: "#/worklist" }, t("page.worklist"));
      show(root, h("div", { class: "card wide" }, problemBox(error, again, back)), disclaimer());
    }
  };
  void load();

  return {
    title: t("page.title"),
    root,
    actions: () => [
      ...(open?.actions() ?? [{ id: "worklist", keys: ["q"], run: () => app.go({ screen: "worklist" }) }]),
      { id: "next", keys: ["n"], run: () => void openNext(app, id) },
    ],
    keyGroups,
    keyDown: (event) => open?.viewer.keyDown(event) ?? false,
    keyUp: (event) => open?.viewer.keyUp(event) ?? false,
    answered: (yes) => {
      if (yes) void open?.lookWhetherChanged();
    },
    leave: async () => {
      left = true;
      await open?.close();
    },
  };
}

function keyGroups(): KeyGroup[] {
  const lines = (editing: boolean): KeyGroup["lines"] =>
    KEYS.filter((each) => (each.editing ?? false) === editing).map((each) => ({
      words: t(`key.${each.command}`),
      chords: each.keys,
      held: each.held ?? false,
    }));
  return [
    { title: t("keys.images"), lines: lines(false) },
    { title: t("keys.editing"), lines: lines(true) },
  ];
}

interface Opened {
  readonly viewer: Viewer;
  actions(): Action[];
  lookWhetherChanged(): Promise<void>;
  close(): Promise<void>;
}

/** Builds the screen over what the service said; everything in it belongs to that answer and its ETag. */
function openView(app: App, root: HTMLElement, view: View, etag: string, lookAgain: () => void): Opened {
  delete root.dataset["shown"];
  let changed = false;
  let others: string[] = [];
  let troubles: Notice[] = [];
  // Nobody signs what was not shown: what does not come, and what has not come yet.
  let missing = "";
  let shown = false;
  const unseen = (): string => missing || (shown ? "" : t("review.not_shown_yet"));
  let draft: Draft | null = view.draft ?? null;
  let closed = false;

  const bars = h("div", { class: "notices", role: "status" });
  const stage = h("div", { class: "stage" });
  const probe = h("span", { class: "probe value" }, t("tools.probe_none"));
  const windowed = h("span", { class: "window-values value" });
  const middle = h("div", { class: "middle" });
  const history = h("section", { class: "panel history", "aria-labelledby": "history-title" }, h("h2", { id: "history-title" }, t("history.title")));

  // The root of the viewer has its size before the viewer looks at it.
  const side = h("aside", { class: "side" });
  const toolRow = h("div", { class: "tool-rows" });
  const decision = h("footer", { class: "decision" });
  const about = (): void => openAbout(app, view);
  show(root, banner(app, view, about), bars, h("div", { class: "work" }, h("div", { class: "images" }, toolRow, stage), side), decision);

  const viewer = createViewer(stage, view, { http: app.client.http, texts: viewerTexts(), storage: browserStorage(), account: app.session?.name ?? "" });
  viewer.setWindow("auto"); // what lies in the lung is not seen in a window for soft tissue
  viewer.setInterpolation(app.preferences.interpolation);
  viewer.setContours({ width_px: app.preferences.contour_px });

  const tell = (): void => {
    const notices: Notice[] = [...noticesOf(view), ...troubles];
    if (draft !== null && draft.edited_slices > 0 && viewer.state.editing === null) notices.push({ kind: "look", words: draftWords(draft) });
    if (others.length > 0) notices.push({ kind: "info", words: t("review.open_too", { names: others.map(personName).join(", ") }) });
    show(
      bars,
      changed &&
        h("div", { class: "bar bar-bad" }, h("span", {}, t("review.changed")), h("button", { class: "small", onclick: lookAgain }, t("sign.look_again"))),
      notices.map((notice) =>
        h(
          "div",
          { class: `bar bar-${notice.kind}` },
          h("span", {}, notice.words),
          notice.go !== undefined && h("a", { class: "button small", href: notice.go.hash }, notice.go.words),
        ),
      ),
      view.may.retry &&
        h(
          "div",
          { class: "bar bar-look" },
          h("span", {}, t("failed.what")),
          h("button", { class: "small", onclick: () => void settleFailed(() => app.client.retry(view.propagation)) }, t("failed.retry")),
          h("button", { class: "small", onclick: putAway }, `${t("failed.cancel")} …`),
        ),
    );
  };

  const settleFailed = async (does: () => Promise<void>): Promise<void> => {
    try {
      await does();
      lookAgain();
    } catch (error) {
      say(inOneLine(error));
    }
  };
  const putAway = (): void => ask(t("failed.cancel"), t("failed.cancel_text"), [t("failed.cancel"), () => settleFailed(() => app.client.cancel(view.propagation))]);

  // Panels
  const choose = (change: Partial<ContourChoice>): void => {
    const { ghosts, ...rest } = change;
    viewer.setContours({ ...rest, ...(ghosts === undefined ? {} : { ghosts: [...ghosts] }) });
  };
  const methods = methodsPanel(view, choose);
  let before = 0;
  const registration = registrationPanel(app, view, {
    begin: () => {
      side.classList.add("side-adjusting");
      // What is moved has to be seen.
      before = viewer.state.compare.blend_percent;
      if (before < SEEN_PERCENT) viewer.setCompare({ blend_percent: SEEN_PERCENT });
      viewer.setTool("move");
    },
    end: () => {
      side.classList.remove("side-adjusting");
      viewer.setTool("navigate");
      viewer.setCompare({ blend_percent: before });
    },
    preview: (adjusted) => (adjusted === null ? viewer.preview(null) : viewer.preview(adjusted.image, adjusted.contours)),
  });
  show(side, methods.root, figuresPanel(view), registration.root, history);
  const drawHistory = async (): Promise<void> => {
    const heading = h("h2", { id: "history-title" }, t("history.title"));
    if (view.course === null) return show(history, heading, h("p", { class: "soft" }, t("review.no_course")));
    try {
      const told = await app.client.history(view.course);
      const mine = told.fractions.filter((each) => each.roi === view.roi);
      show(history, heading, coursePlots(mine, view.methods.filter((each) => each.method === selected()), view.fraction, PLOT));
    } catch (error) {
      show(history, heading, h("p", { class: "soft" }, inOneLine(error)));
    }
  };
  const selected = (): string => viewer.state.contours.selected;

  // Tools
  const images = imageTools(viewer, view.images.planning !== null);
  show(toolRow, images.root);
  let editing: ReturnType<typeof editTools> | null = null;
  const beginEditing = async (): Promise<void> => {
    const reason = view.may.edit ? "" : view.may.why_not || whyNotSign(view, changed);
    if (reason !== "" || viewer.state.editing !== null) return reason === "" ? undefined : say(reason);
    registration.leave();
    try {
      await viewer.edit(selected());
      viewer.setTool("brush");
    } catch (error) {
      say(inOneLine(error));
    }
  };
  const leaveEditing = async (): Promise<void> => {
    try {
      await viewer.leaveEditing();
    } catch (error) {
      say(inOneLine(error));
    }
  };
  const sources = [
    ...view.methods.filter((each) => !each.empty).map((each) => ({ name: each.method, words: each.method })),
    ...view.ghosts.map((each) => ({ name: each.ghost, words: ghostName(each) })),
  ];
  /** Asks before something is lost; what is chosen is done, and what fails is said. */
  const ask = (title: string, text: string, ...choices: readonly [string, () => Promise<void>][]): void => {
    const go = async (does: () => Promise<void>): Promise<void> => {
      dialog.close();
      try {
        await does();
      } catch (error) {
        say(inOneLine(error));
      }
    };
    const dialog = openDialog(
      title,
      h(
        "div",
        {},
        h("p", {}, text),
        h(
          "div",
          { class: "buttons" },
          h("button", { autofocus: true, onclick: () => dialog.close() }, t("page.cancel")),
          choices.map(([words, does]) => h("button", { class: "danger main", onclick: () => void go(does) }, words)),
        ),
      ),
    );
  };
  let copied = { from: "", slice: -1 };
  const copyFromNext = (): void => {
    const { editing: edited, slice } = viewer.state;
    const others = sources.filter(({ name }) => name !== edited?.method);
    // On another slice from the same contour; on the same slice from the next.
    const last = others.findIndex(({ name }) => name === copied.from);
    const first = slice === copied.slice || last < 0 ? last + 1 : last;
    for (let step = 0; step < others.length; step += 1) {
      const { name, words } = others[(first + step) % others.length]!;
      if (!viewer.copySlice(name)) continue;
      copied = { from: name, slice };
      return say(t("tools.copied", { from: words }));
    }
    say(t("tools.copied_none"));
  };
  const discard = (): void => {
    const count = viewer.state.editing?.edited_slices.length ?? 0;
    ask(t("discard.title"), t("discard.text", { count }), [t("discard.go"), () => viewer.discardDraft()]);
  };
  const settle = (by: string): void =>
    ask(
      t("conflict.title"),
      t("conflict.text", { by }),
      [t("conflict.mine"), () => viewer.resolveConflict("mine")],
      [t("conflict.theirs", { by }), () => viewer.resolveConflict("theirs")],
    );

  /** Whether a draft lies there, as the service has it now; where it does not say, what it said last. */
  const lookForDraft = async (): Promise<Draft | null> => {
    try {
      draft = (await app.client.view(view.propagation)).body.draft ?? null;
      if (!closed) tell();
    } catch {
      // told by the bar of the page
    }
    return draft !== null && draft.edited_slices > 0 ? draft : null;
  };

  // Deciding
  const deciding: Deciding = {
    saveDraft: () => viewer.saveDraft(),
    draft: lookForDraft,
    lookAgain,
    next: () => void openNext(app, view.propagation),
  };
  const approve = (): void => {
    const why = whyNotSign(view, changed) || unseen();
    if (why !== "") return say(why);
    registration.leave(); // what is signed is what is shown
    const edit = viewer.state.editing;
    const edited = edit !== null && edit.edited_slices.length > 0;
    const method = edit === null ? selected() : edit.method;
    const machine = view.methods.find((each) => each.method === method);
    if (!edited && (machine === undefined || machine.empty)) return say(t("sign.nothing", { method }));
    const subject = {
      view,
      etag,
      method,
      edit: edited
        ? { edited_slices: edit.edited_slices, volume_cc: edit.volume_cc, machine_volume_cc: machine?.volume_cc ?? null }
        : null,
    };
    openSigning(app, subject, deciding);
  };
  const reject = (): void => {
    const why = whyNotReject(view, changed);
    if (why !== "") return say(why);
    openRejecting(app, view, etag, deciding);
  };
  const rejectButton = h("button", { class: "danger", title: "x", onclick: reject }, t("decide.reject"));
  const editButton = h("button", { title: "e", onclick: () => void (viewer.state.editing === null ? beginEditing() : leaveEditing()) });
  const approveButton = h("button", { class: "main", title: "y", onclick: approve });
  show(middle, probe, windowed);
  show(decision, rejectButton, editButton, approveButton, middle, disclaimer());
  const dressDecision = (): void => {
    const blocked = whyNotSign(view, changed);
    const edit = viewer.state.editing;
    const method = edit?.method ?? selected();
    const nothing = (edit?.edited_slices.length ?? 0) === 0 && (view.methods.find((each) => each.method === method)?.empty ?? true);
    const kept = whyNotReject(view, changed);
    rejectButton.disabled = kept !== "";
    rejectButton.title = kept || "x";
    approveButton.disabled = blocked !== "" || unseen() !== "" || nothing;
    approveButton.title = blocked || unseen() || (nothing ? t("sign.nothing", { method }) : "y");
    editButton.disabled = edit === null && !view.may.edit;
    show(editButton, t(edit === null ? "decide.edit" : "decide.done"));
    show(approveButton, t(edit !== null && edit.edited_slices.length > 0 ? "decide.approve_edited" : "decide.approve"));
  };

  // What the viewer says
  let drawnFor = "";
  const showMethods = onChange(methods.update);
  const showDecision = onChange((..._: unknown[]) => dressDecision());
  const showWindow = onChange((width: number, center: number) => {
    show(windowed, t("tools.window_values", { width: number(width, 0), center: number(center, 0) }));
  });
  const follow = (state: ViewerState): void => {
    images.update(state);
    showWindow(state.window.width_hu, state.window.center_hu);
    showMethods(state.contours);
    const isEditing = state.editing !== null;
    if (isEditing && editing === null) {
      editing = editTools(viewer, { discard, settle, sources });
      show(toolRow, images.root, editing.root);
      show(middle, editing.below, probe, windowed);
      tell();
    } else if (!isEditing && editing !== null) {
      editing = null;
      show(toolRow, images.root);
      show(middle, probe, windowed);
      if (!closed) void lookForDraft();
    }
    editing?.update(state);
    root.classList.toggle("is-editing", isEditing);
    shown ||= state.shown;
    settled();
    showDecision(shown, state.contours.selected, state.editing?.method, state.editing?.edited_slices.length);
    if (state.contours.selected !== drawnFor) {
      drawnFor = state.contours.selected;
      void drawHistory();
    }
  };
  /** Says, for whoever waits without asking the screen, that the picture is there, and that whatever else comes has come. */
  let pictured = false;
  const settled = (): void => {
    if (pictured && (shown || missing !== "")) root.dataset["shown"] = view.propagation;
  };
  const trouble = (words: string): void => {
    troubles = [...troubles, { kind: "bad", words }];
    tell();
    dressDecision();
  };
  const whats = { cbct: t("review.cbct_image"), planning: t("review.planning_image"), contours: t("review.contours") };
  viewer.on("state", follow);
  viewer.on("editing", () => follow(viewer.state));
  viewer.on("probe", (told) => show(probe, told === null ? t("tools.probe_none") : probeWords(told)));
  viewer.on("restored", (told) => say(restoredWords(told, app.session?.name ?? "")));
  viewer.on("dragged", registration.dragged);
  viewer.on("distance", ({ length_mm }) => say(mm(length_mm)));
  viewer.on("loading", ({ image, loaded_slices, slices }) => {
    if (loaded_slices === slices) performance.mark(`review-${image}-loaded`);
  });
  viewer.on("failed", ({ what, error }) => {
    const words = t("review.image_failed", { what: whats[what], why: parts(error).cause });
    if (what !== "planning") missing = words;
    trouble(words);
  });
  viewer.on("refused", () => {
    missing = t("review.foreign_frame");
    trouble(missing);
  });
  void viewer.loaded.then(() => {
    performance.mark("review-first-picture");
    pictured = true;
    settled();
  });
  follow(viewer.state);
  tell();

  // Whether it is still what is here
  const lookWhetherChanged = async (): Promise<void> => {
    if (closed || document.hidden) return;
    try {
      const told = await app.client.presence(view.propagation);
      const now = told.etag ?? (await app.client.view(view.propagation)).etag;
      if (closed) return;
      const was = [changed, ...others].join();
      others = told.others;
      changed ||= now !== etag;
      if ([changed, ...others].join() !== was) {
        tell();
        dressDecision();
      }
    } catch {
      // silence is told by the bar of the page; a refusal comes again with the next decision
    }
  };
  const timer = window.setInterval(() => void lookWhetherChanged(), LOOK_EVERY_MS);
  const unloading = (event: BeforeUnloadEvent): void => {
    if (viewer.state.editing !== null && wouldBeLost(viewer.state.editing)) event.preventDefault();
  };
  window.addEventListener("beforeunload", unloading);
  void lookWhetherChanged();

  const back = (): void => {
    if (registration.adjusting()) registration.leave();
    else if (viewer.state.editing !== null) void leaveEditing();
    else app.go({ screen: "worklist" });
  };
  const ghost = (name: string): void => {
    const on = viewer.state.contours.ghosts;
    choose({ ghosts: on.includes(name) ? on.filter((each) => each !== name) : [...on, name] });
  };
  return {
    viewer,
    actions: () => [
      { id: "approve", keys: ["y"], run: approve, when: () => !approveButton.disabled },
      { id: "edit", keys: ["e"], run: () => void beginEditing(), when: () => viewer.state.editing === null },
      { id: "reject", keys: ["x"], run: reject, when: () => !rejectButton.disabled },
      { id: "copy-slice", keys: ["Shift+C"], run: copyFromNext, when: () => viewer.state.editing !== null },
      { id: "discard", keys: ["Shift+D"], run: () => discard(), when: () => viewer.state.editing !== null },
      { id: "adjust", keys: ["r"], run: () => registration.begin(), when: () => mayAdjust(view) },
      { id: "worklist", keys: ["q"], run: back },
      { id: "about", keys: ["i"], run: about },
      { id: "history", keys: ["j"], run: () => view.course !== null && app.go({ screen: "course", id: view.course }) },
      ...view.methods.slice(0, METHOD_KEYS).map((method, index) => ({
        id: "method",
        values: { n: method.method },
        keys: [String(FIRST_METHOD_KEY + index)],
        run: () => choose({ selected: method.method }),
      })),
      { id: "ghost_prior", keys: ["Shift+P"], run: () => ghost("prior") },
      { id: "ghost_approved", keys: ["Shift+L"], run: () => ghost("approved") },
    ],
    lookWhetherChanged,
    close: async () => {
      if (closed) return;
      closed = true;
      window.clearInterval(timer);
      window.removeEventListener("beforeunload", unloading);
      registration.leave();
      if (viewer.state.editing !== null) await leaveEditing();
      viewer.destroy();
    },
  };
}

function probeWords(probe: Probe): string {
  const [x, y, z] = probe.world_xyz_mm;
  return t("tools.probe", {
    x: number(x, 1),
    y: number(y, 1),
    z: number(z, 1),
    cbct: number(probe.cbct_hu, 0),
    planning: number(probe.planning_hu, 0),
  });
}

function viewerTexts(): ViewerTexts {
  return {
    planes: { axial: t("viewer.axial"), coronal: t("viewer.coronal"), sagittal: t("viewer.sagittal") },
    slice_bar: t("viewer.slice_bar"),
    slice_value: (slice, slices, z_mm) => t("viewer.slice_value", { slice: slice + 1, slices, z: number(z_mm, 1) }),
    loading: t("viewer.loading"),
    foreign_frame: t("viewer.foreign_frame"),
    no_planning: t("viewer.no_planning"),
    copy_of_draft: t("viewer.copy_of_draft"),
  };
}

function browserStorage(): Storage | null {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}
