/** Shapes between shapes, and smoother ones. */

import { islands, perimeter_mm, shoelace_mm2 } from "./clip";
import { trace, type Field } from "./trace";
import type { Point, Ring, Rings } from "../viewer/contract";

const STEP_MM: number = 0.5;
/** Cells along the longer side of a field; more would not be seen, and a press of a key has to be answered. */
const MOST_CELLS: number = 160;

/**
 * The shapes of the slices between two, by their distances to the edge: each place inside is as deep as the two shapes are on average.
 *
 * A single part that moved is followed: both are laid on each other by their middles first. The lines are new; those given are not touched.
 *
 * @param shares How far each wanted slice is from the first (0) to the second (1).
 */
export function between(first: Rings, second: Rings, shares: readonly number[]): Rings[] {
  const follow = islands(first).length === 1 && islands(second).length === 1;
  const [a, b] = follow ? [middle(first), middle(second)] : [[0, 0] as const, [0, 0] as const];
  const from = shifted(first, a, -1);
  const to = shifted(second, b, -1);
  const frame = frameOf([...from, ...to]);
  const near = depth(from, frame);
  const far = depth(to, frame);
  return shares.map((share) => {
    const values = near.map((value, n) => value + (far[n]! - value) * share);
    const at: Point = [a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share];
    return shifted(trace({ ...frame, values }), at, 1);
  });
}

/** How deep each place of a grid lies in a shape, in mm; below nought outside. */
export function depth(rings: Rings, frame: Omit<Field, "values">): Float64Array {
  const values = new Float64Array(frame.columns * frame.rows);
  const edges = edgesOf(rings);
  for (let y = 0, place = 0; y < frame.rows; y++) {
    const v = frame.origin_mm[1] + y * frame.step_mm;
    for (let x = 0; x < frame.columns; x++, place++) {
      const u = frame.origin_mm[0] + x * frame.step_mm;
      let least = Infinity;
      let odd = false;
      // The innermost loop of a key press: plain numbers, no roots, no calls.
      for (let e = 0; e < edges.length; e += 5) {
        const pu = u - edges[e]!;
        const pv = v - edges[e + 1]!;
        const du = edges[e + 2]!;
        const dv = edges[e + 3]!;
        let share = (pu * du + pv * dv) * edges[e + 4]!;
        share = share < 0 ? 0 : share > 1 ? 1 : share;
        const off = (pu - share * du) ** 2 + (pv - share * dv) ** 2;
        if (off < least) least = off;
        if (pv >= 0 !== pv >= dv && (pv / dv) * du < pu) odd = !odd;
      }
      values[place] = odd ? Math.sqrt(least) : -Math.sqrt(least);
    }
  }
  return values;
}

/** Five numbers an edge: where it begins, where it leads, and one over its length squared. */
function edgesOf(rings: Rings): Float64Array {
  const numbers: number[] = [];
  for (const ring of rings) {
    ring.forEach((p, n) => {
      const q = ring[(n + 1) % ring.length]!;
      const [du, dv] = [q[0] - p[0], q[1] - p[1]];
      const length2 = du * du + dv * dv;
      if (length2 > 0) numbers.push(p[0], p[1], du, dv, 1 / length2);
    });
  }
  return Float64Array.from(numbers);
}

const SIGMA_MM: number = 1.5;
/** A line that is not longer than this has nothing to smooth. */
const SHORTEST_MM: number = 4 * SIGMA_MM;

/** Lines without what is finer than a few millimetres; each keeps its area. */
export function smoothed(rings: Rings): Rings {
  let changed = false;
  const result = rings.map((ring) => {
    const length_mm = perimeter_mm(ring);
    if (length_mm < SHORTEST_MM) return ring;
    changed = true;
    const count = Math.max(24, Math.round(length_mm / (SIGMA_MM / 3)));
    const even = resampled(ring, count);
    const sigma = SIGMA_MM / (length_mm / count);
    const soft = blurred(even, sigma);
    const middle_ = middle([soft]);
    const growth = Math.sqrt(Math.abs(shoelace_mm2(ring) / shoelace_mm2(soft)));
    return soft.map(
      ([u, v]) => [middle_[0] + (u - middle_[0]) * growth, middle_[1] + (v - middle_[1]) * growth] as const,
    );
  });
  return changed ? result : rings;
}

