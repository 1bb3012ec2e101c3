/** Which patients need a look: the service's order of triage, one row a fraction. */

import type { App, Screen } from "../app";
import type { Page } from "../api/client";
import type { WorklistItem } from "../api/types";
import { t, told } from "../catalogue";
import { h, press, show } from "../dom";
import { fullName, local, number, patientName, percent, personName, taken } from "../format";
import { deliveriesList } from "../parts/deliveries";
import { openDialog } from "../parts/dialog";
import { disclaimer, header } from "../parts/header";
import { reasonOf } from "../parts/figures";
import { badge } from "../parts/marks";
import { inOneLine, problemBox } from "../parts/problem";
import { say } from "../parts/toast";
import { WindowList } from "../parts/window-list";
import type { Place } from "../router";

export const ROW_PX = 40;
const FIRST_PAGE = 100;
const FURTHER_PAGE = 500;
const AHEAD_ROWS = 100;
const REFRESH_MS = 30_000;
const WORKING = ["received", "complete", "matched", "registering", "drawing", "comparing", "writing", "delivering"];
const STATES = { undecided: [], decided: ["approved", "edited", "rejected"], working: WORKING } as const;

export interface Filters {
  verdict: string;
  states: keyof typeof STATES;
  machine: string;
  today: boolean;
}

// Kept from one visit to the next, as long as the page lives.
let filters: Filters = { verdict: "", states: "undecided", machine: "", today: false };
const machines = new Set<string>();

/** The address of a list's first page. */
export function worklistPath(wanted: Filters, limit: number, today: Date = new Date()): string {
  const query = new URLSearchParams({ limit: String(limit) });
  for (const state of STATES[wanted.states]) query.append("state", state);
  if (wanted.verdict) query.append("verdict", wanted.verdict);
  if (wanted.machine) query.append("machine", wanted.machine);
  if (wanted.today) query.append("since", new Date(today.getFullYear(), today.getMonth(), today.getDate()).toISOString());
  return `/v1/worklist?${query.toString()}`;
}

/** A row: an item of the list, or an earlier scan of the same fraction under it. */
export interface Row {
  item: WorklistItem;
  under: boolean;
}

/** The rows of a list, with what lies under those that are open. */
export function rowsOf(items: readonly WorklistItem[], open: ReadonlySet<string>): Row[] {
  return items.flatMap((item) => [
    { item, under: false },
    ...(open.has(item.id) ? (item.earlier ?? []).map((each) => ({ item: each, under: true })) : []),
  ]);
}

/** Where a row leads; null: what is known stands in the row, and in a dialog. */
export function placeOfItem(item: WorklistItem): Place | null {
  if (item.kind === "series") return null;
  return item.kind === "question" ? { screen: "course", id: item.id } : { screen: "review", id: item.id };
}

/** The first that nobody has decided on nor has open; where all are open, the first. */
export function nextOf(items: readonly WorklistItem[], but: string, me: string): WorklistItem | null {
  const others = items.filter((item) => item.id !== but && (item.kind === "question" || item.state === "awaiting_review"));
  return others.find((item) => (item.open_by ?? []).every((name) => personName(name) === me)) ?? others[0] ?? null;
}

/** The next one that can be decided or answered, however far down the list; null: there is none. */
export async function findNext(client: Pick<App["client"], "worklist">, but: string, me: string): Promise<WorklistItem | null> {
  let path: string | null = `/v1/worklist?limit=${FIRST_PAGE}&state=awaiting_review&state=needs_person`;
  while (path !== null) {
    const page: Page<WorklistItem> = await client.worklist(path);
    const found = nextOf(page.items, but, me);
    if (found !== null) return found;
    path = page.next;
  }
  return null;
}

/** Opens the next undecided one. */
export async function openNext(app: App, but: string): Promise<void> {
  try {
    const next = await findNext(app.client, but, personName(app.session?.name ?? ""));
    if (next === null) {
      say(t("worklist.empty"));
      app.go({ screen: "worklist" });
    } else go(app, next);
  } catch (error) {
    say(inOneLine(error));
  }
}

function go(app: App, item: WorklistItem, afterwards: () => void = () => undefined): void {
  const place = placeOfItem(item);
  if (place === null) openGap(app, item, afterwards);
  else app.go(place);
}

