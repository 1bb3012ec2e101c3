/**
 * Whether the lines of a slice can be signed: none crosses itself or another, and all lie in the image.
 *
 * Clipping rounds, thinning and smoothing move points a little, and two edges that all but touched may then cross by a hair. A treatment
 * planning system may refuse such a line or fill it otherwise than it was seen; so it is mended where it arises, when a hand is lifted.
 */

import { FillRule, intersect, union, type Paths64 } from "clipper2-ts";
import type { Rings } from "../viewer/contract";
import { shoelace_mm2, CRUMB_MM2 } from "./clip";

/** The part of a slice's plane that the image covers. */
export interface Bounds {
  readonly left_mm: number;
  readonly top_mm: number;
  readonly right_mm: number;
  readonly bottom_mm: number;
}

/** Grids that a line is laid on until it is sound: a crossing by rounding on one is none on a coarser one, or a real one. */
const GRIDS_MM: readonly number[] = [1e-5, 1e-4, 1e-3, 1e-2];
const PASSES: number = 3;
/** So far inside of the image, rounding does not lead out of it. */
const MARGIN_MM: number = 2e-2;

/** Sound lines of the same area; the very same array where they are sound. */
export function sound(rings: Rings, bounds: Bounds): Rings {
  const out = !isWithin(rings, bounds);
  if (!out && !cross(rings)) return rings;
  const { left_mm, top_mm, right_mm, bottom_mm } = bounds;
  const [left, top, right, bottom] = [left_mm + MARGIN_MM, top_mm + MARGIN_MM, right_mm - MARGIN_MM, bottom_mm - MARGIN_MM];
  const image = [[left, top], [right, top], [right, bottom], [left, bottom]] as const;
  let mended = rings;
  for (const grid_mm of GRIDS_MM) {
    for (let pass = 0; pass < PASSES; pass++) {
      const paths = toPaths(mended, grid_mm);
      const joined = out ? intersect(paths, toPaths([image], grid_mm), FillRule.EvenOdd) : union(paths, FillRule.EvenOdd);
      mended = joined
        .map((path) => path.map(({ x, y }) => [x * grid_mm, y * grid_mm] as const))
        .filter((ring) => ring.length >= 3 && Math.abs(shoelace_mm2(ring)) >= CRUMB_MM2);
      if (!cross(mended)) return mended;
    }
  }
  return mended;
}

/** Whether two edges cross within both, of one line or of two; touching is no crossing. */
export function cross(rings: Rings): boolean {
  const edges = rings.flatMap((ring) =>
    ring.map((p, n) => {
      const q = ring[(n + 1) % ring.length]!;
      return p[0] <= q[0] ? { x0: p[0], y0: p[1], x1: q[0], y1: q[1] } : { x0: q[0], y0: q[1], x1: p[0], y1: p[1] };
    }),
  );
  edges.sort((a, b) => a.x0 - b.x0);
  // Only edges that share a stretch of u can cross.
  for (let n = 0; n < edges.length; n++) {
    const a = edges[n]!;
    for (let m = n + 1; m < edges.length; m++) {
      const b = edges[m]!;
      if (b.x0 > a.x1) break;
      if (Math.max(a.y0, a.y1) < Math.min(b.y0, b.y1) || Math.max(b.y0, b.y1) < Math.min(a.y0, a.y1)) continue;
      const beside = (e: typeof a, x: number, y: number): number => (e.x1 - e.x0) * (y - e.y0) - (e.y1 - e.y0) * (x - e.x0);
      if (beside(a, b.x0, b.y0) * beside(a, b.x1, b.y1) < 0 && beside(b, a.x0, a.y0) * beside(b, a.x1, a.y1) < 0) return true;
    }
  }
  return false;
}

function isWithin(rings: Rings, { left_mm, top_mm, right_mm, bottom_mm }: Bounds): boolean {
  return rings.every((ring) => ring.every(([u, v]) => u >= left_mm && u <= right_mm && v >= top_mm && v <= bottom_mm));
}

function toPaths(rings: Rings, grid_mm: number): Paths64 {
  return rings.map((ring) => ring.map(([u, v]) => ({ x: Math.round(u / grid_mm), y: Math.round(v / grid_mm) })));
}
