import { describe, expect, test } from "vitest";
import type { Ring, Rings } from "../viewer/contract";
import { Stack } from "../viewer/stack";
import { area_mm2 } from "./clip";
import { Edits } from "./edits";
import { between, contains, depth, smoothed } from "./shape";
import { Stopwatch } from "./stopwatch";
import { trace } from "./trace";

const disc = (u: number, v: number, r: number, n = 120): Ring =>
  Array.from({ length: n }, (_, k) => [u + r * Math.cos((2 * Math.PI * k) / n), v + r * Math.sin((2 * Math.PI * k) / n)]);
const slab = (): Map<number, Rings> => new Map(Array.from({ length: 9 }, (_, k) => [k + 10, [disc(0, 0, 10)]]));

const plane = (slice_distance_mm: number) => ({
  stack: new Stack(Array.from({ length: 40 }, (_, slice) => slice * slice_distance_mm), slice_distance_mm),
  bounds: { left_mm: -100, top_mm: -100, right_mm: 100, bottom_mm: 100 },
});

describe("while a contour is mended", () => {
  test("slices that nobody touched stay the very arrays that came", () => {
    const base = slab();
    const edits = new Edits("rigid", base, plane(2));
    edits.change(12, [disc(0, 0, 8)]);
    edits.change(20, [disc(0, 0, 3)]);
    for (const [slice, rings] of base) if (slice !== 12) expect(edits.at(slice)).toBe(rings);
    expect(edits.edited_slices).toEqual([12, 20]);
    const body = edits.body(33);
    expect(Object.keys(body.slices)).toEqual(["12", "20"]);
    expect(body.slices["12"]).toBe(edits.at(12));
    expect(body).toMatchObject({ method: "rigid", edited_slices: [12, 20], seconds: 33 });
  });

  test("each step goes back and forth without limit, down to the very arrays", () => {
    const base = slab();
    const edits = new Edits("rigid", base, plane(2));
    const states: Rings[] = [edits.at(14)];
    for (let n = 0; n < 500; n++) {
      edits.change(14, [disc(0, 0, 5 + n / 100, 12)]);
      states.push(edits.at(14));
    }
    for (let n = 499; n >= 0; n--) {
      expect(edits.undo()).toEqual([14]);
      expect(edits.at(14)).toBe(states[n]);
    }
    expect(edits.undo()).toBeNull();
    expect(edits.edited_slices).toEqual([]);
    expect(edits.at(14)).toBe(base.get(14));
    for (let n = 1; n <= 500; n++) {
      edits.redo();
      expect(edits.at(14)).toBe(states[n]);
    }
    expect(edits.redo()).toBeNull();
  });

  test("a stroke over several slices is one step", () => {
    const edits = new Edits("rigid", slab(), plane(2));
    edits.begin();
    for (const slice of [12, 13, 12, 13, 14]) edits.change(slice, [disc(slice, 0, 4)]);
    expect(edits.commit()).toBe(true);
    expect(edits.can_undo).toBe(true);
    edits.undo();
    expect(edits.edited_slices).toEqual([]);
    expect(edits.can_undo).toBe(false);
    expect(edits.can_redo).toBe(true);
  });

  test("a step that changes nothing is none, and another one ends what was undone", () => {
    const edits = new Edits("rigid", slab(), plane(2));
    edits.change(12, edits.at(12));
    expect(edits.can_undo).toBe(false);
    edits.change(12, []);
    edits.undo();
    edits.change(13, []);
    expect(edits.can_redo).toBe(false);
  });

  test("an emptied slice is edited and empty; a slice that never was is neither", () => {
    const edits = new Edits("rigid", slab(), plane(2));
    edits.change(12, []);
    edits.change(30, [disc(0, 0, 2)]);
    edits.undo();
    expect(edits.body(0)).toMatchObject({ slices: { "12": [] }, edited_slices: [12] });
  });

  test("the volume follows", () => {
    const edits = new Edits("rigid", new Map([[3, [disc(0, 0, 10, 2000)]]]), plane(2.5));
    expect(edits.volume_cc).toBeCloseTo((Math.PI * 100 * 2.5) / 1000, 4);
    edits.change(4, [disc(0, 0, 10, 2000), disc(0, 0, 5, 2000)]);
    expect(edits.volume_cc).toBeCloseTo((Math.PI * (100 + 75) * 2.5) / 1000, 4);
    edits.undo();
    expect(edits.volume_cc).toBeCloseTo((Math.PI * 100 * 2.5) / 1000, 4);
  });

  test("the volume counts how far apart slices are", () => {
    const stack = new Stack([0, 3, 6, 12, 15], 3);
    const edits = new Edits("rigid", new Map([[2, [disc(0, 0, 10, 2000)]]]), { ...plane(3), stack });
    expect(edits.volume_cc).toBeCloseTo((Math.PI * 100 * 4.5) / 1000, 4);
  });

  test("what reaches out of the image is cut off when the hand is lifted", () => {
    const edits = new Edits("rigid", slab(), plane(2));
    edits.change(12, [disc(95, 0, 10)]);
    expect(Math.max(...edits.at(12)[0]!.map(([u]) => u))).toBeLessThan(100);
    expect(area_mm2(edits.at(12))).toBeGreaterThan(200);
    edits.undo();
    expect(edits.edited_slices).toEqual([]);
  });

  test("a draft that was saved goes on where it was, on the method's own slices", () => {
    const base = slab();
    const first = new Edits("rigid", base, plane(2));
    first.change(12, [disc(1, 1, 4)]);
    first.change(13, []);
    const saved = JSON.parse(JSON.stringify(first.body(5))) as ReturnType<Edits["body"]>;
    const again = new Edits("rigid", base, plane(2), saved.slices);
    expect(again.edited_slices).toEqual([12, 13]);
    expect(again.body(5)).toEqual(first.body(5));
    expect(again.at(14)).toBe(base.get(14));
    expect(again.can_undo).toBe(false);
  });
});