/** A scan that lacks slices: nothing is drawn on it, and whoever sent it has to send the rest. */
function openGap(app: App, item: WorklistItem, afterwards: () => void): void {
  const trouble = h("div", {});
  const putAway = async (): Promise<void> => {
    try {
      await app.client.dismiss(item.id);
      dialog.close();
      afterwards();
    } catch (error) {
      show(trouble, problemBox(error));
    }
  };
  const content = h(
    "div",
    {},
    h("p", {}, h("strong", {}, fullName(item.patient))),
    h("p", {}, [t("review.cbct", { time: taken(item.acquired_at) }), item.machine].filter(Boolean).join(" · ")),
    h("p", { class: "callout callout-look" }, item.reason),
    h("p", {}, t("gap.text")),
    trouble,
    h(
      "div",
      { class: "buttons" },
      h("button", { autofocus: true, onclick: () => dialog.close() }, t("page.close")),
      app.has("reviewer") && h("button", { onclick: () => void putAway() }, t("gap.put_away")),
    ),
  );
  const dialog = openDialog(t("gap.title"), content);
}

export function worklist(app: App): Screen {
  let items: WorklistItem[] = [];
  let rows: Row[] = [];
  const open = new Set<string>();
  let next: string | null = null;
  let loading = false;
  // Only the answer to what was asked last counts.
  let asked = 0;
  let selected = 0;
  let left = false;

  const count = h("span", { class: "hint", role: "status" });
  const trouble = h("div", {});
  const undelivered = h("div", { class: "notices", role: "status" });
  const empty = h("p", { class: "empty", hidden: true });
  const list = new WindowList(ROW_PX, (index) => row(index), (index) => rows[index]?.item.id ?? "", (last) => {
    if (last > rows.length - AHEAD_ROWS) void more();
  });
  const table = h("div", { class: "table worklist-table", role: "treegrid", "aria-label": t("worklist.title") }, headRow(), list.element);

  const load = async (quiet: boolean): Promise<void> => {
    if (quiet && loading) return;
    const mine = ++asked;
    loading = true;
    if (!quiet) show(trouble);
    void tellUndelivered();
    try {
      const page = await app.client.worklist(worklistPath(filters, Math.max(FIRST_PAGE, Math.min(items.length, FURTHER_PAGE))));
      if (left || mine !== asked) return;
      const kept = rows[selected]?.item.id;
      const { focused } = list;
      items = page.items;
      rows = rowsOf(items, open);
      next = page.next;
      selected = selected < 0 ? -1 : rowOf(rows, kept);
      show(trouble);
      refreshed();
      list.set(rows.length);
      // Where it went out of view, the view follows.
      if (focused !== null && focused === kept && list.focused === null && selected >= 0) select(selected, true);
    } catch (error) {
      if (!quiet && mine === asked) show(trouble, problemBox(error, h("button", { onclick: () => void load(false) }, t("page.again"))));
    } finally {
      if (mine === asked) loading = false;
    }
  };

  /** What was given up on its way to another system is nobody's row. */
  const tellUndelivered = async (): Promise<void> => {
    try {
      const { length } = await app.client.deliveries({ state: "dead" });
      const open = (): void => void openDialog(t("about.deliveries"), deliveriesList(app, { state: "dead" }), { wide: true, onclose: () => void tellUndelivered() });
      show(
        undelivered,
        length > 0 &&
          h("div", { class: "bar bar-look" }, h("span", {}, t("delivery.given_up", { count: length })), h("button", { class: "small", onclick: open }, t("delivery.show"))),
      );
    } catch {
      // told by the list itself, which asks the same service
    }
  };

  const more = async (): Promise<void> => {
    if (loading || next === null) return;
    const mine = ++asked;
    loading = true;
    try {
      const url = new URL(next, window.location.origin);
      url.searchParams.set("limit", String(FURTHER_PAGE));
      const page = await app.client.worklist(url.pathname + url.search);
      if (left || mine !== asked) return;
      items = items.concat(page.items);
      rows = rowsOf(items, open);
      next = page.next;
      refreshed();
    } catch (error) {
      if (mine !== asked) return;
      say(inOneLine(error));
      next = null;
    } finally {
      if (mine === asked) loading = false;
    }
    list.set(rows.length);
  };

  const refreshed = (): void => {
    const before = machines.size;
    for (const item of items) if (item.machine) machines.add(item.machine);
    if (machines.size !== before) fillMachines();
    table.setAttribute("aria-rowcount", String(next === null ? rows.length + 1 : -1));
    const key = next === null ? "worklist.count" : "worklist.count_more";
    show(count, `${t(key, { count: items.length })} · ${t("worklist.refreshed", { time: local(new Date().toISOString()).slice(11) })}`);
    const filtered = filters.verdict !== "" || filters.machine !== "" || filters.today || filters.states !== "undecided";
    empty.hidden = items.length > 0;
    show(empty, t(filtered ? "worklist.empty_filtered" : "worklist.empty"));
  };

  const row = (index: number): HTMLElement => {
    const shown = rows[index];
    if (shown === undefined) return h("div", { role: "row" });
    const { item, under } = shown;
    const earlier = under ? 0 : (item.earlier?.length ?? 0);
    const cell = (name: string, ...children: (Node | string | null | false)[]): HTMLElement =>
      h("div", { role: "gridcell", class: `cell-${name}` }, children);
    const made = h(
      "div",
      {
        role: "row",
        class: under ? "row row-under" : "row",
        "aria-rowindex": index + 2,
        "aria-level": under ? 2 : 1,
        "aria-expanded": earlier > 0 ? String(open.has(item.id)) : null,
        onclick: () => go(app, item, () => void load(true)),
        onfocus: () => {
          if (selected !== index) select(index, false);
        },
      },
      cell("verdict", badge(item.verdict)),
      cell(
        "patient",
        h("strong", {}, patientName(item.patient, app.preferences.names)),
        item.patient !== null && app.preferences.names !== "id" && h("span", { class: "soft", title: item.patient.id }, item.patient.id),
      ),
      cell("fraction", earlier > 0 && unfolder(index, earlier), fractionCell(shown)),
      cell("roi", item.roi),
      cell("taken", taken(item.acquired_at)),
      cell("arrived", local(item.arrived_at)),
      cell("change", percent(item.volume_change_percent)),
      cell("agreement", number(item.agreement, 2)),
      cell("reason", h("span", { class: "clip", title: reasonOf(item) }, reasonOf(item))),
      cell("state", told("state", item.kind === "series" ? "incomplete" : item.state)),
      cell("open", (item.open_by ?? []).filter((name) => personName(name) !== personName(app.session?.name ?? "")).map(personName).join(", ")),
    );
    dress(made, index === selected, index === Math.max(0, selected));
    return made;
  };

  /** Shows or hides what lies under a row. */
  const fold = (index: number, unfold: boolean): void => {
    const shown = rows[index];
    if (shown === undefined) return;
    const over = shown.under ? items.findIndex((item) => item.earlier?.includes(shown.item)) : -1;
    const top = over < 0 ? shown.item : items[over];
    if (top === undefined || !(top.earlier?.length ?? 0) || open.has(top.id) === unfold) return;
    if (unfold) open.add(top.id);
    else open.delete(top.id);
    rows = rowsOf(items, open);
    selected = rowOf(rows, top.id);
    table.setAttribute("aria-rowcount", String(next === null ? rows.length + 1 : -1));
    list.set(rows.length);
    select(selected, true);
  };
  const unfolder = (index: number, earlier: number): HTMLElement => {
    const words = t("worklist.earlier", { count: earlier });
    return h(
      "button",
      {
        class: "quiet small",
        title: words,
        "aria-label": words,
        tabindex: -1,
        onclick: (event: Event) => {
          event.stopPropagation();
          fold(index, !open.has(rows[index]?.item.id ?? ""));
        },
      },
      `${open.has(rows[index]?.item.id ?? "") ? "▾" : "▸"} ${earlier}`,
    );
  };

  const select = (index: number, focus: boolean): void => {
    dress(list.at(Math.max(0, selected)), false, false);
    selected = Math.max(0, Math.min(rows.length - 1, index));
    list.reveal(selected);
    dress(list.at(selected), true, true);
    if (focus) list.at(selected)?.focus({ preventScroll: true });
  };

  const machine = h("select", {
    "aria-label": t("worklist.machine"),
    onchange: () => filter({ machine: machine.value }),
  });
  const fillMachines = (): void => {
    show(
      machine,
      h("option", { value: "" }, t("worklist.every_machine")),
      [...machines].sort().map((name) => h("option", { value: name, selected: name === filters.machine }, name)),
    );
  };
  const filter = (change: Partial<Filters>): void => {
    filters = { ...filters, ...change };
    dressFilters();
    items = [];
    rows = [];
    next = null;
    selected = 0;
    list.element.scrollTop = 0;
    list.set(0); // what does not pass the filter is not shown under it, not even until the answer comes
    void load(false);
  };
  const toggles: { button: HTMLButtonElement; down: () => boolean }[] = [];
  const toggle = (words: string | Node, down: () => boolean, change: Partial<Filters>): HTMLButtonElement => {
    const button = h("button", { onclick: () => filter(change) }, words);
    toggles.push({ button, down });
    return button;
  };
  const dressFilters = (): void => toggles.forEach(({ button, down }) => press(button, down()));
  const group = (label: string, ...buttons: HTMLButtonElement[]): HTMLElement =>
    h("div", { class: "segments", role: "group", "aria-label": label }, buttons);
  const bar = h(
    "div",
    { class: "filters", role: "group", "aria-label": t("worklist.filters") },
    group(
      t("worklist.state"),
      ...(["undecided", "working", "decided"] as const).map((states) =>
        toggle(t(`worklist.${states}`), () => filters.states === states, { states }),
      ),
    ),
    group(
      t("worklist.verdict"),
      toggle(t("worklist.every_verdict"), () => filters.verdict === "", { verdict: "" }),
      ...(["reject", "look", "accept"] as const).map((verdict) => toggle(badge(verdict), () => filters.verdict === verdict, { verdict })),
    ),
    group(
      t("worklist.arrived"),
      toggle(t("worklist.any_time"), () => !filters.today, { today: false }),
      toggle(t("worklist.today"), () => filters.today, { today: true }),
    ),
    machine,
    count,
  );
  const openFirst = h("button", { class: "main", title: "n", onclick: () => void openNext(app, "") }, t("worklist.next"));
  fillMachines();
  dressFilters();

  const root = h("div", { class: "screen worklist" }, header(app, t("worklist.title"), openFirst), bar, trouble, undelivered, table, empty, disclaimer());
  const again = window.setInterval(() => {
    if (!document.hidden && list.top_px < ROW_PX * FIRST_PAGE) void load(true);
  }, REFRESH_MS);
  void load(false).then(() => {
    performance.mark("worklist-ready");
    if (!left && document.activeElement === document.body) select(0, true);
  });

  const openSelected = (): void => {
    const shown = rows[selected];
    if (shown) go(app, shown.item, () => void load(true));
  };
  return {
    title: t("worklist.title"),
    root,
    actions: () => [
      { id: "next", keys: ["n"], run: () => void openNext(app, "") },
      { id: "open", keys: ["Enter"], run: openSelected },
      { id: "down", keys: ["ArrowDown", "j"], run: () => select(selected + 1, true) },
      { id: "up", keys: ["ArrowUp", "k"], run: () => select(selected - 1, true) },
      { id: "page_down", keys: ["PageDown"], run: () => select(selected + list.page, true) },
      { id: "page_up", keys: ["PageUp"], run: () => select(selected - list.page, true) },
      { id: "first", keys: ["Home"], run: () => select(0, true) },
      { id: "last", keys: ["End"], run: () => select(rows.length - 1, true) },
      { id: "unfold", keys: ["ArrowRight"], run: () => fold(selected, true) },
      { id: "fold", keys: ["ArrowLeft"], run: () => fold(selected, false) },
      { id: "refresh", keys: ["r"], run: () => void load(false) },
    ],
    answered: (yes) => {
      if (yes) void load(true);
    },
    leave: () => {
      left = true;
      window.clearInterval(again);
    },
  };
}

