/** Adds shapes to the lines of a slice, and takes them away. */

import { areaPaths, difference, FillRule, union, type Path64, type Paths64 } from "clipper2-ts";
import type { Point, Ring, Rings } from "../viewer/contract";

/**
 * Clipper counts in integers: these are a hundredth of a micrometre long. 500 mm squared is still exact in a double, so that no product
 * of two coordinates needs a BigInt.
 */
const STEPS_PER_MM: number = 1e5;

/** A crumb that clipping left, about 0.2 mm square: the smallest brush covers fifteen times as much. */
export const CRUMB_MM2: number = 0.05;

/** Less than this is no change: the roundings of a line a metre long. */
const SAME_MM2: number = 1e-2 / STEPS_PER_MM;

/** What lies in the rings or in the shape. The very same array where the shape adds nothing. */
export function add(rings: Rings, shape: Rings): Rings {
  return clipped(rings, shape, union);
}

/** What lies in the rings and not in the shape. The very same array where the shape takes nothing. */
export function subtract(rings: Rings, shape: Rings): Rings {
  return clipped(rings, shape, difference);
}

/** A line drawn by hand as a shape: all that it goes around, also where it crosses itself. */
export function closed(line: readonly Point[]): Rings {
  if (line.length < 3) return [];
  return withoutCrumbs(fromPaths(union([toPath(line)], FillRule.NonZero), new Map()));
}

/** Area under the even-odd rule, whatever way the rings run, and also where they cross. */
export function area_mm2(rings: Rings): number {
  if (rings.length === 0) return 0;
  if (rings.length === 1) {
    const whole = Math.abs(shoelace_mm2(rings[0]!));
    if (isSimple(rings[0]!)) return whole;
  }
  return Math.abs(areaPaths(union(rings.map((ring) => toPath(ring)), FillRule.EvenOdd))) / STEPS_PER_MM ** 2;
}

/** Area of one line that does not cross itself; its sign tells the way it runs. */
export function shoelace_mm2(ring: Ring): number {
  let twice = 0;
  let before = ring[ring.length - 1];
  for (const point of ring) {
    if (before) twice += before[0] * point[1] - point[0] * before[1];
    before = point;
  }
  return twice / 2;
}

export function perimeter_mm(ring: Ring): number {
  return ring.reduce((sum, point, n) => {
    const next = ring[(n + 1) % ring.length]!;
    return sum + Math.hypot(next[0] - point[0], next[1] - point[1]);
  }, 0);
}

/** The parts of a shape that are not holes. */
export function islands(rings: Rings): Rings {
  return fromPaths(union(rings.map((ring) => toPath(ring)), FillRule.EvenOdd), new Map()).filter((ring) => shoelace_mm2(ring) > 0);
}

type Operation = (subject: Paths64, clip: Paths64, rule: FillRule) => Paths64;

function clipped(rings: Rings, shape: Rings, operation: Operation): Rings {
  if (shape.length === 0) return rings;
  // A ring that the shape cannot reach stays as it is, to the last bit; under the even-odd rule it has no part in the matter.
  const reach = boxOf(shape);
  const near = rings.filter((ring) => overlaps(boxOf([ring]), reach));
  if (near.length === 0 && operation === difference) return rings;
  const points = new Map<number, Point>();
  const subject = near.map((ring) => toPath(ring, points));
  const result = operation(subject, shape.map((ring) => toPath(ring)), FillRule.EvenOdd);
  const before = near.length === 0 ? 0 : area_mm2(near);
  const after = Math.abs(areaPaths(result)) / STEPS_PER_MM ** 2;
  if (Math.abs(after - before) < SAME_MM2) return rings;
  const far = rings.filter((ring) => !near.includes(ring));
  return [...far, ...withoutCrumbs(fromPaths(result, points))];
}

/** How far a line may move when points are left out: a tenth of what a physicist sees on a screen. */
const THIN_MM: number = 0.01;
const MOST_LEFT_OUT: number = 24;

/** The rings without points that a straight line replaces; points of `before` stay, whatever they lie on. */
export function thinned(rings: Rings, before: Rings): Rings {
  const known = new Set(before.flat());
  return rings.map((ring) => (before.includes(ring) ? ring : thin(ring, known)));
}

function thin(ring: Ring, known: ReadonlySet<Point>): Ring {
  const kept: Point[] = [];
  for (let n = 0; n < ring.length; ) {
    kept.push(ring[n]!);
    let next = n + 1;
    while (
      next + 1 < ring.length &&
      next - n < MOST_LEFT_OUT &&
      ring.slice(n + 1, next + 1).every((point) => !known.has(point) && distance_mm(point, ring[n]!, ring[next + 1]!) <= THIN_MM)
    ) {
      next++;
    }
    n = next;
  }
  return kept.length < 3 ? ring : kept;
}

/** How far a place is from a straight line between two others. */
export function distance_mm(at: Point, a: Point, b: Point): number {
  const [du, dv] = [b[0] - a[0], b[1] - a[1]];
  const length2 = du * du + dv * dv;
  const share = length2 === 0 ? 0 : Math.min(1, Math.max(0, ((at[0] - a[0]) * du + (at[1] - a[1]) * dv) / length2));
  return Math.hypot(at[0] - a[0] - share * du, at[1] - a[1] - share * dv);
}

function withoutCrumbs(rings: Rings): Rings {
  return rings.filter((ring) => Math.abs(shoelace_mm2(ring)) >= CRUMB_MM2);
}

function toPath(ring: Ring, points?: Map<number, Point>): Path64 {
  return ring.map((point) => {
    const x = Math.round(point[0] * STEPS_PER_MM);
    const y = Math.round(point[1] * STEPS_PER_MM);
    points?.set(key(x, y), point);
    return { x, y };
  });
}

/** Points that were there before come back as they were, not as clipper rounded them. */
function fromPaths(paths: Paths64, points: ReadonlyMap<number, Point>): Ring[] {
  return paths.map((path) =>
    path.map(({ x, y }) => points.get(key(x, y)) ?? ([x / STEPS_PER_MM, y / STEPS_PER_MM] as const)),
  );
}

/** One number for two: exact as long as both are under 671 mm. */
function key(x: number, y: number): number {
  return x * 2 ** 27 + y;
}

type Box = readonly [left: number, top: number, right: number, bottom: number];

function boxOf(rings: Rings): Box {
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const ring of rings) {
    for (const [u, v] of ring) {
      if (u < left) left = u;
      if (u > right) right = u;
      if (v < top) top = v;
      if (v > bottom) bottom = v;
    }
  }
  return [left, top, right, bottom];
}

function overlaps(a: Box, b: Box): boolean {
  return a[0] <= b[2] && b[0] <= a[2] && a[1] <= b[3] && b[1] <= a[3];
}

/** Whether a ring surely does not cross itself: it turns one way, once around. */
function isSimple(ring: Ring): boolean {
  let sense = 0;
  let turned = 0;
  for (let n = 0; n < ring.length; n++) {
    const a = ring[n]!;
    const b = ring[(n + 1) % ring.length]!;
    const c = ring[(n + 2) % ring.length]!;
    const cross = (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0]);
    const straight = (b[0] - a[0]) * (c[0] - b[0]) + (b[1] - a[1]) * (c[1] - b[1]);
    if (cross !== 0 && sense !== 0 && Math.sign(cross) !== sense) return false;
    if (cross !== 0) sense = Math.sign(cross);
    turned += Math.atan2(cross, straight);
  }
  return Math.abs(Math.abs(turned) - 2 * Math.PI) < 1e-6;
}