describe("slices between edited ones", () => {
  test("are filled with the shapes between, as one step", () => {
    const edits = new Edits("rigid", slab(), plane(2));
    edits.change(11, [disc(0, 0, 6)]);
    edits.change(15, [disc(8, 4, 10)]);
    expect(edits.interpolate()).toBe(true);
    expect(edits.edited_slices).toEqual([11, 12, 13, 14, 15]);
    const [ring] = edits.at(13);
    expect(edits.at(13)).toHaveLength(1);
    for (const point of ring!) expect(Math.hypot(point[0] - 4, point[1] - 2)).toBeCloseTo(8, 1);
    edits.undo();
    expect(edits.edited_slices).toEqual([11, 15]);
  });

  test("are made anew when a slice that they hang on changed", () => {
    const edits = new Edits("rigid", slab(), plane(2));
    edits.change(11, [disc(0, 0, 6)]);
    edits.change(13, [disc(0, 0, 6)]);
    edits.interpolate();
    edits.change(13, [disc(0, 0, 10)]);
    edits.interpolate();
    expect(Math.sqrt(area_mm2(edits.at(12)) / Math.PI)).toBeCloseTo(8, 1);
  });

  test("stay as they are beside a slice that was emptied, or where there is none between", () => {
    const edits = new Edits("rigid", slab(), plane(2));
    edits.change(11, [disc(0, 0, 6)]);
    edits.change(12, [disc(0, 0, 6)]);
    edits.change(15, []);
    expect(edits.interpolate()).toBe(false);
  });
});

