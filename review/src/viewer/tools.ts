/** What a hand does in the plane of the slices, from the press of a button to its release. */

import { bounded, pushed, reach, stroke, type Brush } from "../editing/brush";
import { add, closed, subtract, thinned } from "../editing/clip";
import type { Edits } from "../editing/edits";
import type { Point, Rings } from "./contract";
import type { Stack } from "./stack";

export type Tool = "navigate" | "distance" | "move" | "brush" | "eraser" | "nudge" | "add" | "subtract";

export type DrawingTool = Exclude<Tool, "navigate" | "distance" | "move">;

export function isDrawing(tool: Tool): tool is DrawingTool {
  return tool !== "navigate" && tool !== "distance" && tool !== "move";
}

/** A brush that moved less than this part of its radius has covered nothing that would be seen. */
const STEP: number = 0.08;

/** One operation on the contour while it is under way. */
export class Drawing {
  private last: Point;
  private readonly points: Point[];
  private readonly before = new Map<number, Rings>();

  constructor(
    private readonly edits: Edits,
    private readonly tool: DrawingTool,
    private readonly brush: Brush,
    private readonly slice: number,
    private readonly stack: Stack,
    at: Point,
  ) {
    this.last = at;
    this.points = [at];
    edits.begin();
    if (tool === "brush" || tool === "eraser") this.paint(at);
  }

  /** The line that a freehand tool has drawn so far. */
  get line(): readonly Point[] {
    return this.tool === "add" || this.tool === "subtract" ? this.points : [];
  }

  /** The hand went on. Returns whether the contour changed. */
  move(to: Point): boolean {
    const far_mm = Math.hypot(to[0] - this.last[0], to[1] - this.last[1]);
    if (this.tool === "add" || this.tool === "subtract") {
      if (far_mm > 0.2) {
        this.points.push(to);
        this.last = to;
      }
      return false;
    }
    if (far_mm < (STEP * this.brush.diameter_mm) / 2) return false;
    if (this.tool === "nudge") this.push(to);
    else this.paint(to);
    this.last = to;
    return true;
  }

  /** The hand is lifted. Returns whether the contour changed. */
  end(): boolean {
    if (this.tool === "add" || this.tool === "subtract") {
      const operation = this.tool === "add" ? add : subtract;
      this.edits.change(this.slice, operation(this.edits.at(this.slice), closed(this.points)));
    } else {
      for (const [slice, rings] of this.before) this.edits.change(slice, this.thin(slice, rings));
    }
    return this.edits.commit();
  }

  private thin(slice: number, before: Rings): Rings {
    const now = this.edits.at(slice);
    return now === before ? now : thinned(now, before);
  }

  private paint(to: Point): void {
    const operation = this.tool === "brush" ? add : subtract;
    for (const { slice, radius_mm } of reach(bounded(this.brush), this.slice, this.stack)) {
      this.remember(slice);
      this.edits.change(slice, operation(this.edits.at(slice), [stroke(this.last, to, radius_mm)]));
    }
  }

  private push(to: Point): void {
    for (const { slice, radius_mm } of reach(bounded(this.brush), this.slice, this.stack)) {
      this.remember(slice);
      this.edits.change(slice, pushed(this.edits.at(slice), this.last, to, radius_mm));
    }
  }

  private remember(slice: number): void {
    if (!this.before.has(slice)) this.before.set(slice, this.edits.at(slice));
  }
}
