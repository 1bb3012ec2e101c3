/** The pictures of one propagation: what is shown, what the hand does, what the page hears of it. */

import { bounded, type Brush } from "../editing/brush";
import { smoothed } from "../editing/shape";
import { DraftProblem, type DraftStorage, type Saving } from "../editing/saver";
import { EditingSession, type Restored } from "../editing/session";
import { needs, type Compare, type CompareMode, type Mix } from "./compose";
import { bySlice, contoursOn, ForeignFrameError, ringsOf, slicesWith } from "./contours";
import type { Contours, DraftBody, Http, Loop, Point, Slices, Triple, View, ViewImage } from "./contract";
import { Emitter } from "./emitter";
import { Grid } from "./grid";
import { nextHolding, nextWorst, worstFirst } from "./jumps";
import { commandOf, nameOf, type Command } from "./keys";
import { drawCrosshair, drawDistance, drawLine, drawOutline, drawRings, drawRound, drawScale, type Stroke } from "./overlay";
import { element, Pane, partsOf, type Part } from "./pane";
import { letters, planesOf } from "./planes";
import { SliceBar } from "./slicebar";
import { Drawing, isDrawing, type Tool } from "./tools";
import type { Viewport } from "./viewport";
import { load, Volume } from "./volume";
import { automatic, dragged, PRESETS, type Window, type WindowPreset } from "./window";

export interface ViewerTexts {
  readonly planes: { readonly axial: string; readonly coronal: string; readonly sagittal: string };
  readonly slice_bar: string;
  slice_value(slice: number, slices: number, z_mm: number): string;
  readonly loading: string;
  readonly foreign_frame: string;
  readonly no_planning: string;
  readonly copy_of_draft?: string;
}

export interface ViewerOptions {
  readonly http: Http;
  readonly texts: ViewerTexts;
  readonly tool?: Tool;
  /** Where the copy of a draft lies; null: nowhere. */
  readonly storage?: DraftStorage | null;
}

export interface ContourDisplay {
  readonly show: "all" | "one" | "none";
  readonly selected: string;
  /** Names of the ghosts that are shown. */
  readonly ghosts: readonly string[];
  readonly width_px: number;
}

export interface EditingState {
  readonly method: string;
  readonly edited_slices: readonly number[];
  readonly volume_cc: number;
  readonly can_undo: boolean;
  readonly can_redo: boolean;
  readonly seconds: number;
  readonly saving: Saving;
}

export interface ViewerState {
  readonly slice: number;
  readonly slices: number;
  readonly cursor_xyz_mm: Triple;
  readonly window: Window;
  readonly preset: WindowPreset | null;
  readonly compare: Compare;
  readonly flicker: boolean;
  readonly interpolation: boolean;
  readonly contours: ContourDisplay;
  readonly tool: Tool;
  readonly brush: Brush;
  readonly zoom: number;
  readonly editing: EditingState | null;
}

/** What lies under the pointer: stored integers, never what was interpolated for the screen. */
export interface Probe {
  readonly slice: number;
  readonly world_xyz_mm: Triple;
  readonly cbct_hu: number | null;
  readonly planning_hu: number | null;
}

export interface ViewerEvents {
  loading: { readonly image: "cbct" | "planning"; readonly loaded_slices: number; readonly slices: number };
  failed: { readonly what: "cbct" | "planning" | "contours"; readonly error: Error };
  refused: { readonly error: ForeignFrameError };
  state: ViewerState;
  probe: Probe | null;
  distance: { readonly length_mm: number };
  editing: EditingState | null;
  restored: Restored;
}

export interface Viewer {
  readonly loaded: Promise<void>;
  readonly state: ViewerState;
  readonly adjusting: boolean;
  on<Name extends keyof ViewerEvents>(name: Name, listener: (value: ViewerEvents[Name]) => void): () => void;
  run(command: Command): boolean;
  keyDown(event: KeyboardEvent): boolean;
  keyUp(event: KeyboardEvent): boolean;
  goToSlice(slice: number): void;
  goTo(world_xyz_mm: Triple): void;
  setWindow(window: WindowPreset | Window): void;
  setCompare(change: Partial<Compare>): void;
  setFlicker(held: boolean): void;
  setInterpolation(on: boolean): void;
  setContours(change: Partial<ContourDisplay>): void;
  setTool(tool: Tool): void;
  setBrush(change: Partial<Brush>): void;
  clearDistances(): void;
  edit(method: string): Promise<void>;
  leaveEditing(): Promise<void>;
  draft(): DraftBody | null;
  saveDraft(): Promise<string>;
  discardDraft(): Promise<void>;
  resolveConflict(whose: "mine" | "theirs"): Promise<void>;
  copySlice(from: string): boolean;
  preview(image: ViewImage | null, contours?: Readonly<Record<string, readonly Loop[]>>): void;
  destroy(): void;
}

/** Shows the images of a propagation in an element of a given size. */
export function createViewer(root: HTMLElement, view: View, options: ViewerOptions): Viewer {
  return new PropagationViewer(root, view, options);
}

/** A planning CT that does not lie on the CBCT's grid cannot be laid over it. */
class ForeignGridError extends Error {
  constructor() {
    super("the planning CT was not resampled on the grid of the CBCT");
    this.name = "ForeignGridError";
  }
}

interface Distance {
  readonly pane: Pane;
  readonly at: number;
  readonly from_ijk: Triple;
  readonly to_ijk: Triple;
}

/** What is under way between the press of a button and its release. */
type Drag =
  | { readonly does: "cursor" }
  | { readonly does: "pan" | "window"; readonly last: { x: number; y: number } }
  | { readonly does: "distance"; readonly from_ijk: Triple }
  | { readonly does: "draw"; readonly drawing: Drawing };