/** The middle of an area under the even-odd rule. */
function middle(rings: Rings): Point {
  // Rings that clipping made or a shape has been traced from do not cross; which of them are holes their depth of nesting tells.
  let [area, u, v] = [0, 0, 0];
  for (const ring of rings) {
    const sense = rings.filter((other) => other !== ring && contains(other, ring[0]!)).length % 2 === 0 ? 1 : -1;
    const own = shoelace_mm2(ring);
    const sign = sense * Math.sign(own);
    ring.forEach((p, n) => {
      const q = ring[(n + 1) % ring.length]!;
      const cross = (p[0] * q[1] - q[0] * p[1]) * sign;
      u += ((p[0] + q[0]) * cross) / 6;
      v += ((p[1] + q[1]) * cross) / 6;
    });
    area += own * sign;
  }
  return area === 0 ? (rings[0]?.[0] ?? [0, 0]) : [u / area, v / area];
}

/** Whether a place lies inside of a ring. */
export function contains(ring: Ring, [u, v]: Point): boolean {
  let odd = false;
  ring.forEach((p, n) => {
    const q = ring[(n + 1) % ring.length]!;
    if (p[1] <= v !== q[1] <= v && p[0] + ((v - p[1]) / (q[1] - p[1])) * (q[0] - p[0]) < u) odd = !odd;
  });
  return odd;
}

function frameOf(rings: Rings): Omit<Field, "values"> {
  const points = rings.flat();
  const us = points.map(([u]) => u);
  const vs = points.map(([, v]) => v);
  const [left, right, top, bottom] = [Math.min(...us), Math.max(...us), Math.min(...vs), Math.max(...vs)];
  const step_mm = Math.max(STEP_MM, Math.max(right - left, bottom - top) / MOST_CELLS);
  // Two cells around, so that the outermost values lie outside of both shapes.
  return {
    origin_mm: [left - 2 * step_mm, top - 2 * step_mm],
    step_mm,
    columns: Math.ceil((right - left) / step_mm) + 5,
    rows: Math.ceil((bottom - top) / step_mm) + 5,
  };
}

function shifted(rings: Rings, by: Point, sense: 1 | -1): Rings {
  return rings.map((ring) => ring.map(([u, v]) => [u + sense * by[0], v + sense * by[1]] as const));
}

/** As many points as asked for, evenly along the ring. */
function resampled(ring: Ring, count: number): Ring {
  const step = perimeter_mm(ring) / count;
  const points: Point[] = [];
  let [edge, gone_mm] = [0, 0];
  for (let n = 0; n < count; n++) {
    for (;;) {
      const p = ring[edge % ring.length]!;
      const q = ring[(edge + 1) % ring.length]!;
      const length = Math.hypot(q[0] - p[0], q[1] - p[1]);
      const rest = n * step - gone_mm;
      if (rest <= length || edge > ring.length) {
        const share = length === 0 ? 0 : Math.min(1, rest / length);
        points.push([p[0] + (q[0] - p[0]) * share, p[1] + (q[1] - p[1]) * share]);
        break;
      }
      gone_mm += length;
      edge++;
    }
  }
  return points;
}

function blurred(ring: Ring, sigma: number): Ring {
  const reach = Math.min(Math.floor((ring.length - 1) / 2), Math.ceil(3 * sigma));
  const weights = Array.from({ length: 2 * reach + 1 }, (_, n) => Math.exp(-((n - reach) ** 2) / (2 * sigma ** 2)));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return ring.map((_, n) => {
    let [u, v] = [0, 0];
    weights.forEach((weight, w) => {
      const point = ring[(n + w - reach + ring.length) % ring.length]!;
      u += point[0] * weight;
      v += point[1] * weight;
    });
    return [u / total, v / total] as const;
  });
}
