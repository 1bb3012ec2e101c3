/** The part of a plane that a pane shows: from pixels to indices of the array, and back. */

import type { Triple } from "./contract";
import type { Axis, Grid } from "./grid";
import type { Plane, ScreenAxis } from "./planes";

/** `mm = start + step * pixel`, for the centre of a pixel, from the centre of the first voxel. */
interface Line {
  readonly start_mm: number;
  readonly step_mm: number;
}

type Way = "right" | "down";

export class Viewport {
  private readonly lines: { readonly right: Line; readonly down: Line };

  constructor(
    readonly grid: Grid,
    readonly plane: Plane,
    readonly width_px: number,
    readonly height_px: number,
    /** The index that lies in the middle of the pane; its part along the normal does not matter. */
    readonly center_ijk: Triple,
    readonly scale_px_per_mm: number,
  ) {
    const line = ({ axis, sign }: ScreenAxis, size_px: number): Line => {
      const step_mm = sign / scale_px_per_mm;
      return { start_mm: grid.mm(axis, center_ijk[axis]) - step_mm * (size_px / 2 - 0.5), step_mm };
    };
    this.lines = { right: line(plane.right, width_px), down: line(plane.down, height_px) };
  }

  /** The whole plane, as large as the pane allows. A millimetre is as long across as down, whatever the voxels are. */
  static fit(grid: Grid, plane: Plane, width_px: number, height_px: number): Viewport {
    const extent_mm = ({ axis }: ScreenAxis): number => grid.mm(axis, grid.shape_ijk[axis] - 0.5) - grid.mm(axis, -0.5);
    const scale = Math.min(width_px / extent_mm(plane.right), height_px / extent_mm(plane.down));
    const halfway = (axis: Axis): number => grid.at(axis, grid.mm(axis, grid.shape_ijk[axis] - 1) / 2);
    const middle: Triple = [halfway(0), halfway(1), halfway(2)];
    return new Viewport(grid, plane, width_px, height_px, middle, scale);
  }

  /** The index along the plane's axis to the right, for each column of pixels. */
  get columns(): Float64Array {
    return this.indices("right", this.width_px);
  }

  /** The index along the plane's axis down, for each row of pixels. */
  get rows(): Float64Array {
    return this.indices("down", this.height_px);
  }

  /** The index under a place of the pane, in pixels from its upper left corner, in slice `at` of the plane. */
  index(x_px: number, y_px: number, at: number): Triple {
    const index: [number, number, number] = [at, at, at];
    index[this.plane.right.axis] = this.indexAt("right", x_px);
    index[this.plane.down.axis] = this.indexAt("down", y_px);
    return index;
  }

  /** Where an index lies, in pixels from the upper left corner of the pane. */
  pixel(index_ijk: Triple): readonly [x_px: number, y_px: number] {
    return [this.pixelAt("right", index_ijk), this.pixelAt("down", index_ijk)];
  }

  panned(dx_px: number, dy_px: number): Viewport {
    const center: [number, number, number] = [...this.center_ijk];
    center[this.plane.right.axis] = this.indexAt("right", this.width_px / 2 - dx_px);
    center[this.plane.down.axis] = this.indexAt("down", this.height_px / 2 - dy_px);
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

  private indices(way: Way, size_px: number): Float64Array {
    const { start_mm, step_mm } = this.lines[way];
    return Float64Array.from({ length: size_px }, (_, pixel) => this.grid.at(this.plane[way].axis, start_mm + step_mm * pixel));
  }

  private indexAt(way: Way, place_px: number): number {
    const { start_mm, step_mm } = this.lines[way];
    return this.grid.at(this.plane[way].axis, start_mm + step_mm * (place_px - 0.5));
  }

  private pixelAt(way: Way, index_ijk: Triple): number {
    const { start_mm, step_mm } = this.lines[way];
    const { axis } = this.plane[way];
    return (this.grid.mm(axis, index_ijk[axis]) - start_mm) / step_mm + 0.5;
  }
}
