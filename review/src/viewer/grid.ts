/** Where the voxels of an image lie in the patient. */

import type { Triple, ViewImage } from "./contract";
import { Stack } from "./stack";

export type Axis = 0 | 1 | 2;

/** A grid of straight rows and columns, in slices that need not be evenly apart: index `(0, 0, 0)` is the centre of the first voxel. */
export class Grid {
  readonly shape_ijk: Triple;
  /** Along i and j. */
  readonly spacing_ij_mm: readonly [number, number];
  readonly stack: Stack;
  readonly origin_xyz_mm: Triple;
  /** World directions of i, j and k; unit vectors. */
  readonly axes: readonly [Triple, Triple, Triple];

  constructor(image: Pick<ViewImage, "shape_zyx" | "spacing_xyz_mm" | "origin_xyz_mm" | "direction" | "slice_z_mm">) {
    const [slices, rows, columns] = image.shape_zyx;
    this.shape_ijk = [columns, rows, slices];
    const [x_mm, y_mm, z_mm] = image.spacing_xyz_mm;
    this.spacing_ij_mm = [x_mm, y_mm];
    // A slice alone has no distance to another.
    this.stack = new Stack(image.slice_z_mm, z_mm || 1);
    this.origin_xyz_mm = image.origin_xyz_mm;
    this.axes = [column(image.direction, 0), column(image.direction, 1), column(image.direction, 2)];
  }

  /** How far an index lies along an axis, from the centre of the first voxel. */
  mm(axis: Axis, index: number): number {
    return axis === 2 ? this.stack.mm(index) : index * this.spacing_ij_mm[axis];
  }

  /** The index of a place along an axis, with fractions. */
  at(axis: Axis, mm: number): number {
    return axis === 2 ? this.stack.index(mm) : mm / this.spacing_ij_mm[axis];
  }

  world(index_ijk: Triple): Triple {
    const [u, v, w] = [this.mm(0, index_ijk[0]), this.mm(1, index_ijk[1]), this.mm(2, index_ijk[2])];
    const at = (row: Axis): number =>
      this.origin_xyz_mm[row] + this.axes[0][row] * u + this.axes[1][row] * v + this.axes[2][row] * w;
    return [at(0), at(1), at(2)];
  }

  /** The index of a point, with fractions. */
  index(world_xyz_mm: Triple): Triple {
    const from: Triple = [
      world_xyz_mm[0] - this.origin_xyz_mm[0],
      world_xyz_mm[1] - this.origin_xyz_mm[1],
      world_xyz_mm[2] - this.origin_xyz_mm[2],
    ];
    const along = (axis: Axis): number => this.at(axis, dot(from, this.axes[axis]));
    return [along(0), along(1), along(2)];
  }

  /** The voxel nearest to an index, inside of the grid. */
  nearest(index_ijk: Triple): Triple {
    const within = (axis: Axis): number =>
      Math.min(this.shape_ijk[axis] - 1, Math.max(0, Math.round(index_ijk[axis])));
    return [within(0), within(1), within(2)];
  }

  contains(index_ijk: Triple): boolean {
    return ([0, 1, 2] as const).every(
      (axis) => index_ijk[axis] >= -0.5 && index_ijk[axis] < this.shape_ijk[axis] - 0.5,
    );
  }

  /** What the voxels of a slice cover, in mm along i and j from the centre of the first. */
  get bounds(): { left_mm: number; top_mm: number; right_mm: number; bottom_mm: number } {
    const [si, sj] = this.spacing_ij_mm;
    return {
      left_mm: -si / 2,
      top_mm: -sj / 2,
      right_mm: (this.shape_ijk[0] - 0.5) * si,
      bottom_mm: (this.shape_ijk[1] - 0.5) * sj,
    };
  }

  /** Whether voxels of both lie at the same places, to a micrometre. */
  equals(other: Grid): boolean {
    const near = (a: readonly number[], b: readonly number[], tolerance: number): boolean =>
      a.every((value, n) => Math.abs(value - (b[n] ?? NaN)) <= tolerance);
    return (
      near(this.shape_ijk, other.shape_ijk, 0) &&
      near(this.spacing_ij_mm, other.spacing_ij_mm, 1e-6) &&
      near(this.stack.offsets_mm, other.stack.offsets_mm, 1e-3) &&
      near(this.origin_xyz_mm, other.origin_xyz_mm, 1e-3) &&
      this.axes.every((axis, n) => near(axis, other.axes[n as Axis], 1e-6))
    );
  }
}

export function dot(a: Triple, b: Triple): number {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

function column(matrix: readonly (readonly number[])[], axis: Axis): Triple {
  const at = (row: Axis): number => matrix[row]?.[axis] ?? NaN;
  return [at(0), at(1), at(2)];
}