/** The row that was selected, wherever it is now; -1 where it is gone: Enter opens no other in its place. */
export function rowOf(rows: readonly Row[], kept: string | undefined): number {
  return kept === undefined ? 0 : rows.findIndex(({ item }) => item.id === kept);
}

/** The fraction; of a scan under another one, which of its scans it is. */
function fractionCell({ item, under }: Row): string {
  if (under) return t("worklist.scan", { n: item.scan ?? "" });
  return item.fraction === null ? "–" : String(item.fraction);
}

/** The row that Enter opens, and the one that Tab comes to: the same, where any is selected. */
function dress(row: HTMLElement | null, selected: boolean, stop: boolean): void {
  if (row === null) return;
  row.classList.toggle("row-selected", selected);
  row.tabIndex = stop ? 0 : -1;
  row.setAttribute("aria-selected", String(selected));
}

function headRow(): HTMLElement {
  const cell = (name: string, words: string, hint = ""): HTMLElement =>
    h("div", { role: "columnheader", class: `cell-${name}`, title: hint || null }, words);
  return h(
    "div",
    { role: "rowgroup" },
    h(
      "div",
      { role: "row", class: "row row-head", "aria-rowindex": 1 },
      cell("verdict", t("worklist.verdict")),
      cell("patient", t("worklist.patient")),
      cell("fraction", t("worklist.fraction")),
      cell("roi", t("worklist.roi")),
      cell("taken", t("worklist.taken")),
      cell("arrived", t("worklist.arrived")),
      cell("change", t("worklist.change"), t("worklist.change_hint")),
      cell("agreement", t("worklist.agreement"), t("worklist.agreement_hint")),
      cell("reason", t("worklist.reason")),
      cell("state", t("worklist.state")),
      cell("open", t("worklist.open_by")),
    ),
  );
}
