/**
 * What a hand does in the panes: with the mouse or a pen, or with keys.
 *
 * The wheel leads through the slices, with Shift by five, with Ctrl it zooms, with Alt it makes the tool larger; the left button does what
 * the chosen tool does (with Shift, what is moved is turned), the middle one pans, the right one changes the window. With a pane focused, Alt and the arrows move a point by a
 * millimetre, and Space applies the tool there.
 */

import type { Brush } from "../editing/brush";
import type { EditingSession } from "../editing/session";
import type { Point, Triple } from "./contract";
import type { Axis } from "./grid";
import { nameOf } from "./keys";
import { length_mm, type Distance, type Mark } from "./paint";
import type { Pane, Part } from "./pane";
import { Drawing, isDrawing, type DrawingTool, type Tool } from "./tools";
import type { Viewport } from "./viewport";

/** Where a hand works, and who hears of it. */
export interface Bench {
  /** The plane of the slices first. */
  readonly panes: readonly [Pane, Pane, Pane];
  readonly cursor_ijk: Triple;
  readonly forward: 1 | -1;
  readonly tool: Tool;
  readonly brush: Brush;
  readonly session: EditingSession | null;
  parts(pane: Pane): readonly Part[];
  look(index_ijk: Triple, origin?: Pane): void;
  dragWindow(dx_px: number, dy_px: number): void;
  resizeTool(sense: 1 | -1): void;
  /** The pointer is at another place, or in no pane. */
  pointed(): void;
  measured(length_mm: number): void;
  dragged(by: Dragged): void;
  draw(pictures?: boolean): void;
}

/** A hand took hold of the picture at one place and is at another one now. */
export interface Dragged {
  readonly from_xyz_mm: Triple;
  readonly to_xyz_mm: Triple;
  /** The axis of the world nearest to the line of sight. */
  readonly axis: Axis;
  /** It turns the picture rather than pushing it. */
  readonly turns: boolean;
}

/** What is under way between the press of a button and its release. */
type Drag =
  | { readonly does: "cursor" }
  | { readonly does: "pan" | "window"; readonly last: { x: number; y: number } }
  | { readonly does: "distance"; readonly from_ijk: Triple }
  | { readonly does: "move"; last_xyz_mm: Triple; readonly turns: boolean }
  | { readonly does: "draw"; readonly drawing: Drawing };

export interface Hover {
  readonly pane: Pane;
  readonly part: Part;
  readonly x_px: number;
  readonly y_px: number;
}

/** A wheel's notch is 100 to 120 px; a touchpad comes in small bites. */
const NOTCH_PX: number = 60;
const LINE_PX: number = 40;
const SAME_PLACE_MM: number = 0.5;
const SHORTEST_MM: number = 0.1;

const WAYS: Readonly<Record<string, readonly [right: number, down: number]>> = {
  "Alt+ArrowLeft": [-1, 0],
  "Alt+ArrowRight": [1, 0],
  "Alt+ArrowUp": [0, -1],
  "Alt+ArrowDown": [0, 1],
};

export class Hand {
  hover: Hover | null = null;
  distances: Distance[] = [];
  private drag: Drag | null = null;
  /** Where keys draw, and the corners of a line that they have set. */
  private point_mm: Point | null = null;
  private corners: Point[] = [];
  private wheel_px = 0;

  constructor(private readonly bench: Bench) {
    for (const pane of bench.panes) this.listen(pane);
  }

  /** Whether an operation on the contour is under way. */
  get drawing(): boolean {
    return this.drag?.does === "draw";
  }

  /** Whether what is under way has to end in the planes that it began in. */
  get holding(): boolean {
    return this.drawing || this.drag?.does === "distance";
  }

  /** Whether there is something that Escape ends. */
  get busy(): boolean {
    return this.drawing || this.corners.length > 0;
  }

  /** Lifts the hand: what was under way is done. */
  end(): void {
    const { drag } = this;
    this.drag = null;
    if (drag?.does === "draw") this.finish(drag.drawing);
    if (drag?.does === "distance" && this.hover) this.measure(this.hover.pane, drag.from_ijk, this.index());
    if (drag) this.bench.draw(false);
  }

  /** Puts the tool away. */
  rest(): void {
    this.end();
    this.forget();
  }

  /** Corners that keys have set are of their slice alone. */
  forget(): void {
    this.corners = [];
  }

  /** The index under the pointer, or where the planes cross. */
  index(): Triple {
    const { cursor_ijk } = this.bench;
    if (!this.hover) return cursor_ijk;
    const { pane, part, x_px, y_px } = this.hover;
    return pane.viewportOf(part).index(x_px, y_px, cursor_ijk[pane.plane.normal]);
  }