describe("shapes between shapes", () => {
  test("keep a hole", () => {
    const [half] = between([disc(0, 0, 12), disc(0, 0, 4)], [disc(0, 0, 12), disc(0, 0, 6)], [0.5]);
    expect(half).toHaveLength(2);
    expect(area_mm2(half!)).toBeCloseTo(Math.PI * (144 - 25), -1);
  });

  test("at their ends are the shapes themselves, to a few hundredths of a millimetre", () => {
    const [a, b] = between([disc(3, 4, 9)], [disc(5, 5, 14)], [0, 1]);
    for (const point of a![0]!) expect(Math.abs(Math.hypot(point[0] - 3, point[1] - 4) - 9)).toBeLessThan(0.05);
    for (const point of b![0]!) expect(Math.abs(Math.hypot(point[0] - 5, point[1] - 5) - 14)).toBeLessThan(0.05);
  });

  test("of one part and two are joined by depth", () => {
    const two = [disc(-8, 0, 5), disc(8, 0, 5)];
    const [near] = between([disc(0, 0, 14)], two, [0.9]);
    expect(near!.length).toBeGreaterThanOrEqual(2);
  });
});

test("depth is how far the edge is, above nought inside and below outside", () => {
  const frame = { origin_mm: [-20, -20] as const, step_mm: 1, columns: 41, rows: 41 };
  const values = depth([disc(0, 0, 15, 720), disc(0, 0, 6, 720)], frame);
  for (let y = 0; y < 41; y++) {
    for (let x = 0; x < 41; x++) {
      const r = Math.hypot(x - 20, y - 20);
      expect(values[y * 41 + x]).toBeCloseTo(Math.min(15 - r, r - 6), 2);
    }
  }
});

describe("a traced field", () => {
  test("has a line around each part and each hole, closed and of the right area", () => {
    const frame = { origin_mm: [-20, -20] as const, step_mm: 0.5, columns: 81, rows: 81 };
    const values = depth([disc(-8, 0, 9, 360), disc(-8, 0, 4, 360), disc(11, 2, 6, 360)], frame);
    const rings = trace({ ...frame, values });
    expect(rings).toHaveLength(3);
    expect(area_mm2(rings)).toBeCloseTo(Math.PI * (81 - 16 + 36), 0);
  });

  test("goes through a saddle as its middle says", () => {
    // Two corners of the inner cell are inside. A middle below nought parts them, one above joins them.
    const frame = { origin_mm: [0, 0] as const, step_mm: 1, columns: 4, rows: 4 };
    const at = (a: number, b: number): Float64Array => {
      const values = new Float64Array(16).fill(-1);
      values[5] = a;
      values[10] = a;
      values[6] = b;
      values[9] = b;
      return values;
    };
    expect(trace({ ...frame, values: at(1, -3) })).toHaveLength(2);
    expect(trace({ ...frame, values: at(3, -1) })).toHaveLength(1);
    expect(trace({ ...frame, values: at(-1, 3) })).toHaveLength(1);
    expect(trace({ ...frame, values: at(-3, 1) })).toHaveLength(2);
  });

  test("has no doubled points where a value is exactly nought", () => {
    const values = Float64Array.from([-1, -1, -1, -1, -1, 0, 1, -1, -1, 0, 1, -1, -1, -1, -1, -1]);
    const [ring] = trace({ origin_mm: [0, 0], step_mm: 1, columns: 4, rows: 4, values });
    ring!.forEach((point, n) => expect(point).not.toEqual(ring![(n + 1) % ring!.length]));
  });
});

describe("a smoother line", () => {
  test("has lost its steps and kept its area", () => {
    const stairs: Ring = disc(0, 0, 15).map(([u, v]) => [Math.round(u), Math.round(v)]);
    const [soft] = smoothed([stairs]);
    expect(area_mm2([soft!]) / area_mm2([stairs])).toBeCloseTo(1, 3);
    const off = soft!.map(([u, v]) => Math.abs(Math.hypot(u, v) - 15));
    expect(Math.max(...off)).toBeLessThan(0.35);
    expect(contains(soft!, [0, 0])).toBe(true);
  });

  test("of a few millimetres is left alone, as the very same array", () => {
    const rings = [disc(0, 0, 0.7)];
    expect(smoothed(rings)).toBe(rings);
  });
});

test("time away from the desk is no time of editing", () => {
  const watch = new Stopwatch(10);
  watch.tick(0);
  watch.tick(5_000);
  watch.tick(3_600_000);
  watch.tick(3_602_000);
  expect(watch.seconds).toBe(10 + 5 + 30 + 2);
});
