import { beforeEach, describe, expect, test } from "vitest";
import { Problem, Unreachable } from "../api/problem";
import type { Figure, Method, View } from "../api/types";
import { speak } from "../catalogue";
import { scaleOf, ticks, type Series } from "./charts";
import { fullName } from "../format";
import { kindOf, sliceList } from "./deciding";
import { byWeight, figureName, figureValue, limitWords, reasonOf, reasonsOf } from "./figures";
import { ghostName, likeness } from "./methods";
import { draftWords, noticesOf, whyNotReject, whyNotSign } from "./notices";
import { deliveryWords } from "./deliveries";
import { draggedTo, isNothing, mayAdjust, NO_CHANGE } from "./registration";
import { restoredWords, savingWords, wouldBeLost } from "./tools";
import { rowsInView } from "./window-list";

beforeEach(() => speak("en"));

const figure = (name: string, verdict: Figure["verdict"], reason = ""): Figure => ({ name, value: 1, limit: "", verdict, reason });

const method = (name: string, more: Partial<Method> = {}): Method => ({
  method: name,
  roi_name: name,
  colour: "#fff",
  dash: [],
  volume_cc: 20,
  change_percent: 0,
  shift_xyz_mm: [0, 0, 0],
  seconds: 1,
  recommended: false,
  empty: false,
  agreement: {},
  note: "",
  ...more,
});

const IMAGE = {
  volume: "0",
  shape_zyx: [1, 1, 1],
  spacing_xyz_mm: [1, 1, 1],
  origin_xyz_mm: [0, 0, 0],
  direction: [],
  slice_z_mm: [0],
  label: "",
  outside: -32768,
  frame_of_reference: "1.2",
} as const;

const SOURCE = { series: "1.2", taken_at: "20260102", description: "" } as const;

/** A fraction with nothing to remark. */
const view = (more: Partial<View> = {}): View => ({
  propagation: "p",
  state: "awaiting_review",
  patient: { key: "k", id: "P-7", name: "", birth_date: "" },
  course: null,
  fraction: 7,
  fractions: 30,
  scan: 1,
  scans: 1,
  roi: "GTV",
  acquired_at: "",
  arrived_at: "",
  machine: "",
  cbct_series: "1.2",
  frame_of_reference: "1.2",
  stale: null,
  verdict: { verdict: "accept", reasons: [], figures: [] },
  registration: { direction: "", translation_xyz_mm: [0, 0, 0], rotation_xyz_deg: [0, 0, 0], at: "", at_xyz_mm: [0, 0, 0], figures: [], planning_from_cbct: [] },
  images: { cbct: IMAGE, planning: IMAGE, planning_why_not: "" },
  target: null,
  methods: [method("rigid"), method("diff-umamba")],
  disagreement: [],
  worst_slice: null,
  ghosts: [],
  approved: null,
  basis: { planning_ct: SOURCE, structures: SOURCE, signed_on: null, vouched: "", reasons: [] },
  may: { sign: true, edit: true, retry: false, reject: true, why_not: "" },
  ...more,
});

describe("reasons", () => {
  const far = { name: "spread_mm", value: 5.2, limit: "accept ≤ 3", verdict: "look", reason: "several starts ended 5.2 mm apart" } as const;
  const folded = { name: "dir-t jacobian_min", value: -0.12, limit: "accept ≥ 0.2", verdict: "look", reason: "the field folds" } as const;
  const doubt = { name: "belongs_together", value: null, limit: "", verdict: "look", reason: "another study" } as const;
  const reasons = [far.reason, `dir-t: ${folded.reason}`, doubt.reason, "something of its own"];
  const seen = view({ verdict: { verdict: "look", reasons, figures: [far, folded, doubt] } });

  test("are the service's sentences where it speaks the page's language", () => {
    expect(reasonsOf(seen)).toEqual(reasons);
    expect(limitWords("accept 0.25 to 2")).toBe("accept 0.25 to 2");
  });

  test("are figure, value and limit in another language; what has no figure stays as it came", () => {
    speak("zh");
    const told = reasonsOf(seen);
    expect(told[0]).toBe(`${figureName("spread_mm")} 5.2 (可接受 ≤ 3)`);
    expect(told[1]).toContain("dir-t");
    expect(told[1]).toContain("−0.12 (可接受 ≥ 0.2)");
    expect(told[2]).toContain("another study");
    expect(told[3]).toBe("something of its own");
    expect(limitWords("at most 15 mm and 5°")).toBe("≤ 15 mm, 5°");
    expect(reasonOf({ reason: far.reason, doubt: far })).toBe(told[0]);
    expect(reasonOf({ reason: "what is asked", doubt: null })).toBe("what is asked");
  });
});