interface Hover {
  readonly pane: Pane;
  readonly part: Part;
  readonly x_px: number;
  readonly y_px: number;
}

const NAVIGATION_PX: number = 60;
const WIDTHS_PX: readonly number[] = [1, 2, 3];
const GHOST_OPACITY: number = 0.6;
const SPYGLASS_PX = { least: 20, most: 400 } as const;
const DISTANCE_COLOUR = "#ffe680";

class PropagationViewer implements Viewer {
  readonly loaded: Promise<void>;
  private readonly events = new Emitter<ViewerEvents>();
  private readonly grid: Grid;
  private readonly panes: readonly [Pane, Pane, Pane];
  private readonly bar: SliceBar;
  private readonly frame: HTMLElement;
  private readonly cbct: Volume;
  private planning: Volume | null = null;
  private planning_label = "";
  private previewed: { volume: Volume; label: string; stop: AbortController; contours: ReadonlyMap<string, Slices> } | null = null;
  private contours: ReadonlyMap<string, Slices> = new Map();
  private foreign = false;
  private cursor_ijk: Triple;
  private cbct_window: Window = PRESETS.soft;
  private planning_window: Window = PRESETS.soft;
  private preset: WindowPreset | null = "soft";
  private compare: Compare = { mode: "blend", blend_percent: 0, spyglass_radius_px: 90 };
  private flicker = false;
  private interpolation = true;
  private display: ContourDisplay;
  private tool: Tool;
  private brush: Brush = { diameter_mm: 8, sphere: false };
  private session: EditingSession | null = null;
  private saving: Saving = { state: "saved" };
  private drag: Drag | null = null;
  private hover: Hover | null = null;
  private distances: Distance[] = [];
  /** Where the keyboard draws, and the corners of a line that it has set. */
  private point_mm: Point | null = null;
  private corners: Point[] = [];
  private wheel_px = 0;
  private readonly stop = new AbortController();
  private readonly resizes: ResizeObserver;
  private readonly order: readonly number[];
  /** 1: slices are counted downwards, as the other two planes show them. */
  private readonly forward: 1 | -1;
  /** The slice that a jump to disagreement led to last. */
  private worst: number | null = null;
  private due: number | null = null;
  private pictures = true;
  private changed = true;
  private told: EditingState | null = null;

  constructor(
    root: HTMLElement,
    private readonly view: View,
    private readonly options: ViewerOptions,
  ) {
    const { cbct } = view.images;
    this.grid = new Grid(cbct);
    this.cbct = new Volume(cbct);
    const planes = planesOf(this.grid);
    const pane = (n: 0 | 1 | 2): Pane => new Pane(this.grid, planes[n], options.texts.planes[planes[n].name]);
    this.panes = [pane(0), pane(1), pane(2)];
    const upright = planes.find(({ down }) => down.axis === 2);
    this.forward = upright?.down.sign ?? 1;
    const along = (sense: number): string => letters(this.grid.axes[2].map((part) => part * sense) as unknown as Triple);
    this.bar = new SliceBar(options.texts.slice_bar, [along(-this.forward), along(this.forward)], (slice) => this.goToSlice(slice));
    this.order = worstFirst(view.disagreement);
    this.tool = options.tool ?? "navigate";
    this.display = {
      show: "all",
      selected: (view.methods.find(({ recommended }) => recommended) ?? view.methods[0])?.method ?? "",
      ghosts: view.ghosts.map(({ ghost }) => ghost),
      width_px: 2,
    };
    this.cursor_ijk = this.start();
    this.frame = element("div", "cv-root");
    this.frame.append(...this.panes.map((each) => each.root), this.bar.root);
    root.append(this.frame);
    for (const each of this.panes) this.listen(each);
    globalThis.addEventListener("blur", this.lost);
    this.resizes = new ResizeObserver(() => this.draw());
    for (const each of this.panes) this.resizes.observe(each.root);
    this.resizes.observe(this.bar.root);
    this.loaded = this.begin();
    this.draw();
  }

  on<Name extends keyof ViewerEvents>(name: Name, listener: (value: ViewerEvents[Name]) => void): () => void {
    return this.events.on(name, listener);
  }

  get state(): ViewerState {
    const main = this.panes[0];
    return {
      slice: this.slice,
      slices: this.slices,
      cursor_xyz_mm: this.grid.world(this.cursor_ijk),
      window: this.cbct_window,
      preset: this.preset,
      compare: this.compare,
      flicker: this.flicker,
      interpolation: this.interpolation,
      contours: this.display,
      tool: this.tool,
      brush: this.brush,
      zoom: main.viewport.scale_px_per_mm / main.fitting_px_per_mm,
      editing: this.editing,
    };
  }

  get adjusting(): boolean {
    return this.previewed !== null;
  }

  // Where

  goToSlice(slice: number): void {
    const [i, j] = this.cursor_ijk;
    this.look([i, j, slice]);
  }

  goTo(world_xyz_mm: Triple): void {
    this.look(this.grid.index(world_xyz_mm));
  }

  // How

  setWindow(window: WindowPreset | Window): void {
    if (typeof window !== "string") {
      this.preset = null;
      this.cbct_window = window;
      this.planning_window = window;
    } else {
      this.preset = window;
      this.applyPreset();
    }
    this.draw();
  }

  setCompare(change: Partial<Compare>): void {
    const next = { ...this.compare, ...change };
    this.compare = {
      mode: next.mode,
      blend_percent: Math.min(100, Math.max(0, next.blend_percent)),
      spyglass_radius_px: Math.min(SPYGLASS_PX.most, Math.max(SPYGLASS_PX.least, next.spyglass_radius_px)),
    };
    this.draw();
  }

  setFlicker(held: boolean): void {
    if (this.flicker === held) return;
    this.flicker = held;
    this.draw();
  }

