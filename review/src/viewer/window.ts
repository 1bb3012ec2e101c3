/** From HU to grey. */

import { NOTHING } from "./sample";

/** HU from `center_hu - width_hu / 2` (black) to `center_hu + width_hu / 2` (white). */
export interface Window {
  readonly center_hu: number;
  readonly width_hu: number;
}

export type WindowPreset = "lung" | "soft" | "bone" | "auto";

/** Windows in wide use for CT of the chest and abdomen; `auto` is computed from what is there. */
export const PRESETS: Readonly<Record<Exclude<WindowPreset, "auto">, Window>> = {
  lung: { center_hu: -600, width_hu: 1500 },
  soft: { center_hu: 40, width_hu: 400 },
  bone: { center_hu: 400, width_hu: 1800 },
};

const NARROWEST_HU: number = 1;

/** A window as a pixel needs it: what is black, and how many levels a HU is. */
export interface Ramp {
  readonly black_hu: number;
  readonly levels_per_hu: number;
}

export function ramp({ center_hu, width_hu }: Window): Ramp {
  return { black_hu: center_hu - width_hu / 2, levels_per_hu: 255 / width_hu };
}

/** Grey 0 to 255 with fractions; nothing is black. */
export function grey(hu: number, { black_hu, levels_per_hu }: Ramp): number {
  if (hu === NOTHING) return 0;
  const value = (hu - black_hu) * levels_per_hu;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/** Wider by a horizontal, brighter by a vertical drag: a pixel is a 250th of the width. */
export function dragged(window: Window, dx_px: number, dy_px: number): Window {
  const step = Math.max(1, window.width_hu / 250);
  return {
    center_hu: window.center_hu + dy_px * step,
    width_hu: Math.max(NARROWEST_HU, window.width_hu + dx_px * step),
  };
}

/**
 * From the 1st to the 99th percentile of the middle of a slice, where the patient is and not the air around.
 *
 * @returns `null` where there is nothing to judge by.
 */
export function automatic(
  values: Int16Array,
  columns: number,
  rows: number,
  slice: number,
  outside: number,
): Window | null {
  const found: number[] = [];
  for (let j = Math.floor(rows / 4); j < Math.ceil((3 * rows) / 4); j++) {
    const row = (slice * rows + j) * columns;
    for (let i = Math.floor(columns / 4); i < Math.ceil((3 * columns) / 4); i++) {
      const value = values[row + i];
      if (value !== undefined && value !== outside) found.push(value);
    }
  }
  if (found.length === 0) return null;
  const sorted = Int16Array.from(found).sort();
  const low = sorted[Math.floor(0.01 * (sorted.length - 1))]!;
  const high = sorted[Math.ceil(0.99 * (sorted.length - 1))]!;
  return { center_hu: (low + high) / 2, width_hu: Math.max(NARROWEST_HU, high - low) };
}

/** The windows of both images: those of a preset, or what a hand made of them. */
export class Windows {
  preset: WindowPreset | null = "soft";
  cbct: Window = PRESETS.soft;
  planning: Window = PRESETS.soft;

  /** @param found The window that an image's own values ask for; null where they are not there yet. */
  constructor(private readonly found: (image: "cbct" | "planning") => Window | null) {}

  choose(window: WindowPreset | Window): void {
    this.preset = typeof window === "string" ? window : null;
    if (window === "auto") return this.settle();
    this.cbct = typeof window === "string" ? PRESETS[window] : window;
    this.planning = this.cbct;
  }

  /** Another part of an image is there: what is automatic is found anew. */
  settle(): void {
    if (this.preset !== "auto") return;
    this.cbct = this.found("cbct") ?? this.cbct;
    this.planning = this.found("planning") ?? this.planning;
  }

  /** Both by the same way, so that they stay as far apart as they are. */
  drag(dx_px: number, dy_px: number): void {
    this.preset = null;
    this.cbct = dragged(this.cbct, dx_px, dy_px);
    this.planning = dragged(this.planning, dx_px, dy_px);
  }
}
