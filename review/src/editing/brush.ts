/** Shapes that a hand draws: round brushes along a line, and a push. */

import type { Point, Ring, Rings } from "../viewer/contract";
import type { Stack } from "../viewer/stack";
import { area_mm2, closed, distance_mm, perimeter_mm, shoelace_mm2 } from "./clip";

export interface Brush {
  readonly diameter_mm: number;
  /** A ball that reaches into the neighbouring slices, and not a disc. */
  readonly sphere: boolean;
}

export const THINNEST_MM: number = 1;
export const THICKEST_MM: number = 30;

/** A brush's edge may run this far inside of its circle. */
const SAGITTA_MM: number = 0.02;

/** A brush of a size that it may have. */
export function bounded(brush: Brush): Brush {
  return { ...brush, diameter_mm: Math.min(THICKEST_MM, Math.max(THINNEST_MM, brush.diameter_mm)) };
}

/** What a round brush covers on its way from one place to the next. */
export function stroke(from: Point, to: Point, radius_mm: number): Ring {
  const half = Math.max(8, Math.ceil(Math.PI / (2 * Math.acos(1 - SAGITTA_MM / Math.max(radius_mm, SAGITTA_MM)))));
  const heading = Math.atan2(to[1] - from[1], to[0] - from[0]);
  const arc = (center: Point, start: number): Point[] =>
    Array.from({ length: half + 1 }, (_, n) => {
      const angle = start + (Math.PI * n) / half;
      return [center[0] + radius_mm * Math.cos(angle), center[1] + radius_mm * Math.sin(angle)] as const;
    });
  const ring = [...arc(from, heading + Math.PI / 2), ...arc(to, heading - Math.PI / 2)];
  return ring;
}

/** Slices that a brush reaches, and how wide it is in each. */
export function reach(
  brush: Brush,
  slice: number,
  stack: Stack,
): { readonly slice: number; readonly radius_mm: number }[] {
  const radius_mm = brush.diameter_mm / 2;
  if (!brush.sphere) return [{ slice, radius_mm }];
  const middle_mm = stack.mm(slice);
  return stack.offsets_mm
    .map((mm, other) => ({ slice: other, radius_mm: Math.sqrt(Math.max(0, radius_mm ** 2 - (mm - middle_mm) ** 2)) }))
    // A ball touches its last slice in a point, which is no shape.
    .filter((each) => each.radius_mm > SAGITTA_MM);
}

/**
 * Pushes what lies under a round tool along with it, less towards its rim.
 *
 * A push is done in steps of a quarter of the radius: then neighbouring points never overtake each other. Edges between them can still cross after
 * a wild way; such a line is replaced by the one around all that it goes around. The very same array comes back where nothing lay under the tool.
 */
export function pushed(rings: Rings, from: Point, to: Point, radius_mm: number): Rings {
  const way_mm = Math.hypot(to[0] - from[0], to[1] - from[1]);
  const steps = Math.ceil(way_mm / (radius_mm / 4));
  let moved = rings;
  for (let step = 0; step < steps; step++) {
    const at: Point = [
      from[0] + ((to[0] - from[0]) * step) / steps,
      from[1] + ((to[1] - from[1]) * step) / steps,
    ];
    moved = nudged(moved, at, [(to[0] - from[0]) / steps, (to[1] - from[1]) / steps], radius_mm);
  }
  return moved === rings ? rings : moved.flatMap((ring) => (rings.includes(ring) || isWhole(ring) ? [ring] : closed(ring)));
}

/** Clipper rounds to a hundredth of a micrometre, along all of the line. */
const ROUNDED_MM: number = 1e-5;

/** Whether a line does not cross itself: then the shoelace formula and the even-odd rule find one area. */
function isWhole(ring: Ring): boolean {
  return Math.abs(Math.abs(shoelace_mm2(ring)) - area_mm2([ring])) <= ROUNDED_MM * perimeter_mm(ring);
}

function nudged(rings: Rings, at: Point, by: Point, radius_mm: number): Rings {
  let changed = false;
  const result = rings.map((ring) => {
    if (!touches(ring, at, radius_mm)) return ring;
    changed = true;
    return dense(ring, at, radius_mm).map((point) => {
      const off = Math.hypot(point[0] - at[0], point[1] - at[1]) / radius_mm;
      if (off >= 1) return point;
      const share = (1 - off * off) ** 2;
      return [point[0] + by[0] * share, point[1] + by[1] * share] as const;
    });
  });
  return changed ? result : rings;
}

/** The ring with edges under the tool so short that they bend with it. */
function dense(ring: Ring, at: Point, radius_mm: number): Ring {
  const longest_mm = Math.max(0.3, radius_mm / 8);
  const points: Point[] = [];
  ring.forEach((point, n) => {
    points.push(point);
    const next = ring[(n + 1) % ring.length]!;
    const length_mm = Math.hypot(next[0] - point[0], next[1] - point[1]);
    if (length_mm <= longest_mm || distance_mm(at, point, next) > radius_mm) return;
    const parts = Math.ceil(length_mm / longest_mm);
    for (let part = 1; part < parts; part++) {
      const share = part / parts;
      points.push([point[0] + (next[0] - point[0]) * share, point[1] + (next[1] - point[1]) * share]);
    }
  });
  return points;
}

function touches(ring: Ring, at: Point, radius_mm: number): boolean {
  return ring.some((point, n) => distance_mm(at, point, ring[(n + 1) % ring.length]!) < radius_mm);
}