  setInterpolation(on: boolean): void {
    this.interpolation = on;
    this.draw();
  }

  setContours(change: Partial<ContourDisplay>): void {
    this.display = { ...this.display, ...change };
    this.draw(false);
  }

  setTool(tool: Tool): void {
    if (isDrawing(tool) && !this.session) return;
    this.endDrag();
    this.tool = tool;
    this.corners = [];
    this.draw(false);
  }

  setBrush(change: Partial<Brush>): void {
    this.brush = bounded({ ...this.brush, ...change });
    this.draw(false);
  }

  clearDistances(): void {
    this.distances = [];
    this.draw(false);
  }

  // Editing

  async edit(method: string): Promise<void> {
    if (this.session) return;
    const { http, storage = globalThis.localStorage } = this.options;
    const begun = await EditingSession.begin({
      http,
      propagation: this.view.propagation,
      storage,
      method,
      contours: this.contours,
      slice_distance_mm: this.grid.spacing_ijk_mm[2],
      saving: (saving) => {
        this.saving = saving;
        this.draw(false);
      },
    });
    if (this.stop.signal.aborted) return begun.session.saver.close();
    this.session = begun.session;
    this.saving = begun.session.saver.state;
    this.display = { ...this.display, selected: begun.session.edits.method };
    if (begun.restored) this.events.emit("restored", begun.restored);
    this.draw(false);
  }

  async leaveEditing(): Promise<void> {
    const { session } = this;
    if (!session) return;
    this.endDrag();
    // Nothing drawn and nothing saved before is no draft.
    if (session.saver.state.state !== "saved") await session.saver.flush();
    session.saver.close();
    this.leave();
  }

  draft(): DraftBody | null {
    return this.session?.body() ?? null;
  }

  async saveDraft(): Promise<string> {
    if (!this.session) throw new DraftProblem("nothing is edited", 0, "");
    this.endDrag();
    return this.session.saver.flush();
  }

  async discardDraft(): Promise<void> {
    if (!this.session) return;
    this.endDrag();
    await this.session.saver.discard();
    this.leave();
  }

  async resolveConflict(whose: "mine" | "theirs"): Promise<void> {
    const { session } = this;
    if (!session) return;
    if (whose === "mine") return session.saver.overrule();
    const { method } = session.edits;
    session.saver.abandon();
    this.leave();
    await this.edit(method);
  }

  copySlice(from: string): boolean {
    const rings = this.contours.get(from)?.get(this.slice);
    if (!this.session || !rings) return false;
    return this.operate((session) => session.edits.change(this.slice, rings));
  }

  // Adjusting

  preview(image: ViewImage | null, contours: Readonly<Record<string, readonly Loop[]>> = {}): void {
    const before = this.previewed;
    before?.stop.abort();
    this.previewed = null;
    if (image) {
      const error = this.foreignness(image);
      if (error) {
        this.tellForeign("planning", error);
      } else {
        const stop = new AbortController();
        const drawn = new Map(Object.entries(contours).map(([name, loops]) => [name, bySlice(loops)]));
        const volume = new Volume(image);
        this.previewed = { volume, label: image.label, stop, contours: drawn };
        void this.bring("planning", volume, stop.signal);
      }
    }
    this.draw();
  }

  destroy(): void {
    this.stop.abort();
    this.previewed?.stop.abort();
    this.session?.saver.close();
    this.session = null;
    globalThis.removeEventListener("blur", this.lost);
    this.resizes.disconnect();
    if (this.due !== null) cancelAnimationFrame(this.due);
    this.due = null;
    this.events.clear();
    this.frame.remove();
  }

  // Commands

  run(command: Command): boolean {
    const step = this.forward;
    const main = this.panes[0];
    switch (command) {
      case "next-slice":
        return this.step(step);
      case "previous-slice":
        return this.step(-step);
      case "five-slices-on":
        return this.step(5 * step);
      case "five-slices-back":
        return this.step(-5 * step);
      case "first-slice":
        return this.jump(step === 1 ? 0 : this.slices - 1);
      case "last-slice":
        return this.jump(step === 1 ? this.slices - 1 : 0);
      case "worst-slice-next":
        return this.jumpToWorst(1);
      case "worst-slice-previous":
        return this.jumpToWorst(-1);
      case "contour-slice-next":
        return this.jump(nextHolding(this.holding(), this.slice, step));
      case "contour-slice-previous":
        return this.jump(nextHolding(this.holding(), this.slice, step === 1 ? -1 : 1));
      case "target-centre":
        if (!this.view.target) return false;
        this.goTo(this.view.target.center_xyz_mm);
        return true;
      case "flicker":
        this.setFlicker(!this.flicker);
        return true;
      case "window-lung":
      case "window-soft":
      case "window-bone":
      case "window-auto":
        this.setWindow(command.slice("window-".length) as WindowPreset);
        return true;
      case "compare-blend":
      case "compare-checkerboard":
      case "compare-spyglass":
      case "compare-side-by-side":
      case "compare-difference":
        this.setCompare({ mode: command.slice("compare-".length) as CompareMode });
        return true;
      case "blend-more":
      case "blend-less":
        this.setCompare({ mode: "blend", blend_percent: this.compare.blend_percent + (command === "blend-more" ? 10 : -10) });
        return true;
      case "interpolation":
        this.setInterpolation(!this.interpolation);
        return true;
      case "show-all":
      case "show-one":
      case "show-none":
        this.setContours({ show: command.slice("show-".length) as ContourDisplay["show"] });
        return true;
      case "next-method":
        return this.nextMethod();
      case "width":
        this.setContours({ width_px: WIDTHS_PX[WIDTHS_PX.indexOf(this.display.width_px) + 1] ?? WIDTHS_PX[0]! });
        return true;
      case "zoom-in":
      case "zoom-out":
        for (const pane of this.panes) {
          const viewport = this.viewportOf(pane);
          const [x, y] = viewport.pixel(this.cursor_ijk);
          pane.look(viewport.zoomed(command === "zoom-in" ? 1.25 : 0.8, x, y));
        }
        this.draw();
        return true;
      case "fit":
        for (const pane of this.panes) pane.fit();
        this.draw();
        return true;
      case "tool-navigate":
        // Escape is the page's where there is nothing here to leave.
        if (this.drag?.does === "draw" || this.tool !== "navigate" || this.corners.length > 0 || this.distances.length > 0) {
          if (this.tool === "navigate") this.distances = [];
          this.setTool("navigate");
          return true;
        }
        return false;
      case "tool-distance":
        this.setTool("distance");
        return true;
      case "tool-brush":
      case "tool-eraser":
      case "tool-nudge":
      case "tool-add":
      case "tool-subtract":
        if (!this.session) return false;
        this.setTool(command.slice("tool-".length) as Tool);
        main.root.focus({ preventScroll: true });
        return true;
      case "brush-bigger":
        return this.resize(1);
      case "brush-smaller":
        return this.resize(-1);
      case "brush-sphere":
        if (!this.session) return false;
        this.setBrush({ sphere: !this.brush.sphere });
        return true;
      case "interpolate":
        return this.operate(({ edits }) => edits.interpolate());
      case "smooth":
        return this.operate(({ edits }) => edits.change(this.slice, smoothed(edits.at(this.slice))));
      case "delete-slice":
        return this.operate(({ edits }) => edits.change(this.slice, []));
      case "undo":
        return this.stepBack((session) => session.edits.undo());
      case "redo":
        return this.stepBack((session) => session.edits.redo());
    }
  }

