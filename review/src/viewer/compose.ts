/** How two pictures of the same place become one. */

import { NOTHING } from "./sample";
import { grey, ramp, type Ramp, type Window } from "./window";

export type CompareMode = "blend" | "checkerboard" | "spyglass" | "side-by-side" | "difference";

export interface Compare {
  readonly mode: CompareMode;
  /** How much of the planning CT: 0 is the CBCT alone. */
  readonly blend_percent: number;
  readonly spyglass_radius_px: number;
}

/** What a pane, or half of it, shows. */
export type Mix =
  | { readonly show: "cbct" }
  | { readonly show: "planning" }
  | { readonly show: "blend"; readonly planning_share: number }
  | { readonly show: "checkerboard" }
  | { readonly show: "spyglass"; readonly x_px: number; readonly y_px: number; readonly radius_px: number }
  | { readonly show: "difference" };

export interface Pictures {
  /** HU by pixel; `NOTHING` where there is nothing. */
  readonly cbct_hu: Float32Array;
  readonly planning_hu: Float32Array;
  readonly cbct_window: Window;
  readonly planning_window: Window;
}

/** Squares of the checkerboard along each side of a picture. */
export const SQUARES: number = 8;

/** Whether a mix looks at the CBCT, at the planning CT. */
export function needs(mix: Mix): { readonly cbct: boolean; readonly planning: boolean } {
  switch (mix.show) {
    case "cbct":
      return { cbct: true, planning: false };
    case "planning":
      return { cbct: false, planning: true };
    case "blend":
      return { cbct: mix.planning_share < 1, planning: mix.planning_share > 0 };
    default:
      return { cbct: true, planning: true };
  }
}

/**
 * Writes opaque grey pixels.
 *
 * @param into width × height pixels, each the four bytes of a canvas in one number.
 */
export function compose(pictures: Pictures, mix: Mix, width_px: number, height_px: number, into: Uint32Array): void {
  const { cbct_hu, planning_hu } = pictures;
  const below = ramp(pictures.cbct_window);
  const above = ramp(pictures.planning_window);
  const cbct = (pixel: number): number => grey(cbct_hu[pixel]!, below);
  const planning = (pixel: number): number => grey(planning_hu[pixel]!, above);
  switch (mix.show) {
    case "cbct":
      return alone(cbct_hu, below, into);
    case "planning":
      return alone(planning_hu, above, into);
    case "blend":
      if (mix.planning_share <= 0) return alone(cbct_hu, below, into);
      if (mix.planning_share >= 1) return alone(planning_hu, above, into);
      return blend(cbct_hu, below, planning_hu, above, mix.planning_share, into);
    case "checkerboard":
      for (let y = 0, pixel = 0; y < height_px; y++) {
        const row = Math.floor((y * SQUARES) / height_px);
        for (let x = 0; x < width_px; x++, pixel++) {
          const odd = (row + Math.floor((x * SQUARES) / width_px)) % 2 === 1;
          into[pixel] = opaque(odd ? planning(pixel) : cbct(pixel));
        }
      }
      return;
    case "spyglass": {
      const reach = mix.radius_px * mix.radius_px;
      for (let y = 0, pixel = 0; y < height_px; y++) {
        const dy = y + 0.5 - mix.y_px;
        for (let x = 0; x < width_px; x++, pixel++) {
          const dx = x + 0.5 - mix.x_px;
          into[pixel] = opaque(dx * dx + dy * dy < reach ? planning(pixel) : cbct(pixel));
        }
      }
      return;
    }
    case "difference": {
      const differences = differenceRamp(pictures.cbct_window);
      for (let pixel = 0; pixel < into.length; pixel++) {
        into[pixel] = opaque(difference(cbct_hu[pixel]!, planning_hu[pixel]!, differences));
      }
      return;
    }
  }
}

/** Differences from minus to plus half a window, so that the same knob widens both. */
export function differenceRamp({ width_hu }: Window): Ramp {
  return ramp({ center_hu: 0, width_hu });
}

/** Middle grey where both are the same, white where the CBCT is brighter by half a window; black where one is nothing. */
export function difference(cbct_hu: number, planning_hu: number, differences: Ramp): number {
  return cbct_hu === NOTHING || planning_hu === NOTHING ? 0 : grey(cbct_hu - planning_hu, differences);
}

function alone(hu: Float32Array, window: Ramp, into: Uint32Array): void {
  for (let pixel = 0; pixel < into.length; pixel++) into[pixel] = opaque(grey(hu[pixel]!, window));
}

function blend(
  cbct_hu: Float32Array,
  below: Ramp,
  planning_hu: Float32Array,
  above: Ramp,
  share: number,
  into: Uint32Array,
): void {
  for (let pixel = 0; pixel < into.length; pixel++) {
    const cbct = grey(cbct_hu[pixel]!, below);
    const hu = planning_hu[pixel]!;
    // Where the planning CT has nothing, the CBCT is not dimmed: a shade would look like anatomy.
    into[pixel] = opaque(hu === NOTHING ? cbct : cbct + (grey(hu, above) - cbct) * share);
  }
}

function opaque(value: number): number {
  const level = (value + 0.5) | 0;
  return (0xff000000 | (level << 16) | (level << 8) | level) >>> 0;
}
