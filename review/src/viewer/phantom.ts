/** Images for tests: grids by how the patient lies, volumes by a rule. Not part of the page. */

import type { Triple, ViewImage } from "./contract";
import type { Voxels } from "./sample";

export type Position = "HFS" | "HFP" | "FFS" | "FFP" | "HFDL" | "HFDR" | "FFDL" | "FFDR";

/** Directions of i and j as a scanner writes them for each Patient Position (PS3.3 C.7.3.1.1.2); k is their cross product's. */
const LIES: Readonly<Record<Position, readonly [Triple, Triple, Triple]>> = {
  HFS: [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
  HFP: [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],
  FFS: [[-1, 0, 0], [0, 1, 0], [0, 0, -1]],
  FFP: [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
  HFDL: [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
  HFDR: [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
  FFDL: [[0, 1, 0], [1, 0, 0], [0, 0, -1]],
  FFDR: [[0, -1, 0], [-1, 0, 0], [0, 0, -1]],
};

export function imageOf(
  shape_ijk: Triple,
  spacing_xyz_mm: Triple,
  axes: readonly [Triple, Triple, Triple] = LIES.HFS,
  origin_xyz_mm: Triple = [-10, 20, 30],
): ViewImage {
  return {
    volume: "0".repeat(64),
    shape_zyx: [shape_ijk[2], shape_ijk[1], shape_ijk[0]],
    spacing_xyz_mm,
    origin_xyz_mm,
    slice_z_mm: Array.from({ length: shape_ijk[2] }, (_, slice) => slice * spacing_xyz_mm[2]),
    direction: [0, 1, 2].map((row) => axes.map((axis) => axis[row as 0 | 1 | 2])),
    label: "CBCT",
    outside: -32768,
    frame_of_reference: "1.2.3",
  };
}

export function lying(position: Position, shape_ijk: Triple, spacing_xyz_mm: Triple = [1, 1, 1]): ViewImage {
  return imageOf(shape_ijk, spacing_xyz_mm, LIES[position]);
}

export function voxelsOf(shape_ijk: Triple, rule: (i: number, j: number, k: number) => number): Voxels {
  const [columns, rows, slices] = shape_ijk;
  const values = new Int16Array(columns * rows * slices);
  let place = 0;
  for (let k = 0; k < slices; k++)
    for (let j = 0; j < rows; j++) for (let i = 0; i < columns; i++) values[place++] = rule(i, j, k);
  return { values, shape_ijk, outside: -32768 };
}

/** Numbers that look random and are the same in every run. */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    // mulberry32
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