  keyDown(event: KeyboardEvent): boolean {
    if (this.drawWithKeys(event)) {
      event.preventDefault();
      return true;
    }
    const key = commandOf(event);
    if (!key || (key.editing && !this.session)) return false;
    if (key.held) this.setFlicker(true);
    else if (!this.run(key.command) && key.command === "tool-navigate") return false;
    event.preventDefault();
    return true;
  }

  keyUp(event: KeyboardEvent): boolean {
    const key = commandOf(event);
    // Shift may have come and gone while the key was held: any release of the letter ends it.
    if (!key?.held && event.key.toLowerCase() !== "f") return false;
    if (!this.flicker) return false;
    this.setFlicker(false);
    return true;
  }

  // What there is

  private get slice(): number {
    return this.cursor_ijk[2];
  }

  private get slices(): number {
    return this.grid.shape_ijk[2];
  }

  private get editing(): EditingState | null {
    const { session } = this;
    if (!session) return null;
    const { edits } = session;
    return {
      method: edits.method,
      edited_slices: edits.edited_slices,
      volume_cc: edits.volume_cc,
      can_undo: edits.can_undo,
      can_redo: edits.can_redo,
      seconds: session.seconds,
      saving: this.saving,
    };
  }

  /** The lines of a method or ghost as they are now: edited, adjusted, or as they came. */
  private linesOf(name: string): Slices | undefined {
    if (this.session?.edits.method === name) return this.session.edits.slices;
    return this.previewed?.contours.get(name) ?? this.contours.get(name);
  }

  /** Slices that a key leads to: those of the method that is looked at, of any method where it has none. */
  private holding(): number[] {
    const own = slicesWith(this.linesOf(this.display.selected));
    if (own.length > 0) return own;
    const all = this.view.methods.flatMap(({ method }) => slicesWith(this.linesOf(method)));
    return [...new Set(all)].sort((a, b) => a - b);
  }

  private get shownPlanning(): { volume: Volume | null; label: string } {
    // An adjusted image that is not there yet would be a black flash.
    if (this.previewed?.volume.has(this.slice)) return this.previewed;
    return { volume: this.planning, label: this.planning_label };
  }

  // Loading

  private start(): Triple {
    const { target } = this.view;
    const middle: Triple = [(this.grid.shape_ijk[0] - 1) / 2, (this.grid.shape_ijk[1] - 1) / 2, (this.grid.shape_ijk[2] - 1) / 2];
    return this.grid.nearest(target ? this.grid.index(target.center_xyz_mm) : middle);
  }

  private async begin(): Promise<void> {
    const { planning } = this.view.images;
    const first = this.bring("cbct", this.cbct, this.stop.signal);
    if (planning) {
      const error = this.foreignness(planning);
      if (error) {
        // The page has no chance to listen before the constructor ends.
        queueMicrotask(() => this.tellForeign("planning", error));
      } else {
        this.planning = new Volume(planning);
        this.planning_label = planning.label;
        void this.bring("planning", this.planning, this.stop.signal);
      }
    }
    await Promise.all([first, this.bringContours()]);
    await new Promise<void>((resolve) => {
      this.draw();
      requestAnimationFrame(() => resolve());
    });
  }

  /** Resolves when the first slices are there, or will not come. */
  private bring(image: "cbct" | "planning", volume: Volume, signal: AbortSignal): Promise<void> {
    const { target } = this.view;
    return new Promise((resolve) => {
      load(volume, {
        http: this.options.http,
        target: target && { from: target.first_slice, to: target.last_slice },
        signal,
        arrived: () => {
          if (this.preset === "auto") this.applyPreset();
          this.events.emit("loading", { image, loaded_slices: volume.loaded_slices, slices: volume.slices });
          this.draw();
          resolve();
        },
      }).catch((error: unknown) => {
        if (!signal.aborted) this.events.emit("failed", { what: image, error: error as Error });
        resolve();
      });
    });
  }

