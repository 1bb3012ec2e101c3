/** Contours of a frame of reference, and what of them is seen in a plane across the slices. */

import type { Contours, Loop, Ring, Rings, Slices } from "./contract";

const NO_RINGS: Rings = [];

/** A contour would be drawn on an image that it was not drawn for. */
export class ForeignFrameError extends Error {
  constructor(
    readonly contours_frame: string,
    readonly image_frame: string,
  ) {
    super(
      `contours of the frame of reference ${contours_frame} on an image of ${image_frame}; (0020,0052) Frame of Reference UID`,
    );
    this.name = "ForeignFrameError";
  }
}

/** The contours by name and slice.
 *
 * @throws ForeignFrameError They are of another frame of reference than the image; nothing of them may be shown.
 */
export function contoursOn(frame_of_reference: string, answer: Contours): Map<string, Slices> {
  // An empty UID is no frame: two images that do not say where they are are not in one place.
  if (answer.frame_of_reference !== frame_of_reference || frame_of_reference === "") {
    throw new ForeignFrameError(answer.frame_of_reference, frame_of_reference);
  }
  return new Map(Object.entries(answer.contours).map(([name, loops]) => [name, bySlice(loops)]));
}

/** The rings of each slice, in the order they came in; the points are the very arrays that came. */
export function bySlice(loops: readonly Loop[]): Slices {
  const slices = new Map<number, Ring[]>();
  for (const { slice, points_xy_mm } of loops) {
    const rings = slices.get(slice);
    if (rings) rings.push(points_xy_mm);
    else slices.set(slice, [points_xy_mm]);
  }
  return slices;
}

export function ringsOf(slices: Slices | undefined, slice: number): Rings {
  return slices?.get(slice) ?? NO_RINGS;
}

/** Slices that hold a line, in order. */
export function slicesWith(slices: Slices | undefined): number[] {
  return [...(slices ?? [])].filter(([, rings]) => rings.length > 0).map(([slice]) => slice).sort((a, b) => a - b);
}

/** Along which of the two axes of a slice a plane across it is seen. */
export type Along = "u" | "v";

/**
 * Where a straight line through a slice is inside: pairs of beginning and end, in mm along it.
 *
 * @param along The axis that the line runs along; it lies at `at_mm` of the other one.
 */
export function inside(rings: Rings, along: Along, at_mm: number): number[] {
  const run = along === "u" ? 0 : 1;
  const across = 1 - run;
  const crossings: number[] = [];
  for (const ring of rings) {
    let before = ring[ring.length - 1];
    for (const point of ring) {
      // Half open, so that a corner that lies on the line counts once and an edge along it not at all.
      if (before && before[across]! <= at_mm !== point[across]! <= at_mm) {
        const share = (at_mm - before[across]!) / (point[across]! - before[across]!);
        crossings.push(before[run]! + share * (point[run]! - before[run]!));
      }
      before = point;
    }
  }
  // The even-odd rule: each crossing goes in or comes out.
  return crossings.sort((a, b) => a - b);
}

/** A straight piece of an outline: mm along the plane, and slices with fractions. */
export type Piece = readonly [from_mm: number, from_slice: number, to_mm: number, to_slice: number];

/**
 * The outline that slices, each as thick as their distance, leave in a plane across them.
 *
 * @param at_mm Where the plane lies along the other axis of the slices.
 */
export function outline(slices: Slices, along: Along, at_mm: number): Piece[] {
  const pieces: Piece[] = [];
  const found = slicesWith(slices);
  const cuts = new Map(found.map((slice) => [slice, inside(slices.get(slice)!, along, at_mm)]));
  for (const slice of found) {
    for (const mm of cuts.get(slice)!) pieces.push([mm, slice - 0.5, mm, slice + 0.5]);
    // Between two slices there is a line where one of them is inside and the other is not.
    if (!cuts.has(slice - 1)) steps([], cuts.get(slice)!, slice - 0.5, pieces);
    steps(cuts.get(slice)!, cuts.get(slice + 1) ?? [], slice + 0.5, pieces);
  }
  return pieces;
}

function steps(below: readonly number[], above: readonly number[], slice: number, pieces: Piece[]): void {
  const marks = [...below, ...above].sort((a, b) => a - b);
  for (let mark = 0; mark + 1 < marks.length; mark += 2) {
    const from = marks[mark]!;
    const to = marks[mark + 1]!;
    if (to > from) pieces.push([from, slice, to, slice]);
  }
}
