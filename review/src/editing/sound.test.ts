import { describe, expect, test } from "vitest";
import type { Ring, Rings } from "../viewer/contract";
import { random } from "../viewer/phantom";
import { Drawing, type DrawingTool } from "../viewer/tools";
import { Stack } from "../viewer/stack";
import { area_mm2 } from "./clip";
import { Edits } from "./edits";
import { smoothed } from "./shape";
import { cross, sound } from "./sound";

const bounds = { left_mm: -0.5, top_mm: -0.5, right_mm: 99.5, bottom_mm: 99.5 };
const stack = new Stack(Array.from({ length: 10 }, (_, slice) => 2 * slice), 2);
const square = (left: number, top: number, size: number): Ring => [
  [left, top],
  [left + size, top],
  [left + size, top + size],
  [left, top + size],
];
const disc = (u: number, v: number, r: number): Ring =>
  Array.from({ length: 90 }, (_, k) => [u + r * Math.cos((2 * Math.PI * k) / 90), v + r * Math.sin((2 * Math.PI * k) / 90)]);

/** Every pair of edges, by two signed areas each. */
function crossPlainly(rings: Rings): boolean {
  const edges = rings.flatMap((ring) => ring.map((p, n) => [p, ring[(n + 1) % ring.length]!] as const));
  const turn = (p: readonly number[], q: readonly number[], r: readonly number[]): number =>
    (q[0]! - p[0]!) * (r[1]! - p[1]!) - (q[1]! - p[1]!) * (r[0]! - p[0]!);
  return edges.some(([a, b], n) =>
    edges.slice(n + 1).some(([c, d]) => turn(a, b, c) * turn(a, b, d) < 0 && turn(c, d, a) * turn(c, d, b) < 0),
  );
}

describe("lines", () => {
  test("that touch do not cross; that cross do", () => {
    expect(cross([square(0, 0, 10), square(10, 0, 10)])).toBe(false);
    expect(cross([square(0, 0, 10), square(2, 2, 3)])).toBe(false);
    expect(cross([square(0, 0, 10), square(5, 5, 10)])).toBe(true);
    expect(cross([[[0, 0], [10, 10], [10, 0], [0, 10]]])).toBe(true);
  });

  test("that are sound stay the very same array", () => {
    const rings = [square(0, 0, 10), square(2, 2, 3)];
    expect(sound(rings, bounds)).toBe(rings);
  });

  test("that cross are parted, with the area that the even-odd rule gives them", () => {
    const mended = sound([square(10, 10, 20), square(20, 20, 20)], bounds);
    expect(cross(mended)).toBe(false);
    expect(area_mm2(mended)).toBeCloseTo(400 + 400 - 2 * 100, 3);
  });

  test("end inside of the image", () => {
    const mended = sound([square(90, -20, 60)], bounds);
    for (const [u, v] of mended.flat()) {
      expect(u).toBeLessThan(99.5);
      expect(v).toBeGreaterThan(-0.5);
    }
    expect(area_mm2(mended)).toBeCloseTo(9.5 * 40.5, -1);
    expect(sound([square(200, 200, 5)], bounds)).toEqual([]);
  });
});

test("whatever a hand does, what it leaves can be signed", () => {
  const next = random(8);
  const tools: DrawingTool[] = ["brush", "eraser", "nudge", "add", "subtract"];
  const edits = new Edits("rigid", new Map([[3, [disc(50, 50, 20), disc(50, 50, 8)]]]), { stack, bounds });
  for (let n = 0; n < 40; n++) {
    const tool = tools[Math.floor(next() * tools.length)]!;
    const at = [25 + 50 * next(), 25 + 50 * next()] as const;
    const drawing = new Drawing(edits, tool, { diameter_mm: 1 + 12 * next(), sphere: false }, 3, stack, at);
    let to = at;
    for (let step = 0; step < 12; step++) {
      to = [to[0] + 6 * (next() - 0.5), to[1] + 6 * (next() - 0.5)];
      drawing.move(to);
    }
    drawing.end();
    if (n % 10 === 9) edits.change(3, smoothed(edits.at(3)));
    if (n % 4 === 3) expect(crossPlainly(edits.at(3))).toBe(false);
  }
  expect(edits.at(3).length).toBeGreaterThan(0);
}, 30_000);