describe("notices", () => {
  const words = (more: Partial<View>): string => noticesOf(view(more)).map((each) => `${each.kind}: ${each.words}`).join("\n");

  test("there is none where there is nothing to remark", () => {
    expect(noticesOf(view())).toEqual([]);
  });

  test("a rejected registration is told once, not for each method that drew nothing", () => {
    const told = words({
      verdict: { verdict: "reject", reasons: ["bones"], figures: [] },
      methods: [method("rigid", { empty: true }), method("dir-l", { empty: true })],
    });
    expect(told).toMatch(/^bad: The registration was rejected/);
    expect(told.split("\n")).toHaveLength(1);
  });

  test("one method that drew nothing is named, with its note", () => {
    expect(words({ methods: [method("rigid"), method("dir-l", { empty: true, note: "it failed" })] })).toBe(
      "look: dir-l drew nothing on this CBCT. it failed",
    );
  });

  test("methods that all drew nothing under an accepted registration are no rejection", () => {
    expect(words({ methods: [method("rigid", { empty: true })] })).toBe("bad: No method drew a contour on this CBCT.");
  });

  test("what is out of date leads to what replaced it", () => {
    const [first] = noticesOf(view({ stale: { why: "12 slices came", propagation: "q" } }));
    expect(first).toMatchObject({ kind: "bad", go: { hash: "#/propagations/q" } });
    expect(first?.words).toContain("12 slices came");
  });

  test("a tumour out of view, a missing planning CT and somebody who may not sign are told", () => {
    const outside = figure("prior_in_view", "look", "40% lies outside");
    expect(words({ verdict: { verdict: "look", reasons: [], figures: [outside] } })).toContain("40% lies outside");
    expect(words({ images: { cbct: IMAGE, planning: null, planning_why_not: "deleted" } })).toContain("deleted");
    expect(words({ may: { sign: false, edit: false, retry: false, reject: false, why_not: "your role is to look" } })).toContain("your role is to look");
  });

  test("what is still being drawn is no failure", () => {
    const told = words({ state: "drawing", methods: [], images: { cbct: IMAGE, planning: null, planning_why_not: "" }, registration: null });
    expect(told).toMatch(/^look: Still drawing/);
    expect(told.split("\n")).toHaveLength(1);
  });
});

test("a signature is barred by staleness, by a change, and by who one is, in this order", () => {
  const stale = { why: "later", propagation: null };
  const may = { sign: false, edit: false, retry: false, reject: false, why_not: "a viewer" };
  expect(whyNotSign(view({ stale, may }), true)).toContain("later");
  expect(whyNotSign(view({ may }), true)).toContain("changed");
  expect(whyNotSign(view({ may }), false)).toContain("a viewer");
  expect(whyNotSign(view(), false)).toBe("");
});

test("what is out of date can be rejected, where nothing newer stands in its place", () => {
  const stale = { why: "later", propagation: null };
  const may = { sign: false, edit: false, retry: false, reject: true, why_not: "later" };
  expect(whyNotReject(view({ stale, may }), false)).toBe("");
  expect(whyNotReject(view({ stale: { ...stale, propagation: "q" }, may }), false)).toContain("later");
  expect(whyNotReject(view({ stale, may }), true)).toContain("changed");
  expect(whyNotReject(view({ stale, may: { ...may, reject: false, why_not: "a viewer" } }), false)).toContain("a viewer");
});