  /** What the tool looks like in a pane; null where the pointer is elsewhere. */
  mark(pane: Pane): Mark | null {
    if (this.hover?.pane !== pane) return null;
    const { tool, brush } = this.bench;
    const at_ijk = this.index();
    const main = pane === this.main;
    const isRound = main && (tool === "brush" || tool === "eraser" || tool === "nudge");
    const line = this.drag?.does === "draw" ? this.drag.drawing.line : this.corners;
    return {
      at_ijk,
      round: isRound ? { radius_mm: brush.diameter_mm / 2, dashed: tool === "eraser" } : null,
      line: main && line.length > 0 ? [...line, this.mm(at_ijk)] : [],
      distance_from_ijk: this.drag?.does === "distance" ? this.drag.from_ijk : null,
    };
  }

  /** Draws with keys where the plane of the slices has the focus. Returns whether it was ours. */
  key(event: KeyboardEvent): boolean {
    if (document.activeElement !== this.main.root || this.drag) return false;
    const from = this.point_mm ?? this.mm(this.bench.cursor_ijk);
    const way = WAYS[nameOf(event)];
    if (way) this.movePoint(from, way);
    else if (event.key === " " && this.bench.tool !== "navigate") this.apply(from);
    else return false;
    return true;
  }

  // Pointers

  private listen(pane: Pane): void {
    const { root } = pane;
    root.addEventListener("contextmenu", (event) => event.preventDefault());
    root.addEventListener("pointerdown", (event) => this.press(pane, event));
    root.addEventListener("pointermove", (event) => this.move(pane, event));
    root.addEventListener("pointerup", () => this.end());
    root.addEventListener("pointercancel", () => this.end());
    root.addEventListener("pointerleave", () => this.leave());
    root.addEventListener("wheel", (event) => this.turn(pane, event), { passive: false });
    // The middle button would scroll the page.
    root.addEventListener("mousedown", (event) => {
      if (event.button === 1) event.preventDefault();
    });
  }

  private press(pane: Pane, event: PointerEvent): void {
    if (this.drag) return;
    pane.root.setPointerCapture(event.pointerId);
    this.point(pane, event);
    const last = { x: event.clientX, y: event.clientY };
    if (event.button === 1) this.drag = { does: "pan", last };
    else if (event.button === 2) this.drag = { does: "window", last };
    else if (event.button === 0) this.drag = this.begun(pane, event.shiftKey);
    this.bench.draw(false);
  }

  private begun(pane: Pane, shift: boolean): Drag {
    const { tool, session } = this.bench;
    const index = this.index();
    if (tool === "distance") return { does: "distance", from_ijk: index };
    if (tool === "move") return { does: "move", last_xyz_mm: pane.grid.world(index), turns: shift };
    if (isDrawing(tool) && session && pane === this.main) {
      session.work();
      return { does: "draw", drawing: this.draw(session, tool, this.mm(index)) };
    }
    this.bench.look(index, pane);
    return { does: "cursor" };
  }

  private move(pane: Pane, event: PointerEvent): void {
    const { drag, bench } = this;
    const owner = drag ? (this.hover?.pane ?? pane) : pane;
    if (drag?.does === "draw") this.follow(drag.drawing, owner, event);
    else this.point(owner, event);
    if (drag?.does === "cursor") bench.look(this.index(), owner);
    if (drag?.does === "move") this.carry(drag, owner);
    if (drag?.does === "pan" || drag?.does === "window") {
      const { last } = drag;
      const dx = event.clientX - last.x;
      const dy = event.clientY - last.y;
      last.x = event.clientX;
      last.y = event.clientY;
      if (drag.does === "pan") owner.look(this.viewportOf(owner).panned(dx * owner.ratio, dy * owner.ratio));
      else bench.dragWindow(dx, dy);
    }
    // A pan moves pictures, and so does a spyglass; pictures that did not change are not drawn again.
    bench.draw();
  }

  private carry(drag: Extract<Drag, { does: "move" }>, pane: Pane): void {
    const to_xyz_mm = pane.grid.world(this.index());
    const sight = pane.grid.axes[pane.plane.normal].map(Math.abs);
    const axis = sight.indexOf(Math.max(...sight)) as Axis;
    this.bench.dragged({ from_xyz_mm: drag.last_xyz_mm, to_xyz_mm, axis, turns: drag.turns });
    drag.last_xyz_mm = to_xyz_mm;
  }

  private follow(drawing: Drawing, pane: Pane, event: PointerEvent): void {
    // A browser gathers moves; a brush wants all of them.
    const moves = event.getCoalescedEvents();
    for (const each of moves.length > 0 ? moves : [event]) {
      this.point(pane, each);
      if (drawing.move(this.mm(this.index()))) this.bench.session?.touch();
    }
  }

  private leave(): void {
    if (this.drag) return;
    this.hover = null;
    this.bench.pointed();
    this.bench.draw();
  }

