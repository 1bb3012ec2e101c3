/** What is drawn over a picture: lines of contours, the crosshair, rulers, tools. */

import { outline } from "./contours";
import type { Point, Ring, Rings, Slices, Triple } from "./contract";
import type { Viewport } from "./viewport";

/** How a contour is drawn. */
export interface Stroke {
  readonly colour: string;
  /** Pixels of the page on and off; empty: one line. */
  readonly dash: readonly number[];
  readonly width_px: number;
  readonly opacity: number;
}

export interface Drawn {
  readonly slices: Slices;
  readonly stroke: Stroke;
}

type Context = CanvasRenderingContext2D;

/** A contour in the plane of the slices: its lines as they are. */
export function drawRings(context: Context, viewport: Viewport, rings: Rings, stroke: Stroke, ratio: number): void {
  if (rings.length === 0) return;
  context.beginPath();
  for (const ring of rings) {
    ring.forEach((point, n) => {
      const [x, y] = pixelOf(viewport, point);
      if (n === 0) context.moveTo(x, y);
      else context.lineTo(x, y);
    });
    context.closePath();
  }
  finish(context, stroke, ratio);
}

/** A contour in a plane across the slices: the outline of what each slice fills. */
export function drawOutline(context: Context, viewport: Viewport, slices: Slices, at: number, stroke: Stroke, ratio: number): void {
  const { plane, grid } = viewport;
  // The plane stands on i or on j: the line through each slice runs along the other one.
  const along = plane.normal === 1 ? "u" : "v";
  const run = plane.normal === 1 ? 0 : 1;
  context.beginPath();
  for (const [from_mm, from_slice, to_mm, to_slice] of outline(slices, along, grid.mm(plane.normal, at))) {
    const ends = [
      [from_mm, from_slice],
      [to_mm, to_slice],
    ] as const;
    ends.forEach(([mm, slice], n) => {
      const index: [number, number, number] = [0, 0, slice];
      index[run] = grid.at(run, mm);
      const [x, y] = viewport.pixel(index);
      if (n === 0) context.moveTo(x, y);
      else context.lineTo(x, y);
    });
  }
  finish(context, stroke, ratio);
}

/** Lines through a place, open around it so that it can be seen. */
export function drawCrosshair(context: Context, viewport: Viewport, index: Triple, colour: string, ratio: number): void {
  const [x, y] = viewport.pixel(index);
  const open = 10 * ratio;
  context.beginPath();
  context.moveTo(0, y);
  context.lineTo(x - open, y);
  context.moveTo(x + open, y);
  context.lineTo(viewport.width_px, y);
  context.moveTo(x, 0);
  context.lineTo(x, y - open);
  context.moveTo(x, y + open);
  context.lineTo(x, viewport.height_px);
  finish(context, { colour, dash: [], width_px: 1, opacity: 0.55 }, ratio);
}

/** A line with its length in mm. */
export function drawDistance(context: Context, from: Point, to: Point, length_mm: number, colour: string, ratio: number): void {
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  for (const [x, y] of [from, to]) {
    context.moveTo(x + 3 * ratio, y);
    context.arc(x, y, 3 * ratio, 0, 2 * Math.PI);
  }
  finish(context, { colour, dash: [], width_px: 1.5, opacity: 1 }, ratio);
  write(context, `${length_mm.toFixed(1)} mm`, to[0] + 8 * ratio, to[1] - 8 * ratio, colour, ratio);
}

/** A round tool. */
export function drawRound(context: Context, at: Point, radius_px: number, colour: string, ratio: number, dash: readonly number[] = []): void {
  context.beginPath();
  context.arc(at[0], at[1], radius_px, 0, 2 * Math.PI);
  finish(context, { colour, dash, width_px: 1, opacity: 1 }, ratio);
}

/** A line that is being drawn. */
export function drawLine(context: Context, viewport: Viewport, line: Ring, colour: string, ratio: number): void {
  context.beginPath();
  line.forEach((point, n) => {
    const [x, y] = pixelOf(viewport, point);
    if (n === 0) context.moveTo(x, y);
    else context.lineTo(x, y);
  });
  finish(context, { colour, dash: [4, 3], width_px: 1.5, opacity: 1 }, ratio);
}

/** A bar of a round number of mm, at most a third of the pane. */
export function drawScale(context: Context, viewport: Viewport, colour: string, ratio: number): void {
  const length_mm = scaleLength_mm(viewport.width_px / 3 / viewport.scale_px_per_mm);
  const length_px = length_mm * viewport.scale_px_per_mm;
  const right = viewport.width_px - 12 * ratio;
  const y = viewport.height_px - 12 * ratio;
  const tick = 4 * ratio;
  context.beginPath();
  context.moveTo(right - length_px, y - tick);
  context.lineTo(right - length_px, y);
  context.lineTo(right, y);
  context.lineTo(right, y - tick);
  finish(context, { colour, dash: [], width_px: 1.5, opacity: 1 }, ratio);
  context.textAlign = "right";
  write(context, `${length_mm} mm`, right, y - 7 * ratio, colour, ratio);
  context.textAlign = "left";
}

/** The longest of 1, 2, 5, 10, 20, 50, ... mm that is not longer than what there is room for; 1 mm at least. */
export function scaleLength_mm(room_mm: number): number {
  const power = 10 ** Math.max(0, Math.floor(Math.log10(room_mm)));
  const step = [5, 2].find((factor) => factor * power <= room_mm) ?? 1;
  return step * power;
}

function pixelOf(viewport: Viewport, [u_mm, v_mm]: Point): readonly [number, number] {
  const { grid } = viewport;
  return viewport.pixel([grid.at(0, u_mm), grid.at(1, v_mm), 0]);
}

function finish(context: Context, { colour, dash, width_px, opacity }: Stroke, ratio: number): void {
  context.globalAlpha = opacity;
  context.strokeStyle = colour;
  context.lineWidth = width_px * ratio;
  context.setLineDash(dash.map((length) => length * ratio));
  context.stroke();
  context.globalAlpha = 1;
}

function write(context: Context, text: string, x: number, y: number, colour: string, ratio: number): void {
  context.font = `${12 * ratio}px system-ui, sans-serif`;
  context.lineWidth = 3 * ratio;
  context.setLineDash([]);
  context.strokeStyle = "#000";
  context.strokeText(text, x, y);
  context.fillStyle = colour;
  context.fillText(text, x, y);
}