test("a registration is adjusted by whoever may decide, also where nothing was drawn", () => {
  expect(mayAdjust(view({ may: { sign: true, edit: false, retry: false, reject: true, why_not: "" } }))).toBe(true);
  expect(mayAdjust(view({ may: { sign: false, edit: false, retry: false, reject: false, why_not: "a viewer" } }))).toBe(false);
  expect(mayAdjust(view({ registration: null }))).toBe(false);
  expect(isNothing(NO_CHANGE)).toBe(true);
  expect(isNothing({ ...NO_CHANGE, rotation_xyz_deg: [0, 0.5, 0] })).toBe(false);
});

test("the planning CT goes where a hand drags it, and turns about its centre as it lies now", () => {
  const push = { from_xyz_mm: [10, 20, 30], to_xyz_mm: [12, 20, 27], axis: 1, turns: false } as const;
  expect(draggedTo(NO_CHANGE, push, [0, 0, 0]).translation_xyz_mm).toEqual([2, 0, -3]);
  expect(draggedTo(NO_CHANGE, { ...push, to_xyz_mm: [90, 20, 30] }, [0, 0, 0]).translation_xyz_mm, "never out of reach").toEqual([30, 0, 0]);
  // a tenth to the back, a whole to the left of the centre: about the axis to the head, from left to back is positive
  const moved = { ...NO_CHANGE, translation_xyz_mm: [5, 5, 5] } as const;
  const turn = { from_xyz_mm: [16, 6, 6], to_xyz_mm: [16, 7, 6], axis: 2, turns: true } as const;
  expect(draggedTo(moved, turn, [1, 1, 1]).rotation_xyz_deg[2]).toBeCloseTo((Math.atan(0.1) * 180) / Math.PI, 9);
  expect(draggedTo(moved, turn, [1, 1, 1]).translation_xyz_mm).toEqual([5, 5, 5]);
  const aboutX = { from_xyz_mm: [1, 16, 6], to_xyz_mm: [1, 16, 7], axis: 0, turns: true } as const;
  expect(draggedTo(moved, aboutX, [1, 1, 1]).rotation_xyz_deg[0]).toBeCloseTo((Math.atan(0.1) * 180) / Math.PI, 9);
});

test("figures out of bounds come first, and are told in words", () => {
  const sorted = byWeight([figure("a", "accept"), figure("b", "look"), figure("c", "reject"), figure("d", "look")]);
  expect(sorted.map(({ name }) => name)).toEqual(["c", "b", "d", "a"]);
  expect(figureName("lncc")).toBe("likeness (local NCC)");
  expect(figureName("translation lncc")).toBe("translation: likeness (local NCC)");
  expect(figureName("dir-l_volume_over_prior")).toBe("dir-l: volume / prior");
  expect(figureName("never_heard_of")).toBe("never heard of");
  expect(figureValue({ ...figure("shift_mm", null), value: 6.71 })).toBe("6.7");
  expect(figureValue({ ...figure("lncc", null), value: 0.8954 })).toBe("0.90");
  const below = { ...figure("near_bone_ncc", "look"), value: 0.4478, limit: "accept ≥ 0.45, reject < 0.30" };
  expect(figureValue(below), "no look at what reads as accepted").toBe("0.448");
  expect(figureValue({ ...below, value: 0.4499996 })).toBe("0.45000");
  expect(figureValue({ ...below, value: 0.4512, verdict: "accept" })).toBe("0.45");
});

test("of a prior is said whose contour it was", () => {
  expect(ghostName({ ghost: "prior", carried_from: "planning" })).toContain("the plan's");
  expect(ghostName({ ghost: "prior", carried_from: "signed" })).toContain("last signed");
  expect(ghostName({ ghost: "approved", carried_from: null })).toBe("last approved");
});

test("how alike two methods are is known whichever of them says so", () => {
  const alike = { dice: 0.9, mean_surface_mm: 1.2 };
  const methods = [method("rigid"), method("dir-l", { agreement: { rigid: alike } })];
  expect(likeness(methods, "rigid", "dir-l")).toBe(alike);
  expect(likeness(methods, "dir-l", "rigid")).toBe(alike);
  expect(likeness(methods, "rigid", "translation")).toBeNull();
});