  private async bringContours(): Promise<void> {
    try {
      const answer = await this.options.http(`/v1/propagations/${this.view.propagation}/contours`, { signal: this.stop.signal });
      const body = (await answer.json()) as Contours & { title?: string };
      if (!answer.ok) throw new Error(body.title ?? answer.statusText);
      this.contours = contoursOn(this.view.images.cbct.frame_of_reference, body);
      this.draw(false);
    } catch (error) {
      if (this.stop.signal.aborted) return;
      this.tellForeign("contours", error as Error);
    }
  }

  /** Why an image must not be laid over the CBCT; null where it may. */
  private foreignness(image: ViewImage): Error | null {
    const { frame_of_reference } = this.view.images.cbct;
    if (image.frame_of_reference !== frame_of_reference) return new ForeignFrameError(image.frame_of_reference, frame_of_reference);
    return new Grid(image).equals(this.grid) ? null : new ForeignGridError();
  }

  private tellForeign(what: "planning" | "contours", error: Error): void {
    if (error instanceof ForeignFrameError) {
      this.foreign = true;
      this.events.emit("refused", { error });
      this.draw(false);
    } else {
      this.events.emit("failed", { what, error });
    }
  }

  // Moving

  private look(index_ijk: Triple, origin?: Pane): void {
    const next = this.grid.nearest(index_ijk);
    if (next.every((value, axis) => value === this.cursor_ijk[axis as 0 | 1 | 2])) return;
    this.cursor_ijk = next;
    for (const pane of this.panes) {
      if (pane === origin) continue;
      const viewport = this.viewportOf(pane);
      const [x, y] = viewport.pixel(next);
      // Where a plane is zoomed so far that the place is not in it, it follows.
      if (x >= 0 && y >= 0 && x < viewport.width_px && y < viewport.height_px) continue;
      pane.look(viewport.with({ center_ijk: next }));
    }
    this.draw();
  }

  private step(by: number): boolean {
    this.goToSlice(this.slice + by);
    return true;
  }

  private jump(slice: number | null): boolean {
    if (slice === null) return false;
    this.goToSlice(slice);
    return true;
  }

  private jumpToWorst(step: 1 | -1): boolean {
    this.worst = nextWorst(this.order, this.slice, this.worst, step);
    return this.jump(this.worst);
  }

  private nextMethod(): boolean {
    const names = this.view.methods.map(({ method }) => method);
    if (names.length === 0 || this.session) return false;
    this.setContours({ selected: names[(names.indexOf(this.display.selected) + 1) % names.length]! });
    return true;
  }

  private resize(sense: 1 | -1): boolean {
    if (isDrawing(this.tool)) {
      const { diameter_mm } = this.brush;
      this.setBrush({ diameter_mm: Math.round(diameter_mm + sense * (diameter_mm + sense > 10 ? 2 : 1)) });
    } else if (this.compare.mode === "spyglass") {
      this.setCompare({ spyglass_radius_px: this.compare.spyglass_radius_px + 15 * sense });
    } else {
      return false;
    }
    return true;
  }

  private applyPreset(): void {
    if (this.preset === null) return;
    if (this.preset !== "auto") {
      this.cbct_window = PRESETS[this.preset];
      this.planning_window = PRESETS[this.preset];
      return;
    }
    // From the target's slice, so that the picture does not change its greys on the way through the volume.
    const slice = this.start()[2];
    const [columns, rows] = this.grid.shape_ijk;
    const found = (volume: Volume | null): Window | null =>
      volume?.has(slice) ? automatic(volume.values, columns, rows, slice, volume.outside) : null;
    this.cbct_window = found(this.cbct) ?? this.cbct_window;
    this.planning_window = found(this.planning) ?? this.planning_window;
  }

  // Operations

  /** Does something to the draft. Returns whether it changed. */
  private operate(operation: (session: EditingSession) => unknown): boolean {
    const { session } = this;
    if (!session || this.drag?.does === "draw") return false;
    const before = session.edits.slices.get(this.slice);
    const many = operation(session);
    const changed = many === true || before !== session.edits.slices.get(this.slice);
    if (changed) session.touch();
    this.draw(false);
    return changed;
  }

  private stepBack(step: (session: EditingSession) => number[] | null): boolean {
    const { session } = this;
    if (!session || this.drag?.does === "draw") return false;
    const slices = step(session);
    if (!slices) return false;
    session.touch();
    // What changed is shown: nobody takes back what they do not see.
    if (!slices.includes(this.slice)) this.goToSlice(slices[0]!);
    this.draw(false);
    return true;
  }

  private leave(): void {
    this.session = null;
    this.drag = null;
    this.corners = [];
    if (isDrawing(this.tool)) this.tool = "navigate";
    this.draw(false);
  }

  // Pointers

  private listen(pane: Pane): void {
    const { root } = pane;
    root.addEventListener("contextmenu", (event) => event.preventDefault());
    root.addEventListener("pointerdown", (event) => this.press(pane, event));
    root.addEventListener("pointermove", (event) => this.move(pane, event));
    root.addEventListener("pointerup", () => this.endDrag());
    root.addEventListener("pointercancel", () => this.endDrag());
    root.addEventListener("pointerleave", () => {
      if (this.drag) return;
      this.hover = null;
      this.events.emit("probe", null);
      this.draw(this.compare.mode === "spyglass");
    });
    root.addEventListener("wheel", (event) => this.turn(pane, event), { passive: false });
    // The middle button would scroll the page.
    root.addEventListener("mousedown", (event) => {
      if (event.button === 1) event.preventDefault();
    });
  }

