/** Lines around where a field on a grid is above nought. */

import type { Point, Ring } from "../viewer/contract";

/** Values on a regular grid in mm, by rows. */
export interface Field {
  readonly values: Float64Array;
  readonly columns: number;
  readonly rows: number;
  readonly origin_mm: Point;
  readonly step_mm: number;
}

/**
 * Traces the lines of nought, linear between neighbours; what is above nought lies on their left in a picture with v down.
 *
 * The outermost values of the field have to be below nought.
 */
export function trace({ values, columns, rows, origin_mm, step_mm }: Field): Ring[] {
  const at = (x: number, y: number): number => values[y * columns + x]!;
  // A side of a cell is named by its first corner, and whether it runs along a column.
  const side = (x: number, y: number, down: 0 | 1): number => 2 * (y * columns + x) + down;
  const leadsTo = new Map<number, number>();
  for (let y = 0; y + 1 < rows; y++) {
    for (let x = 0; x + 1 < columns; x++) {
      const corners = [at(x, y), at(x + 1, y), at(x + 1, y + 1), at(x, y + 1)];
      const kind = corners.reduce((bits, value, n) => bits | (value > 0 ? 1 << n : 0), 0);
      if (kind === 0 || kind === 15) continue;
      const sides = [side(x, y, 0), side(x + 1, y, 1), side(x, y + 1, 0), side(x, y, 1)];
      const center = corners.reduce((sum, value) => sum + value, 0) / 4;
      for (const [from, to] of crossing(kind, center > 0)) leadsTo.set(sides[from]!, sides[to]!);
    }
  }
  const place = (name: number): Point => {
    const corner = name >> 1;
    const x = corner % columns;
    const y = Math.floor(corner / columns);
    const down = name & 1;
    const a = at(x, y);
    const b = down ? at(x, y + 1) : at(x + 1, y);
    const share = a / (a - b);
    return [origin_mm[0] + (x + (down ? 0 : share)) * step_mm, origin_mm[1] + (y + (down ? share : 0)) * step_mm];
  };
  const rings: Ring[] = [];
  for (const start of leadsTo.keys()) {
    const ring: Point[] = [];
    for (let name: number | undefined = start; name !== undefined; ) {
      const next: number | undefined = leadsTo.get(name);
      if (next === undefined) break;
      leadsTo.delete(name);
      const point = place(name);
      const before = ring[ring.length - 1];
      if (!before || before[0] !== point[0] || before[1] !== point[1]) ring.push(point);
      name = next;
    }
    if (ring.length >= 3) rings.push(ring);
  }
  return rings;
}

/** From which side to which a line goes through a cell; sides are top, right, bottom, left, corners clockwise from the upper left. */
function crossing(kind: number, center: boolean): readonly (readonly [number, number])[] {
  const line: [number, number][] = [];
  const inside = (n: number): boolean => (kind & (1 << (n & 3))) !== 0;
  // A line comes in where the side goes from inside to outside, read clockwise, and leaves where it goes back.
  for (let from = 0; from < 4; from++) {
    if (!inside(from) || inside(from + 1)) continue;
    // Where corners alternate, the middle says whether the inside is one piece.
    const alternate = kind === 5 || kind === 10;
    if (alternate) line.push([from, center ? (from + 1) & 3 : (from + 3) & 3]);
    else for (let to = 0; to < 4; to++) if (!inside(to) && inside(to + 1)) line.push([from, to]);
  }
  return line;
}
