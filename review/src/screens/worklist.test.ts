import { expect, test } from "vitest";
import type { WorklistItem } from "../api/types";
import { findNext, nextOf, placeOfItem, rowOf, rowsOf, worklistPath } from "./worklist";

const item = (id: string, more: Partial<WorklistItem> = {}): WorklistItem => ({
  kind: "propagation",
  id,
  link: "",
  patient: null,
  course: null,
  fraction: 1,
  scan: 1,
  cbct: "1.2",
  acquired_at: "",
  arrived_at: "",
  machine: "",
  state: "awaiting_review",
  verdict: "look",
  reason: "",
  doubt: null,
  roi: "GTV",
  volumes_cc: {},
  volume_change_percent: null,
  ...more,
});

test("the next one is the first that nobody else has open", () => {
  const items = [item("a"), item("b", { open_by: ["bob"] }), item("c", { open_by: ["ann"] })];
  expect(nextOf(items, "a", "ann")?.id).toBe("c");
});

test("where others have all of them open, the first is still to be done", () => {
  expect(nextOf([item("a"), item("b", { open_by: ["bob"] })], "a", "ann")?.id).toBe("b");
});

test("what is being drawn cannot be decided; a question can be answered", () => {
  const items = [item("a", { state: "drawing" }), item("q", { kind: "question", state: "needs_person" })];
  expect(nextOf(items, "", "ann")?.id).toBe("q");
  expect(nextOf([item("a", { state: "drawing" })], "", "ann")).toBeNull();
  expect(placeOfItem(item("q", { kind: "question" }))).toEqual({ screen: "course", id: "q" });
  // nor can anything be decided on a scan that lacks slices
  const gap = item("1.2", { kind: "series", state: "needs_person" });
  expect(nextOf([gap], "", "ann")).toBeNull();
  expect(placeOfItem(gap)).toBeNull();
});

test("filters are the service's own, and the order stays its own", () => {
  const plain = { verdict: "", states: "undecided", machine: "", today: false } as const;
  expect(worklistPath(plain, 100)).toBe("/v1/worklist?limit=100");
  const path = worklistPath({ verdict: "look", states: "decided", machine: "Varian OBI", today: false }, 500);
  expect(path).toBe("/v1/worklist?limit=500&state=approved&state=edited&state=rejected&verdict=look&machine=Varian+OBI");
});

test("today begins at this clock's midnight", () => {
  const path = worklistPath({ verdict: "", states: "undecided", machine: "", today: true }, 100, new Date(2026, 0, 3, 14, 5));
  const since = new URLSearchParams(path.split("?")[1]).get("since") ?? "";
  expect(new Date(since).getTime()).toBe(new Date(2026, 0, 3).getTime());
});

test("what was selected stays so wherever it goes, and nothing is where it is gone", () => {
  const rows = rowsOf([item("b"), item("a")], new Set());
  expect([rowOf(rows, "a"), rowOf(rows, "gone"), rowOf(rows, undefined)]).toEqual([1, -1, 0]);
});

test("earlier scans of a fraction lie under the last one, where it is open", () => {
  const items = [item("b", { scan: 3, earlier: [item("b2", { scan: 2 }), item("b1")] }), item("a")];
  const told = (open: string[]): string[] => rowsOf(items, new Set(open)).map((row) => `${row.under ? "-" : ""}${row.item.id}`);
  expect(told([])).toEqual(["b", "a"]);
  expect(told(["b", "gone"])).toEqual(["b", "-b2", "-b1", "a"]);
});

test("the next one is looked for to the end of the list", async () => {
  const failed = Array.from({ length: 100 }, (_, n) => item(`f${n}`, { state: "failed" }));
  const asked: string[] = [];
  const client = {
    worklist: async (path: string) => {
      asked.push(path);
      return path.includes("cursor") ? { items: [item("a")], next: null } : { items: failed, next: "/v1/worklist?cursor=2" };
    },
  };
  expect((await findNext(client, "", "ann"))?.id).toBe("a");
  expect(asked[0]).toContain("state=awaiting_review&state=needs_person");
});