  private press(pane: Pane, event: PointerEvent): void {
    if (this.drag) return;
    pane.root.setPointerCapture(event.pointerId);
    this.hovered(pane, event);
    const last = { x: event.clientX, y: event.clientY };
    if (event.button === 1) this.drag = { does: "pan", last };
    else if (event.button === 2) this.drag = { does: "window", last };
    else if (event.button === 0) this.drag = this.begun(pane);
    this.draw(false);
  }

  private begun(pane: Pane): Drag {
    const index = this.index();
    if (this.tool === "distance") return { does: "distance", from_ijk: index };
    if (isDrawing(this.tool) && this.session && pane === this.panes[0]) {
      const drawing = this.drawing(this.mm(index));
      this.session.work();
      return { does: "draw", drawing };
    }
    this.look(index, pane);
    return { does: "cursor" };
  }

  private drawing(at: Point): Drawing {
    if (!this.session || !isDrawing(this.tool)) throw new Error("nothing is edited");
    return new Drawing(this.session.edits, this.tool, this.brush, this.slice, this.slices, this.grid.spacing_ijk_mm[2], at);
  }

  private move(pane: Pane, event: PointerEvent): void {
    const { drag } = this;
    const owner = drag ? (this.hover?.pane ?? pane) : pane;
    // A browser gathers moves; a brush wants all of them.
    const events = drag?.does === "draw" ? event.getCoalescedEvents() : [];
    for (const each of events.length > 0 ? events : [event]) {
      this.hovered(owner, each, drag !== null);
      if (drag?.does === "draw" && drag.drawing.move(this.mm(this.index()))) this.session?.touch();
    }
    if (drag?.does === "cursor") this.look(this.index(), owner);
    if (drag?.does === "pan" || drag?.does === "window") {
      const { last } = drag;
      const dx = event.clientX - last.x;
      const dy = event.clientY - last.y;
      last.x = event.clientX;
      last.y = event.clientY;
      if (drag.does === "pan") {
        owner.look(this.viewportOf(owner).panned(dx * owner.ratio, dy * owner.ratio));
      } else {
        this.preset = null;
        this.cbct_window = dragged(this.cbct_window, dx, dy);
        this.planning_window = dragged(this.planning_window, dx, dy);
      }
      this.draw();
      return;
    }
    this.draw(this.compare.mode === "spyglass");
  }

  private endDrag(): void {
    const { drag } = this;
    this.drag = null;
    if (drag?.does === "draw" && drag.drawing.end()) this.session?.touch();
    if (drag?.does === "distance" && this.hover) this.measured(this.hover.pane, drag.from_ijk, this.index());
    if (drag) this.draw(false);
  }

  private measured(pane: Pane, from_ijk: Triple, to_ijk: Triple): void {
    const length_mm = this.length_mm(from_ijk, to_ijk);
    if (length_mm < 0.1) return;
    this.distances.push({ pane, at: this.cursor_ijk[pane.plane.normal], from_ijk, to_ijk });
    this.events.emit("distance", { length_mm });
  }

  private length_mm(a_ijk: Triple, b_ijk: Triple): number {
    const [a, b] = [this.grid.world(a_ijk), this.grid.world(b_ijk)];
    return Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
  }

  private turn(pane: Pane, event: WheelEvent): void {
    event.preventDefault();
    this.hovered(pane, event);
    // With Shift a browser turns the wheel sideways; a line is about 40 px.
    const delta = (event.deltaY || event.deltaX) * (event.deltaMode === 1 ? 40 : 1);
    if (event.ctrlKey && this.hover) {
      const { x_px, y_px } = this.hover;
      pane.look(this.viewportOf(pane).zoomed(Math.exp(-delta / 500), x_px, y_px));
      this.draw();
      return;
    }
    this.wheel_px += delta;
    const steps = Math.trunc(this.wheel_px / NAVIGATION_PX) || (Math.abs(delta) >= NAVIGATION_PX ? Math.sign(delta) : 0);
    if (steps === 0) return;
    this.wheel_px = 0;
    const notch = Math.sign(steps) as 1 | -1;
    if (event.altKey) {
      this.resize(notch === 1 ? -1 : 1);
      return;
    }
    const { normal } = pane.plane;
    const index: [number, number, number] = [...this.cursor_ijk];
    // In the other planes, too, down is what the picture of the slices shows as down.
    index[normal] += notch * (event.shiftKey ? 5 : 1) * (normal === 2 ? this.forward : 1);
    this.look(index, pane);
  }

  private hovered(pane: Pane, event: Pick<PointerEvent, "clientX" | "clientY">, dragging = false): void {
    const parts = this.parts(pane);
    const found = pane.locate(event, parts);
    // A drag stays in the half that it began in.
    const part = dragging && this.hover ? this.hover.part : found.part;
    this.hover = { pane, part, x_px: found.x_px + found.part.left_px - part.left_px, y_px: found.y_px };
    if (pane === this.panes[0]) this.point_mm = this.mm(this.index());
    this.events.emit("probe", this.probe());
  }

  private probe(): Probe | null {
    if (!this.hover) return null;
    const index = this.index();
    if (!this.grid.contains(index)) return null;
    const voxel = this.grid.nearest(index);
    return {
      slice: voxel[2],
      world_xyz_mm: this.grid.world(index),
      cbct_hu: this.cbct.at(voxel),
      planning_hu: this.shownPlanning.volume?.at(voxel) ?? null,
    };
  }

  /** The index under the pointer. */
  private index(): Triple {
    if (!this.hover) return this.cursor_ijk;
    const { pane, part, x_px, y_px } = this.hover;
    return pane.viewportOf(part).index(x_px, y_px, this.cursor_ijk[pane.plane.normal]);
  }

  private mm(index_ijk: Triple): Point {
    return [index_ijk[0] * this.grid.spacing_ijk_mm[0], index_ijk[1] * this.grid.spacing_ijk_mm[1]];
  }