test("slices are counted from one and joined to runs", () => {
  expect(sliceList([30, 31, 35, 32])).toBe("31–33, 36");
  expect(sliceList([0])).toBe("1");
  expect(sliceList([])).toBe("");
});

test("a chart has zero in it and round steps", () => {
  const series = (...values: (number | null)[]): Series => ({ label: "", colour: "", dash: [], points: values.map((value, n) => ({ n, value })) });
  expect(scaleOf([series(22, null, 24)])[0]).toBe(0);
  expect(scaleOf([series(null)])).toEqual([0, 1]);
  expect(ticks(0, 48)).toEqual([0, 20, 40]);
  expect(ticks(0, 1)).toEqual([0, 0.5, 1]);
  expect(ticks(3, 3)).toEqual([3]);
});

test("of ten thousand rows those in view are drawn, with a few to spare", () => {
  expect(rowsInView(0, 400, 40, 10_000)).toEqual([0, 18]);
  expect(rowsInView(200_000, 400, 40, 10_000)).toEqual([4992, 5018]);
  expect(rowsInView(399_600, 400, 40, 10_000)).toEqual([9982, 10_000]);
  expect(rowsInView(4000, 400, 40, 3)).toEqual([3, 3]);
});

test("whether an edit is safe is told, and what is not safe is marked", () => {
  expect(savingWords({ saving: { state: "saved" } })).toEqual({ words: "saved", bad: false });
  expect(savingWords({ saving: { state: "offline", since: new Date(0), attempts: 3, kept: true } }).bad).toBe(true);
  const lost = { saving: { state: "offline", since: new Date(0), attempts: 3, kept: false } } as const;
  expect(savingWords(lost).words).toMatch(/^NOT kept/);
  expect(wouldBeLost(lost)).toBe(true);
  expect(wouldBeLost({ saving: { ...lost.saving, kept: true } })).toBe(false);
  expect(savingWords({ saving: { state: "conflict", by: "local:bob" } }).words).toBe("bob saved another draft meanwhile");
});

test("a patient who is not known is said to be so, in red", () => {
  expect(noticesOf(view({ patient: null }))[0]).toMatchObject({ kind: "bad", words: expect.stringContaining("Patient not known") as string });
  expect(fullName(null)).toBe("patient not known");
});

test("what may have arrived is not called refused", () => {
  const problem = (status: number): Problem => new Problem(status, "", "", "", "", "");
  expect([new Unreachable(""), new TypeError("body lost"), problem(500), problem(502)].map(kindOf)).toEqual(Array(4).fill("unknown"));
  expect([412, 409, 403, 422].map((status) => kindOf(problem(status)))).toEqual(["changed", "changed", "refused", "refused"]);
});

test("what did not arrive says why, and what was given up says so in capitals", () => {
  const sent = { objects: [{ role: "signed" }], attempts: 2, next_at: "2026-01-03T08:20:00Z", problem: { detail: "refused" } };
  expect(deliveryWords({ ...sent, state: "dead" })).toBe("signed contour: NOT delivered: given up · refused");
  expect(deliveryWords({ ...sent, state: "waiting" })).toMatch(/waits to be sent · 2 attempts, the next at 2026-01-03 .* · refused$/);
  expect(deliveryWords({ ...sent, state: "delivered", objects: [] })).toBe("contours as drawn: arrived");
});

test("a draft is told by whose it is", () => {
  const saved_at = "2020-01-03T08:20:00Z";
  expect(draftWords({ by: "local:bob", saved_at, method: "rigid", edited_slices: 3 })).toMatch(/^A draft of 3 edited slices by bob, saved 2020-01-0/);
  const restored = { edited_slices: [3], saved_at };
  expect(restoredWords({ ...restored, by: "ann" }, "local:ann")).toContain("Your draft");
  expect(restoredWords({ ...restored, by: "" }, "local:ann")).toContain("Your draft");
  expect(restoredWords({ ...restored, by: "bob" }, "local:ann")).toContain("A draft of bob");
});
