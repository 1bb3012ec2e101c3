import { describe, expect, test } from "vitest";
import { random } from "../viewer/phantom";
import type { Ring, Rings } from "../viewer/contract";
import { Stack } from "../viewer/stack";
import { bounded, pushed, reach, stroke } from "./brush";
import { add, area_mm2, closed, distance_mm, islands, perimeter_mm, shoelace_mm2, subtract, thinned } from "./clip";
import { contains } from "./shape";

const evenly = (mm: number): Stack => new Stack(Array.from({ length: 100 }, (_, slice) => slice * mm), mm);
const square = (left: number, top: number, size: number): Ring => [
  [left, top],
  [left + size, top],
  [left + size, top + size],
  [left, top + size],
];
const disc = (u: number, v: number, r: number, n = 90): Ring =>
  Array.from({ length: n }, (_, k) => [u + r * Math.cos((2 * Math.PI * k) / n), v + r * Math.sin((2 * Math.PI * k) / n)]);
const isIn = (rings: Rings, u: number, v: number): boolean =>
  rings.filter((ring) => contains(ring, [u, v])).length % 2 === 1;

describe("area", () => {
  test("is the even-odd rule's, whichever way the rings run", () => {
    expect(area_mm2([square(0, 0, 10)])).toBeCloseTo(100, 6);
    expect(area_mm2([square(0, 0, 10), square(2, 2, 3)])).toBeCloseTo(91, 6);
    expect(area_mm2([square(0, 0, 10), [...square(2, 2, 3)].reverse()])).toBeCloseTo(91, 6);
    // What is covered twice is outside.
    expect(area_mm2([square(0, 0, 10), square(5, 0, 10)])).toBeCloseTo(100, 6);
    expect(area_mm2([])).toBe(0);
  });

  test("of a line that crosses itself counts both halves", () => {
    // A bow tie of two triangles of 25 mm2 each; the shoelace formula finds nothing.
    const bow: Ring = [[0, 0], [10, 10], [10, 0], [0, 10]];
    expect(shoelace_mm2(bow)).toBe(0);
    expect(area_mm2([bow])).toBeCloseTo(50, 4);
  });
});

describe("adding and taking away", () => {
  test("are what a raster says, over a long hand of strokes", () => {
    const next = random(11);
    let rings: Rings = [disc(30, 30, 18), disc(30, 30, 7)];
    const step = 1;
    const cells = 60;
    const mask = new Uint8Array(cells * cells);
    const place = (n: number): number => (n + 0.5) * step;
    for (let y = 0; y < cells; y++)
      for (let x = 0; x < cells; x++) mask[y * cells + x] = isIn(rings, place(x), place(y)) ? 1 : 0;
    for (let n = 0; n < 60; n++) {
      const from = [10 + 40 * next(), 10 + 40 * next()] as const;
      const to = [from[0] + 8 * (next() - 0.5), from[1] + 8 * (next() - 0.5)] as const;
      const radius = 0.5 + 5 * next();
      const shape = stroke(from, to, radius);
      const taking = n % 3 === 0;
      rings = taking ? subtract(rings, [shape]) : add(rings, [shape]);
      for (let y = 0; y < cells; y++)
        for (let x = 0; x < cells; x++)
          if (contains(shape, [place(x), place(y)])) mask[y * cells + x] = taking ? 0 : 1;
      if (n % 10 !== 9) continue;
      let wrong = 0;
      for (let y = 0; y < cells; y++)
        for (let x = 0; x < cells; x++) if (isIn(rings, place(x), place(y)) !== (mask[y * cells + x] === 1)) wrong++;
      // Crumbs under a twentieth of a square millimetre are dropped.
      expect(wrong).toBeLessThanOrEqual(1);
    }
  }, 30_000);

  test("leave a hole a hole", () => {
    const holed = [square(0, 0, 20), square(8, 8, 4)];
    const wider = add(holed, [square(18, 5, 10)]);
    expect(isIn(wider, 10, 10)).toBe(false);
    expect(isIn(wider, 25, 10)).toBe(true);
    expect(area_mm2(wider)).toBeCloseTo(400 - 16 + 80, 4);
    const pierced = subtract([square(0, 0, 20)], [disc(10, 10, 3)]);
    expect(pierced).toHaveLength(2);
    expect(isIn(pierced, 10, 10)).toBe(false);
  });

  test("give back the very same array where they change nothing", () => {
    const rings = [square(0, 0, 20), square(8, 8, 4)];
    expect(subtract(rings, [square(50, 50, 5)])).toBe(rings);
    expect(add(rings, [square(1, 1, 5)])).toBe(rings);
    expect(subtract(rings, [square(9, 9, 2)])).toBe(rings);
    expect(add(rings, [])).toBe(rings);
  });

  test("keep far rings, and far points of near rings, to the last bit", () => {
    const far = disc(100.1234567891, 7.9876543219, 5);
    const near = disc(0.1234567891234, 0.9876543219876, 10);
    const result = subtract([far, near], [disc(10, 0, 3)]);
    expect(result[0]).toBe(far);
    const kept = new Set(near);
    const points = result[1]!.filter((point) => kept.has(point));
    expect(points.length).toBeGreaterThan(70);
  });

  test("leave no crumbs", () => {
    const rings = subtract([square(0, 0, 10)], [[[-1, -1], [9.999, -1], [9.999, 9.999], [-1, 9.999]]]);
    expect(rings).toEqual([]);
    expect(subtract([square(0, 0, 10)], [square(-1, -1, 12)])).toEqual([]);
  });

  test("make something of nothing", () => {
    expect(area_mm2(add([], [square(3, 4, 5)]))).toBeCloseTo(25, 6);
  });
});