  private readonly lost = (): void => this.setFlicker(false);

  // Drawing with keys: Alt and the arrows move a point by a millimetre, Space applies the tool there.

  private drawWithKeys(event: KeyboardEvent): boolean {
    const main = this.panes[0];
    if (document.activeElement !== main.root || this.drag) return false;
    const way = ({ "Alt+ArrowLeft": [-1, 0], "Alt+ArrowRight": [1, 0], "Alt+ArrowUp": [0, -1], "Alt+ArrowDown": [0, 1] } as const)[
      nameOf(event) as "Alt+ArrowLeft"
    ];
    const { right, down } = main.plane;
    const from = this.point_mm ?? this.mm(this.cursor_ijk);
    if (way) {
      const to: [number, number] = [...from];
      to[right.axis as 0 | 1] += way[0] * right.sign;
      to[down.axis as 0 | 1] += way[1] * down.sign;
      this.movePoint(to);
      return true;
    }
    if (event.key !== " " || this.tool === "navigate") return false;
    this.applyPoint(from);
    return true;
  }

  private movePoint(to: Point): void {
    const [si, sj] = this.grid.spacing_ijk_mm;
    const index: Triple = [to[0] / si, to[1] / sj, this.slice];
    const from = this.point_mm;
    this.point_mm = to;
    if (this.tool === "navigate") this.look(index);
    if (this.tool === "nudge" && this.session && from) {
      const drawing = this.drawing(from);
      drawing.move(to);
      if (drawing.end()) this.session.touch();
    }
    const main = this.panes[0];
    const part = this.parts(main)[0]!;
    const [x_px, y_px] = main.viewportOf(part).pixel(index);
    this.hover = { pane: main, part, x_px, y_px };
    this.events.emit("probe", this.probe());
    this.draw(this.compare.mode === "spyglass");
  }

  private applyPoint(at: Point): void {
    const last = this.corners.at(-1);
    const again = last !== undefined && Math.hypot(at[0] - last[0], at[1] - last[1]) < 0.5;
    if (this.tool === "brush" || this.tool === "eraser") {
      if (this.drawing(at).end()) this.session?.touch();
    } else if (this.tool === "distance") {
      const [si, sj] = this.grid.spacing_ijk_mm;
      const index = (point: Point): Triple => [point[0] / si, point[1] / sj, this.slice];
      if (last) this.measured(this.panes[0], index(last), index(at));
      this.corners = last ? [] : [at];
    } else if ((this.tool === "add" || this.tool === "subtract") && !again) {
      this.corners.push(at);
    } else if ((this.tool === "add" || this.tool === "subtract") && this.corners.length >= 3) {
      // The same place twice closes the line.
      const drawing = this.drawing(this.corners[0]!);
      for (const corner of this.corners.slice(1)) drawing.move(corner);
      if (drawing.end()) this.session?.touch();
      this.corners = [];
    }
    this.draw(false);
  }

  // Drawing

  /** Draws with the next frame of the browser; all that happened until then is one picture. */
  private draw(pictures = true): void {
    this.pictures ||= pictures;
    this.changed = true;
    if (this.due !== null || this.stop.signal.aborted) return;
    this.due = requestAnimationFrame(() => {
      this.due = null;
      this.render();
    });
  }

  private render(): void {
    const resized = this.panes.map((pane) => pane.measure());
    const { volume: planning } = this.shownPlanning;
    const sources = {
      cbct: this.cbct,
      planning,
      cbct_window: this.cbct_window,
      planning_window: this.planning_window,
      interpolation: this.interpolation,
    };
    this.panes.forEach((pane, n) => {
      const parts = this.parts(pane);
      if (this.pictures || resized[n]) pane.drawPicture(sources, parts, this.cursor_ijk[pane.plane.normal]);
      this.drawOver(pane, parts);
      this.write(pane);
    });
    this.pictures = false;
    const { texts } = this.options;
    this.bar.update({
      slice: this.slice,
      slices: this.slices,
      forward: this.forward,
      disagreement: this.view.disagreement,
      holding: this.holding(),
      edited: this.session?.edits.edited_slices ?? [],
      text: texts.slice_value(this.slice, this.slices, this.grid.world(this.cursor_ijk)[2]),
    });
    if (this.changed) {
      this.changed = false;
      const { state } = this;
      this.events.emit("state", state);
      if (JSON.stringify(state.editing) !== JSON.stringify(this.told)) {
        this.told = state.editing;
        this.events.emit("editing", state.editing);
      }
    }
  }

  private parts(pane: Pane): Part[] {
    const hasPlanning = this.shownPlanning.volume !== null;
    const sideBySide = hasPlanning && !this.flicker && this.compare.mode === "side-by-side";
    return partsOf(pane.width_px, hasPlanning ? this.mix(pane) : { show: "cbct" }, sideBySide);
  }

  /** What a pane shows, or each half of it. */
  private viewportOf(pane: Pane): Viewport {
    return pane.viewportOf(this.parts(pane)[0]!);
  }

  private mix(pane: Pane): Mix {
    if (this.flicker) return { show: "planning" };
    switch (this.compare.mode) {
      case "blend":
        return { show: "blend", planning_share: this.compare.blend_percent / 100 };
      case "spyglass": {
        const own = this.hover?.pane === pane ? this.hover : null;
        const [x_px, y_px] = own ? [own.x_px, own.y_px] : pane.viewport.pixel(this.cursor_ijk);
        return { show: "spyglass", x_px, y_px, radius_px: this.compare.spyglass_radius_px * pane.ratio };
      }
      case "side-by-side":
        return { show: "cbct" };
      default:
        return { show: this.compare.mode };
    }
  }