  private turn(pane: Pane, event: WheelEvent): void {
    event.preventDefault();
    // The pointer is that of what is under way, wherever the wheel turns.
    if (this.drag) return;
    this.point(pane, event);
    // With Shift a browser turns the wheel sideways.
    const delta = (event.deltaY || event.deltaX) * (event.deltaMode === 1 ? LINE_PX : 1);
    if (event.ctrlKey && this.hover) {
      pane.look(this.viewportOf(pane).zoomed(Math.exp(-delta / 500), this.hover.x_px, this.hover.y_px));
      return this.bench.draw();
    }
    this.wheel_px += delta;
    if (Math.abs(this.wheel_px) < NOTCH_PX) return;
    const notch = this.wheel_px > 0 ? 1 : -1;
    this.wheel_px = 0;
    if (event.altKey) return this.bench.resizeTool(notch === 1 ? -1 : 1);
    const { normal } = pane.plane;
    const index: [number, number, number] = [...this.bench.cursor_ijk];
    index[normal] += notch * (event.shiftKey ? 5 : 1) * (normal === 2 ? this.bench.forward : 1);
    this.bench.look(index, pane);
  }

  private point(pane: Pane, event: Pick<PointerEvent, "clientX" | "clientY">): void {
    const found = pane.locate(event, this.bench.parts(pane));
    // A drag stays in the half that it began in.
    const part = this.drag && this.hover ? this.hover.part : found.part;
    this.hover = { pane, part, x_px: found.x_px + found.part.left_px - part.left_px, y_px: found.y_px };
    if (pane === this.main) this.point_mm = this.mm(this.index());
    this.bench.pointed();
  }

  // Keys

  private movePoint(from: Point, [right, down]: readonly [number, number]): void {
    const { tool, session } = this.bench;
    const { plane } = this.main;
    const to: [number, number] = [...from];
    to[plane.right.axis as 0 | 1] += right * plane.right.sign;
    to[plane.down.axis as 0 | 1] += down * plane.down.sign;
    this.point_mm = to;
    const index = this.indexOf(to);
    if (tool === "navigate") this.bench.look(index);
    if (tool === "nudge" && session) {
      const drawing = this.draw(session, tool, from);
      drawing.move(to);
      this.finish(drawing);
    }
    const part = this.bench.parts(this.main)[0]!;
    const [x_px, y_px] = this.main.viewportOf(part).pixel(index);
    this.hover = { pane: this.main, part, x_px, y_px };
    this.bench.pointed();
    this.bench.draw();
  }

  private apply(at: Point): void {
    const { tool, session } = this.bench;
    const last = this.corners.at(-1);
    if (tool === "distance") {
      if (last) this.measure(this.main, this.indexOf(last), this.indexOf(at));
      this.corners = last ? [] : [at];
    } else if (session && (tool === "brush" || tool === "eraser")) {
      this.finish(this.draw(session, tool, at));
    } else if (session && (tool === "add" || tool === "subtract")) {
      const again = last !== undefined && Math.hypot(at[0] - last[0], at[1] - last[1]) < SAME_PLACE_MM;
      if (!again) this.corners.push(at);
      else if (this.corners.length >= 3) this.close(session, tool);
    }
    this.bench.draw(false);
  }

  /** The same place twice closes a line. */
  private close(session: EditingSession, tool: DrawingTool): void {
    const [first, ...others] = this.corners;
    this.corners = [];
    if (!first) return;
    const drawing = this.draw(session, tool, first);
    for (const corner of others) drawing.move(corner);
    this.finish(drawing);
  }

  // Both

  private draw(session: EditingSession, tool: DrawingTool, at: Point): Drawing {
    const { brush, cursor_ijk } = this.bench;
    return new Drawing(session.edits, tool, brush, cursor_ijk[2], this.main.grid.stack, at);
  }

  private finish(drawing: Drawing): void {
    if (drawing.end()) this.bench.session?.touch();
  }

  private measure(pane: Pane, from_ijk: Triple, to_ijk: Triple): void {
    const length = length_mm(pane.grid, from_ijk, to_ijk);
    if (length < SHORTEST_MM) return;
    this.distances.push({ pane, at: this.bench.cursor_ijk[pane.plane.normal], from_ijk, to_ijk });
    this.bench.measured(length);
  }

  private get main(): Pane {
    return this.bench.panes[0];
  }

  private viewportOf(pane: Pane): Viewport {
    return pane.viewportOf(this.bench.parts(pane)[0]!);
  }

  private mm(index_ijk: Triple): Point {
    const { grid } = this.main;
    return [grid.mm(0, index_ijk[0]), grid.mm(1, index_ijk[1])];
  }

  private indexOf([u_mm, v_mm]: Point): Triple {
    const { grid } = this.main;
    return [grid.at(0, u_mm), grid.at(1, v_mm), this.bench.cursor_ijk[2]];
  }
}