test("points that say nothing go, points that were there before stay, and the line moves by a hundredth of a millimetre at most", () => {
  const known = square(0, 0, 30);
  const drawn = add([known], [stroke([30, 10], [34, 20], 4)]);
  const many = drawn.map((ring) =>
    ring.flatMap((p, n) => {
      const q = ring[(n + 1) % ring.length]!;
      return [p, [(p[0] + q[0]) / 2, (p[1] + q[1]) / 2] as const];
    }),
  );
  const [thin] = thinned(many, [known]);
  expect(thin!.length).toBeLessThan(0.7 * many[0]!.length);
  for (const point of known.filter((corner) => many[0]!.includes(corner))) expect(thin).toContain(point);
  for (const point of many[0]!) {
    const off = Math.min(...thin!.map((p, n) => distance_mm(point, p, thin![(n + 1) % thin!.length]!)));
    expect(off).toBeLessThanOrEqual(0.0101);
  }
  expect(thinned([known], [known])[0]).toBe(known);
});

test("a line drawn by hand goes around all that it goes around", () => {
  expect(closed([[0, 0], [1, 1]])).toEqual([]);
  // Once around a square and half around again: what is gone around twice is inside, too.
  const again: Ring = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0], [10, 0], [10, 10]];
  expect(area_mm2(closed(again))).toBeCloseTo(100, 4);
  expect(islands(closed(again))).toHaveLength(1);
  expect(islands([square(0, 0, 9), square(2, 2, 2), square(20, 0, 3)])).toHaveLength(2);
});

describe("a brush", () => {
  test("covers what is nearer to its way than its radius", () => {
    const shape = stroke([3, 4], [9, 1], 2.5);
    const next = random(2);
    for (let n = 0; n < 2000; n++) {
      const at = [15 * next() - 2, 12 * next() - 4] as const;
      const off = distance_mm(at, [3, 4], [9, 1]);
      if (off < 2.5 - 0.021) expect(contains(shape, at)).toBe(true);
      if (off > 2.5) expect(contains(shape, at)).toBe(false);
    }
  });

  test("that stands still is a disc", () => {
    expect(area_mm2([stroke([3, 4], [3, 4], 15)])).toBeCloseTo(Math.PI * 225, -1);
  });

  test("of a ball is thinner in the neighbouring slices", () => {
    expect(reach({ diameter_mm: 10, sphere: true }, 7, evenly(3))).toEqual([
      { slice: 6, radius_mm: 4 },
      { slice: 7, radius_mm: 5 },
      { slice: 8, radius_mm: 4 },
    ]);
    expect(reach({ diameter_mm: 10, sphere: true }, 0, new Stack([0], 3))).toEqual([{ slice: 0, radius_mm: 5 }]);
    expect(reach({ diameter_mm: 10, sphere: true }, 7, evenly(5))).toHaveLength(1);
    expect(reach({ diameter_mm: 10, sphere: false }, 7, evenly(3))).toEqual([{ slice: 7, radius_mm: 5 }]);
  });

  test("is between 1 and 30 mm", () => {
    expect(bounded({ diameter_mm: 0.2, sphere: true })).toEqual({ diameter_mm: 1, sphere: true });
    expect(bounded({ diameter_mm: 99, sphere: false }).diameter_mm).toBe(30);
  });
});

describe("a push", () => {
  test("moves the edge along, leaves all else to the last bit, and keeps the line whole", () => {
    const ring = disc(0, 0, 20);
    const [moved] = pushed([ring], [18, 0], [23, 0], 6);
    const furthest = Math.max(...moved!.map(([u]) => u));
    expect(furthest).toBeGreaterThan(22);
    expect(furthest).toBeLessThan(25.5);
    const untouched = ring.filter((point) => distance_mm(point, [18, 0], [23, 0]) > 6);
    expect(untouched.every((point) => moved!.includes(point))).toBe(true);
    expect(area_mm2([moved!])).toBeCloseTo(Math.abs(shoelace_mm2(moved!)), 2);
    expect(area_mm2([moved!])).toBeGreaterThan(area_mm2([ring]) + 10);
  });

  test("bends an edge that has no points of its own there", () => {
    const [moved] = pushed([square(0, 0, 40)], [20, 2], [20, -4], 5);
    expect(Math.min(...moved!.map(([, v]) => v))).toBeLessThan(-2.5);
  });

  test("leaves no line that crosses itself, however wild it was", () => {
    const next = random(4);
    let rings: Rings = [disc(0, 0, 15), disc(0, 0, 6)];
    let at = [15, 0] as readonly [number, number];
    for (let n = 0; n < 15; n++) {
      const to = [30 * next() - 15, 30 * next() - 15] as const;
      rings = pushed(rings, at, to, 5);
      at = to;
      for (const ring of rings) {
        const crossed_mm2 = Math.abs(Math.abs(shoelace_mm2(ring)) - area_mm2([ring]));
        expect(crossed_mm2 / perimeter_mm(ring)).toBeLessThan(1.1e-5);
      }
    }
  });

  test("of nothing gives back the very same array", () => {
    const rings = [disc(0, 0, 5)];
    expect(pushed(rings, [50, 0], [60, 0], 5)).toBe(rings);
    expect(pushed(rings, [5, 0], [5, 0], 5)).toBe(rings);
  });
});
