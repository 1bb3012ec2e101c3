/** The part of a plane that a pane shows: from pixels to indices of the array, and back. */

import type { Triple } from "./contract";
import type { Axis, Grid } from "./grid";
import type { Plane, ScreenAxis } from "./planes";

/** `index = start + step * pixel`, for the centre of a pixel. */
export interface Line {
  readonly start: number;
  readonly step: number;
}

export class Viewport {
  constructor(
    readonly grid: Grid,
    readonly plane: Plane,
    readonly width_px: number,
    readonly height_px: number,
    /** The index that lies in the middle of the pane; its part along the normal does not matter. */
    readonly center_ijk: Triple,
    readonly scale_px_per_mm: number,
  ) {}

  /** The whole plane, as large as the pane allows. A millimetre is as long across as down, whatever the voxels are. */
  static fit(grid: Grid, plane: Plane, width_px: number, height_px: number): Viewport {
    const extent_mm = ({ axis }: ScreenAxis): number => grid.shape_ijk[axis] * grid.spacing_ijk_mm[axis];
    const scale = Math.min(width_px / extent_mm(plane.right), height_px / extent_mm(plane.down));
    const middle = grid.shape_ijk.map((count) => (count - 1) / 2) as unknown as Triple;
    return new Viewport(grid, plane, width_px, height_px, middle, scale);
  }

  get columns(): Line {
    return this.line(this.plane.right, this.width_px);
  }

  get rows(): Line {
    return this.line(this.plane.down, this.height_px);
  }

  /** The index under a place of the pane, in pixels from its upper left corner, in slice `at` of the plane. */
  index(x_px: number, y_px: number, at: number): Triple {
    const index: [number, number, number] = [at, at, at];
    index[this.plane.right.axis] = this.columns.start + this.columns.step * (x_px - 0.5);
    index[this.plane.down.axis] = this.rows.start + this.rows.step * (y_px - 0.5);
    return index;
  }

  /** Where an index lies, in pixels from the upper left corner of the pane. */
  pixel(index_ijk: Triple): readonly [x_px: number, y_px: number] {
    return [
      (index_ijk[this.plane.right.axis] - this.columns.start) / this.columns.step + 0.5,
      (index_ijk[this.plane.down.axis] - this.rows.start) / this.rows.step + 0.5,
    ];
  }

  /** Where mm along the two axes of the plane (from the first voxel's centre) lie. */
  pixelOf_mm(along_right_mm: number, along_down_mm: number): readonly [x_px: number, y_px: number] {
    const index: [number, number, number] = [0, 0, 0];
    index[this.plane.right.axis] = along_right_mm / this.spacing_mm(this.plane.right.axis);
    index[this.plane.down.axis] = along_down_mm / this.spacing_mm(this.plane.down.axis);
    return this.pixel(index);
  }

  panned(dx_px: number, dy_px: number): Viewport {
    const center: [number, number, number] = [...this.center_ijk];
    center[this.plane.right.axis] -= dx_px * this.columns.step;
    center[this.plane.down.axis] -= dy_px * this.rows.step;
    return this.with({ center_ijk: center });
  }

  /** Larger by a factor; what lies under the given place stays there. */
  zoomed(factor: number, x_px = this.width_px / 2, y_px = this.height_px / 2): Viewport {
    const fixed = this.index(x_px, y_px, 0);
    const next = this.with({ scale_px_per_mm: this.scale_px_per_mm * factor });
    const [x, y] = next.pixel(fixed);
    return next.panned(x_px - x, y_px - y);
  }

  resized(width_px: number, height_px: number): Viewport {
    return this.with({ width_px, height_px });
  }

  with(change: {
    width_px?: number;
    height_px?: number;
    center_ijk?: Triple;
    scale_px_per_mm?: number;
  }): Viewport {
    return new Viewport(
      this.grid,
      this.plane,
      change.width_px ?? this.width_px,
      change.height_px ?? this.height_px,
      change.center_ijk ?? this.center_ijk,
      change.scale_px_per_mm ?? this.scale_px_per_mm,
    );
  }

  private line({ axis, sign }: ScreenAxis, size_px: number): Line {
    const step = sign / (this.scale_px_per_mm * this.spacing_mm(axis));
    return { start: this.center_ijk[axis] - step * (size_px / 2 - 0.5), step };
  }

  private spacing_mm(axis: Axis): number {
    return this.grid.spacing_ijk_mm[axis];
  }
}