  private drawOver(pane: Pane, parts: readonly Part[]): void {
    const context = pane.overlay;
    const { ratio } = pane;
    const style = getComputedStyle(this.frame);
    const colour = (name: string, otherwise: string): string => style.getPropertyValue(name).trim() || otherwise;
    const crosshair = colour("--cv-crosshair", "#79b8ff");
    const at = this.cursor_ijk[pane.plane.normal];
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    for (const part of parts) {
      const viewport = pane.viewportOf(part);
      context.save();
      context.beginPath();
      context.rect(part.left_px, 0, part.width_px, viewport.height_px);
      context.clip();
      context.translate(part.left_px, 0);
      for (const [slices, stroke] of this.drawn()) {
        if (pane === this.panes[0]) drawRings(context, viewport, ringsOf(slices, at), stroke, ratio);
        else drawOutline(context, viewport, slices, at, stroke, ratio);
      }
      if (this.tool === "navigate") drawCrosshair(context, viewport, this.cursor_ijk, crosshair, ratio);
      for (const { from_ijk, to_ijk } of this.distances.filter((each) => each.pane === pane && each.at === at)) {
        drawDistance(context, viewport.pixel(from_ijk), viewport.pixel(to_ijk), this.length_mm(from_ijk, to_ijk), DISTANCE_COLOUR, ratio);
      }
      if (part.mix.show === "spyglass") drawRound(context, [part.mix.x_px, part.mix.y_px], part.mix.radius_px, "#ffffff", ratio, [2, 3]);
      if (this.hover?.pane === pane) this.drawTool(pane, part);
      drawScale(context, viewport, "#ffffff", ratio);
      context.restore();
    }
  }

  /** Contours in the order they are drawn: ghosts below, what is selected or edited on top. */
  private drawn(): [Slices, Stroke][] {
    const { show, selected, ghosts, width_px } = this.display;
    const found: [Slices, Stroke][] = [];
    const put = (slices: Slices | undefined, { colour, dash }: Pick<Stroke, "colour" | "dash">, width: number, opacity: number): void => {
      if (slices) found.push([slices, { colour, dash, width_px: width, opacity }]);
    };
    for (const ghost of this.view.ghosts) {
      if (show !== "none" && ghosts.includes(ghost.ghost)) put(this.linesOf(ghost.ghost), ghost, width_px, GHOST_OPACITY);
    }
    const edited = this.session?.edits.method;
    for (const method of this.view.methods) {
      if (method.method === selected || method.method === edited) continue;
      if (show === "all") put(this.linesOf(method.method), method, width_px, 1);
    }
    for (const method of this.view.methods) {
      const isEdited = method.method === edited;
      if (!isEdited && (method.method !== selected || show === "none")) continue;
      // What the machine drew stays in sight, faint, below what is made of it.
      if (isEdited) put(this.contours.get(method.method), method, 1, 0.45);
      put(this.linesOf(method.method), isEdited ? { ...method, dash: [] } : method, width_px + (isEdited ? 0.5 : 0), 1);
    }
    return found;
  }

  private drawTool(pane: Pane, part: Part): void {
    const { hover, drag, tool } = this;
    if (!hover) return;
    const context = pane.overlay;
    const viewport = pane.viewportOf(part);
    const here = this.index();
    if (drag?.does === "distance") {
      drawDistance(context, viewport.pixel(drag.from_ijk), viewport.pixel(here), this.length_mm(drag.from_ijk, here), DISTANCE_COLOUR, pane.ratio);
    }
    if (pane !== this.panes[0]) return;
    if (tool === "brush" || tool === "eraser" || tool === "nudge") {
      const radius_px = (this.brush.diameter_mm / 2) * viewport.scale_px_per_mm;
      drawRound(context, viewport.pixel(here), radius_px, "#ffffff", pane.ratio, tool === "eraser" ? [3, 3] : []);
    }
    const line = drag?.does === "draw" ? drag.drawing.line : this.corners;
    if (line.length > 0) drawLine(context, viewport, [...line, this.mm(here)], "#ffffff", pane.ratio);
  }

  private write(pane: Pane): void {
    const { texts } = this.options;
    const world = this.grid.world(this.cursor_ijk);
    const main = pane === this.panes[0];
    const place_mm = { axial: world[2], coronal: world[1], sagittal: world[0] }[pane.plane.name];
    const where = main ? texts.slice_value(this.slice, this.slices, world[2]) : `${place_mm.toFixed(1)} mm`;
    pane.say("slice", `${texts.planes[pane.plane.name]}\n${where}`);
    const planning = this.shownPlanning;
    const parts = this.parts(pane);
    const labels = parts.map(({ mix }) => {
      const { cbct, planning: ct } = needs(mix);
      return [...(cbct ? [this.view.images.cbct.label] : []), ...(ct ? [planning.label] : [])].join("\n");
    });
    pane.say("image", labels[0] ?? "");
    pane.say("image-2", labels[1] ?? "");
    pane.root.toggleAttribute("data-halves", parts.length > 1);
    const probe = this.hover?.pane === pane ? this.probe() : null;
    const hu = (value: number | null): string => (value === null ? "–" : String(value));
    pane.say("probe", probe ? `${hu(probe.cbct_hu)} | ${hu(probe.planning_hu)} HU` : "");
    const asks = this.flicker || this.compare.mode !== "blend" || this.compare.blend_percent > 0;
    const notices = [
      ...(this.foreign ? [texts.foreign_frame] : []),
      ...(main && !this.cbct.has(this.slice) ? [texts.loading] : []),
      ...(planning.volume === null && asks ? [texts.no_planning] : []),
    ];
    pane.say("notice", notices.join("\n"));
    pane.root.toggleAttribute("data-drawing", main && isDrawing(this.tool) && this.hover?.pane === pane);
  }
}
