/** What lies over a picture, in which order and in which hand. */

import { ringsOf } from "./contours";
import type { Point, Slices, Triple, View } from "./contract";
import type { ContourDisplay } from "./api";
import type { Grid } from "./grid";
import { drawCrosshair, drawDistance, drawLine, drawOutline, drawRings, drawRound, drawScale, type Stroke } from "./overlay";
import type { Pane, Part } from "./pane";

export interface Distance {
  readonly pane: Pane;
  /** The slice of the pane's plane that it lies in. */
  readonly at: number;
  readonly from_ijk: Triple;
  readonly to_ijk: Triple;
}

/** A tool in the pane under the pointer. */
export interface Mark {
  readonly at_ijk: Triple;
  readonly round: { readonly radius_mm: number; readonly dashed: boolean } | null;
  readonly line: readonly Point[];
  readonly distance_from_ijk: Triple | null;
}

export interface Over {
  readonly contours: readonly (readonly [Slices, Stroke])[];
  readonly cursor_ijk: Triple;
  /** Colour of the crosshair; null where it would be in the way. */
  readonly crosshair: string | null;
  readonly distances: readonly Distance[];
  readonly mark: Mark | null;
}

const GHOST_OPACITY: number = 0.6;
const MACHINE_OPACITY: number = 0.45;
const MEASURED = "#ffe680";
const TOOL = "#ffffff";

/** Contours from the lowest to the uppermost: ghosts, other methods, then what is selected or edited, over what the machine drew. */
export function contoursToDraw(
  view: Pick<View, "methods" | "ghosts">,
  { show, selected, ghosts, width_px }: ContourDisplay,
  edited: string | null,
  lines: (name: string) => Slices | undefined,
  machine: (name: string) => Slices | undefined,
): [Slices, Stroke][] {
  const found: [Slices, Stroke][] = [];
  const put = (slices: Slices | undefined, { colour, dash }: Pick<Stroke, "colour" | "dash">, width: number, opacity: number): void => {
    if (slices) found.push([slices, { colour, dash, width_px: width, opacity }]);
  };
  for (const ghost of view.ghosts) {
    if (show !== "none" && ghosts.includes(ghost.ghost)) put(lines(ghost.ghost), ghost, width_px, GHOST_OPACITY);
  }
  const isUpper = (name: string): boolean => name === edited || name === selected;
  for (const method of view.methods) {
    if (show === "all" && !isUpper(method.method)) put(lines(method.method), method, width_px, 1);
  }
  for (const method of view.methods.filter((each) => isUpper(each.method))) {
    if (method.method === edited) {
      put(machine(method.method), method, 1, MACHINE_OPACITY);
      // What is edited is one line whatever its dash: a hand follows it.
      put(lines(method.method), { ...method, dash: [] }, width_px + 0.5, 1);
    } else if (show !== "none") {
      put(lines(method.method), method, width_px, 1);
    }
  }
  return found;
}

/** Draws over all parts of a pane. */
export function paintOver(pane: Pane, parts: readonly Part[], over: Over): void {
  const context = pane.overlay;
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  for (const part of parts) {
    context.save();
    context.beginPath();
    context.rect(part.left_px, 0, part.width_px, context.canvas.height);
    context.clip();
    context.translate(part.left_px, 0);
    paintPart(pane, part, over);
    context.restore();
  }
}

function paintPart(pane: Pane, part: Part, over: Over): void {
  const { overlay: context, ratio, grid, plane } = pane;
  const viewport = pane.viewportOf(part);
  const at = over.cursor_ijk[plane.normal];
  for (const [slices, stroke] of over.contours) {
    if (plane.normal === 2) drawRings(context, viewport, ringsOf(slices, at), stroke, ratio);
    else drawOutline(context, viewport, slices, at, stroke, ratio);
  }
  if (over.crosshair !== null) drawCrosshair(context, viewport, over.cursor_ijk, over.crosshair, ratio);
  const measure = (from: Triple, to: Triple): void =>
    drawDistance(context, viewport.pixel(from), viewport.pixel(to), length_mm(grid, from, to), MEASURED, ratio);
  for (const { from_ijk, to_ijk } of over.distances.filter((each) => each.pane === pane && each.at === at)) measure(from_ijk, to_ijk);
  const { mix } = part;
  if (mix.show === "spyglass") drawRound(context, [mix.x_px, mix.y_px], mix.radius_px, TOOL, ratio, [2, 3]);
  const { mark } = over;
  if (mark?.distance_from_ijk) measure(mark.distance_from_ijk, mark.at_ijk);
  if (mark?.round) {
    const { radius_mm, dashed } = mark.round;
    drawRound(context, viewport.pixel(mark.at_ijk), radius_mm * viewport.scale_px_per_mm, TOOL, ratio, dashed ? [3, 3] : []);
  }
  if (mark && mark.line.length > 0) drawLine(context, viewport, mark.line, TOOL, ratio);
  drawScale(context, viewport, TOOL, ratio);
}

export function length_mm(grid: Grid, from_ijk: Triple, to_ijk: Triple): number {
  const from = grid.world(from_ijk);
  const to = grid.world(to_ijk);
  return Math.hypot(from[0] - to[0], from[1] - to[1], from[2] - to[2]);
}
