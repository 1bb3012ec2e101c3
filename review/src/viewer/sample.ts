/** From a plane of a volume to the HU of each pixel. */

import type { Triple } from "./contract";
import type { Axis } from "./grid";

/** A pixel that shows nothing: beyond the volume, not there yet, or where the service had nothing to resample. */
export const NOTHING: number = -32768;

/** Stored values of a volume, in the order k, j, i. */
export interface Voxels {
  readonly values: Int16Array;
  readonly shape_ijk: Triple;
  /** The value that stands for nothing. */
  readonly outside: number;
}

/** A slice of the array, and which of its axes run across and down the screen. */
export interface Cut {
  readonly normal: Axis;
  readonly slice: number;
  readonly across: Axis;
  readonly down: Axis;
  /** The index along `across` of each column of pixels, and along `down` of each row. */
  readonly columns: Float64Array;
  readonly rows: Float64Array;
}

/** Which voxels a row or column of pixels lies between. */
interface Between {
  /** Offsets into the array of the voxel before and the voxel after; -1 beyond the volume. */
  readonly before: Int32Array;
  readonly after: Int32Array;
  /** How far from the one to the other. */
  readonly share: Float64Array;
}

/**
 * Writes the HU of each pixel: bilinear between the centres of voxels, or the voxel that the pixel lies in.
 *
 * @param into width × height values, by row; `NOTHING` where one of the voxels that count is nothing.
 */
export function sample(
  voxels: Voxels,
  cut: Cut,
  width_px: number,
  height_px: number,
  interpolate: boolean,
  into: Float32Array,
): void {
  const { values, shape_ijk, outside } = voxels;
  if (cut.slice < 0 || cut.slice >= shape_ijk[cut.normal]) {
    into.fill(NOTHING);
    return;
  }
  const stride: Triple = [1, shape_ijk[0], shape_ijk[0] * shape_ijk[1]];
  const base = cut.slice * stride[cut.normal];
  const x = between(cut.columns, width_px, shape_ijk[cut.across], stride[cut.across], interpolate);
  const y = between(cut.rows, height_px, shape_ijk[cut.down], stride[cut.down], interpolate);
  let pixel = 0;
  for (let row = 0; row < height_px; row++) {
    if (y.before[row]! < 0) {
      into.fill(NOTHING, pixel, pixel + width_px);
      pixel += width_px;
      continue;
    }
    const upper = base + y.before[row]!;
    const lower = base + y.after[row]!;
    const down = y.share[row]!;
    for (let column = 0; column < width_px; column++, pixel++) {
      const left = x.before[column]!;
      if (left < 0) {
        into[pixel] = NOTHING;
        continue;
      }
      const right = x.after[column]!;
      const a = values[upper + left]!;
      const b = values[upper + right]!;
      const c = values[lower + left]!;
      const d = values[lower + right]!;
      if (a === outside || b === outside || c === outside || d === outside) {
        into[pixel] = NOTHING;
        continue;
      }
      const across = x.share[column]!;
      const above = a + (b - a) * across;
      into[pixel] = above + (c + (d - c) * across - above) * down;
    }
  }
}

function between(indices: Float64Array, size_px: number, count: number, stride: number, interpolate: boolean): Between {
  const before = new Int32Array(size_px);
  const after = new Int32Array(size_px);
  const share = new Float64Array(size_px);
  for (let pixel = 0; pixel < size_px; pixel++) {
    const index = indices[pixel]!;
    if (index < -0.5 || index >= count - 0.5) {
      before[pixel] = -1;
      continue;
    }
    // The outer half of an outer voxel has no neighbour: it has the voxel's value.
    const within = Math.min(count - 1, Math.max(0, interpolate ? index : Math.round(index)));
    const first = Math.floor(within);
    const rest = within - first;
    before[pixel] = first * stride;
    // A voxel that counts for nothing is not looked at: it may be one that is outside.
    after[pixel] = (rest > 0 ? first + 1 : first) * stride;
    share[pixel] = rest;
  }
  return { before, after, share };
}
