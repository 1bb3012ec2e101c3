/** The pictures of one propagation: what is shown, what the hand does, what the page hears of it. */

import { bounded, type Brush } from "../editing/brush";
import { smoothed } from "../editing/shape";
import { DraftProblem, type Saving } from "../editing/saver";
import { EditingSession } from "../editing/session";
import type { ContourDisplay, EditingState, Probe, Viewer, ViewerEvents, ViewerOptions, ViewerState } from "./api";
import { needs, type Compare, type CompareMode, type Mix } from "./compose";
import { ForeignFrameError, slicesWith } from "./contours";
import type { DraftBody, Loop, Slices, Triple, View, ViewImage } from "./contract";
import { Emitter } from "./emitter";
import type { Grid } from "./grid";
import { Hand, type Bench, type Dragged } from "./hand";
import { nextHolding, nextWorst, worstFirst } from "./jumps";
import { commandOf, type Command } from "./keys";
import { Material } from "./material";
import { contoursToDraw, paintOver } from "./paint";
import { element, Pane, partsOf, type Part } from "./pane";
import { letters, planesOf } from "./planes";
import { SliceBar } from "./slicebar";
import { isDrawing, type Tool } from "./tools";
import type { Viewport } from "./viewport";
import type { Volume } from "./volume";
import { automatic, Windows, type Window, type WindowPreset } from "./window";

/** Shows the images of a propagation in an element of a given size. */
export function createViewer(root: HTMLElement, view: View, options: ViewerOptions): Viewer {
  return new PropagationViewer(root, view, options);
}

const WIDTHS_PX: readonly number[] = [1, 2, 3];
const CROSSHAIR = "#79b8ff";
const SPYGLASS_PX = { least: 20, most: 400 } as const;

class PropagationViewer implements Viewer, Bench {
  readonly loaded: Promise<void>;
  private readonly events = new Emitter<ViewerEvents>();
  private readonly material: Material;
  private readonly hand: Hand;
  readonly panes: readonly [Pane, Pane, Pane];
  private readonly bar: SliceBar;
  private readonly frame: HTMLElement;
  private readonly resizes: ResizeObserver;
  /** Slices by disagreement, the worst first. */
  private readonly order: readonly number[];
  /** 1: slices are counted downwards, as the other two planes show them. */
  readonly forward: 1 | -1;

  cursor_ijk: Triple;
  tool: Tool;
  brush: Brush = { diameter_mm: 8, sphere: false };
  session: EditingSession | null = null;
  private saving: Saving = { state: "saved" };
  private readonly windows = new Windows((image) => this.ownWindow(image));
  private compare: Compare = { mode: "blend", blend_percent: 0, spyglass_radius_px: 90 };
  private flicker = false;
  private interpolation = true;
  private display: ContourDisplay;
  /** Something was refused because it is of another frame of reference. */
  private foreign = false;
  /** The CBCT will not come. */
  private broken = false;
  /** The slice that a jump to disagreement led to last. */
  private worst: number | null = null;

  private beginning: Promise<void> | null = null;
  private destroyed = false;
  private due: number | null = null;
  private pictures = true;
  private told: string = "null";

  constructor(
    root: HTMLElement,
    private readonly view: View,
    private readonly options: ViewerOptions,
  ) {
    this.material = new Material(view, options.http, {
      arrived: (what, volume) => this.arrived(what, volume),
      failed: (what, error) => this.failed(what, error),
    });
    this.cursor_ijk = this.material.start();
    const planes = planesOf(this.grid);
    const pane = (n: 0 | 1 | 2): Pane => new Pane(this.grid, planes[n], options.texts.planes[planes[n].name]);
    this.panes = [pane(0), pane(1), pane(2)];
    this.forward = planes.find(({ down }) => down.axis === 2)?.down.sign ?? 1;
    this.bar = new SliceBar(options.texts.slice_bar, this.ends(), (slice) => this.goToSlice(slice));
    this.order = worstFirst(view.disagreement);
    this.tool = options.tool ?? "navigate";
    this.display = {
      show: "all",
      selected: (view.methods.find(({ recommended }) => recommended) ?? view.methods[0])?.method ?? "",
      ghosts: view.ghosts.map(({ ghost }) => ghost),
      width_px: 2,
    };
    this.frame = element("div", "cv-root");
    this.frame.append(...this.panes.map((each) => each.root), this.bar.root);
    root.append(this.frame);
    this.hand = new Hand(this);
    globalThis.addEventListener("blur", this.lost);
    globalThis.addEventListener("pagehide", this.hidden);
    this.resizes = new ResizeObserver(() => this.draw());
    for (const each of [...this.panes, this.bar]) this.resizes.observe(each.root);
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
      window: this.windows.cbct,
      preset: this.windows.preset,
      compare: this.compare,
      flicker: this.flicker,
      interpolation: this.interpolation,
      contours: this.display,
      tool: this.tool,
      brush: this.brush,
      zoom: main.viewport.scale_px_per_mm / main.fitting_px_per_mm,
      editing: this.editing,
      shown: this.material.whole,
    };
  }

  get adjusting(): boolean {
    return this.material.previewing;
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
    this.windows.choose(window);
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
    this.hand.rest();
    this.tool = tool;
    this.frame.dataset["tool"] = tool;
    this.draw(false);
  }

  setBrush(change: Partial<Brush>): void {
    this.brush = bounded({ ...this.brush, ...change });
    this.draw(false);
  }

  clearDistances(): void {
    this.hand.distances = [];
    this.draw(false);
  }

  // Editing

  edit(method: string): Promise<void> {
    // Whoever asks twice gets one session.
    this.beginning ??= this.beginEditing(method).finally(() => (this.beginning = null));
    return this.beginning;
  }

  private async beginEditing(method: string): Promise<void> {
    if (this.session) return;
    const { http, texts, storage = globalThis.localStorage } = this.options;
    const { contours } = this.material;
    // A draft begun from nothing would be signed as if the machine had drawn nothing.
    if (!contours) throw new DraftProblem(this.foreign ? texts.foreign_frame : texts.loading, 0, "");
    const begun = await EditingSession.begin({
      http,
      propagation: this.view.propagation,
      storage,
      account: this.options.account,
      method,
      contours,
      plane: { stack: this.grid.stack, bounds: this.grid.bounds },
      saving: (saving) => {
        this.saving = saving;
        this.draw(false);
      },
    });
    if (this.destroyed) return begun.session.saver.close();
    this.session = begun.session;
    this.saving = begun.session.saver.state;
    this.display = { ...this.display, selected: begun.session.edits.method };
    if (begun.restored) this.events.emit("restored", begun.restored);
    this.draw(false);
  }

  async leaveEditing(): Promise<void> {
    const { session } = this;
    if (!session) return;
    this.hand.end();
    // Nothing drawn and nothing saved before is no draft; in a conflict ours waits in the browser.
    const { state } = session.saver.state;
    if (state !== "saved" && state !== "conflict") await session.saver.flush();
    session.saver.close();
    this.leave();
  }

  draft(): DraftBody | null {
    return this.session?.body() ?? null;
  }

  async saveDraft(): Promise<string> {
    if (!this.session) throw new DraftProblem("nothing is edited", 0, "");
    this.hand.end();
    return this.session.saver.flush();
  }

  async discardDraft(): Promise<void> {
    if (!this.session) return;
    this.hand.end();
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
    const rings = this.material.contours?.get(from)?.get(this.slice);
    if (!this.session || !rings) return false;
    return this.operate((session) => session.edits.change(this.slice, rings));
  }

  focus(): void {
    this.panes[0].root.focus({ preventScroll: true });
  }

  // Adjusting

  preview(image: ViewImage | null, contours: Readonly<Record<string, readonly Loop[]>> = {}): void {
    this.material.preview(image, contours);
    this.draw();
  }

  destroy(): void {
    this.destroyed = true;
    this.material.close();
    this.session?.saver.close();
    this.session = null;
    globalThis.removeEventListener("blur", this.lost);
    globalThis.removeEventListener("pagehide", this.hidden);
    this.resizes.disconnect();
    if (this.due !== null) cancelAnimationFrame(this.due);
    this.due = null;
    this.events.clear();
    this.frame.remove();
  }

  // Commands

  run(command: Command): boolean {
    const step = this.forward;
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
        if (this.tool === "navigate" && !this.hand.busy && this.hand.distances.length === 0) return false;
        if (this.tool === "navigate") this.hand.distances = [];
        this.setTool("navigate");
        return true;
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
        this.focus();
        return true;
      case "brush-bigger":
        return this.resizeTool(1);
      case "brush-smaller":
        return this.resizeTool(-1);
      case "brush-sphere":
        if (!this.session) return false;
        this.setBrush({ sphere: !this.brush.sphere });
        return true;
      case "interpolate":
        return this.operate(({ edits }) => edits.interpolate());
      case "smooth":
        return this.operate(({ edits }) => edits.change(this.slice, smoothed(edits.at(this.slice))));
      case "delete-slice":
        return this.operate(({ edits }) => edits.at(this.slice).length > 0 && edits.change(this.slice, []));
      case "undo":
        return this.stepBack((session) => session.edits.undo());
      case "redo":
        return this.stepBack((session) => session.edits.redo());
    }
  }

  keyDown(event: KeyboardEvent): boolean {
    if (this.hand.key(event)) {
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

  private get grid(): Grid {
    return this.material.grid;
  }

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
    return this.session?.edits.method === name ? this.session.edits.slices : this.material.lines(name);
  }

  /** Slices that a key leads to: those of the method that is looked at, of any method where it has none. */
  private holding(): number[] {
    const own = slicesWith(this.linesOf(this.display.selected));
    if (own.length > 0) return own;
    const all = this.view.methods.flatMap(({ method }) => slicesWith(this.linesOf(method)));
    return [...new Set(all)].sort((a, b) => a - b);
  }

  /** Letters of the patient's ends, where the slices begin and where they end. */
  private ends(): readonly [string, string] {
    const [x, y, z] = this.grid.axes[2];
    const towards = (sense: number): string => letters([x * sense, y * sense, z * sense]);
    return [towards(-this.forward), towards(this.forward)];
  }

  // What comes

  private async begin(): Promise<void> {
    // The page listens when the constructor has ended.
    await Promise.resolve();
    await this.material.begin();
    this.draw();
    await new Promise((resolve) => requestAnimationFrame(resolve));
  }

  private arrived(what: "cbct" | "planning" | "contours", volume: Volume | null): void {
    if (volume && what !== "contours") {
      this.windows.settle();
      this.events.emit("loading", { image: what, loaded_slices: volume.loaded_slices, slices: volume.slices });
    }
    this.draw();
  }

  private failed(what: "cbct" | "planning" | "contours", error: Error): void {
    this.foreign ||= error instanceof ForeignFrameError;
    this.broken ||= what === "cbct";
    if (error instanceof ForeignFrameError) this.events.emit("refused", { error });
    else this.events.emit("failed", { what, error });
    this.draw(false);
  }

  // Moving

  look(index_ijk: Triple, origin?: Pane): void {
    // What is under way belongs to the planes that it began in.
    if (this.hand.holding) return;
    const next = this.grid.nearest(index_ijk);
    if (next.every((value, axis) => value === this.cursor_ijk[axis as 0 | 1 | 2])) return;
    if (next[2] !== this.slice) this.hand.forget();
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

  resizeTool(sense: 1 | -1): boolean {
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

  /** From the target's slice, so that a picture does not change its greys on the way through the volume. */
  private ownWindow(image: "cbct" | "planning"): Window | null {
    const slice = this.material.start()[2];
    const volume = image === "cbct" ? this.material.cbct : this.material.planningAt(slice).volume;
    if (!volume?.has(slice)) return null;
    return automatic(volume.values, volume.shape_ijk[0], volume.shape_ijk[1], slice, volume.outside);
  }

  // Operations

  /** Does something to the draft. Returns whether it changed. */
  private operate(operation: (session: EditingSession) => unknown): boolean {
    const { session } = this;
    if (!session || this.hand.drawing) return false;
    const before = session.edits.slices.get(this.slice);
    const many = operation(session);
    const changed = many === true || before !== session.edits.slices.get(this.slice);
    if (changed) session.touch();
    this.draw(false);
    return changed;
  }

  private stepBack(step: (session: EditingSession) => number[] | null): boolean {
    const { session } = this;
    if (!session || this.hand.drawing) return false;
    const slices = step(session);
    if (!slices) return false;
    session.touch();
    // What changed is shown: nobody takes back what they do not see.
    if (!slices.includes(this.slice)) this.goToSlice(slices[0]!);
    this.draw(false);
    return true;
  }

  private leave(): void {
    this.hand.rest();
    this.session = null;
    if (isDrawing(this.tool)) this.tool = "navigate";
    this.draw(false);
  }

  // What the hand tells

  dragWindow(dx_px: number, dy_px: number): void {
    this.windows.drag(dx_px, dy_px);
  }

  dragged(by: Dragged): void {
    this.events.emit("dragged", by);
  }

  pointed(): void {
    this.events.emit("probe", this.probe());
  }

  measured(length_mm: number): void {
    this.events.emit("distance", { length_mm });
  }

  private probe(): Probe | null {
    if (!this.hand.hover) return null;
    const index = this.hand.index();
    if (!this.grid.contains(index)) return null;
    const voxel = this.grid.nearest(index);
    return {
      slice: voxel[2],
      world_xyz_mm: this.grid.world(index),
      cbct_hu: this.material.cbct.at(voxel),
      planning_hu: this.material.planningAt(this.slice).volume?.at(voxel) ?? null,
    };
  }

  /** The release of a key that another window gets is never heard. */
  private readonly lost = (): void => this.setFlicker(false);

  private readonly hidden = (): void => this.session?.saver.keep();

  // Drawing

  /** Draws with the next frame of the browser; all that happened until then is one picture. */
  draw(pictures = true): void {
    this.pictures ||= pictures;
    if (this.due !== null || this.destroyed) return;
    this.due = requestAnimationFrame(() => {
      this.due = null;
      this.render();
    });
  }

  private render(): void {
    const resized = this.panes.map((pane) => pane.measure());
    const sources = {
      cbct: this.material.cbct,
      planning: this.material.planningAt(this.slice).volume,
      cbct_window: this.windows.cbct,
      planning_window: this.windows.planning,
      interpolation: this.interpolation,
    };
    const over = {
      contours: contoursToDraw(
        this.view,
        this.display,
        this.session?.edits.method ?? null,
        (name) => this.linesOf(name),
        (name) => this.material.lines(name),
      ),
      cursor_ijk: this.cursor_ijk,
      crosshair: this.tool === "navigate" ? getComputedStyle(this.frame).getPropertyValue("--cv-crosshair").trim() || CROSSHAIR : null,
      distances: this.hand.distances,
    };
    this.panes.forEach((pane, n) => {
      const parts = this.parts(pane);
      if (this.pictures || resized[n]) pane.drawPicture(sources, parts, this.cursor_ijk[pane.plane.normal]);
      paintOver(pane, parts, { ...over, mark: this.hand.mark(pane) });
      this.write(pane, parts);
    });
    this.pictures = false;
    this.bar.update({
      slice: this.slice,
      slices: this.slices,
      forward: this.forward,
      disagreement: this.view.disagreement,
      holding: this.holding(),
      edited: this.session?.edits.edited_slices ?? [],
      text: this.sliceText,
    });
    this.tell();
  }

  private tell(): void {
    const { state } = this;
    this.events.emit("state", state);
    const editing = JSON.stringify(state.editing);
    if (editing === this.told) return;
    this.told = editing;
    this.events.emit("editing", state.editing);
  }

  private get sliceText(): string {
    return this.options.texts.slice_value(this.slice, this.slices, this.grid.world(this.cursor_ijk)[2]);
  }

  parts(pane: Pane): Part[] {
    const hasPlanning = this.material.planningAt(this.slice).volume !== null;
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
        const own = this.hand.hover?.pane === pane ? this.hand.hover : null;
        const [x_px, y_px] = own ? [own.x_px, own.y_px] : pane.viewport.pixel(this.cursor_ijk);
        return { show: "spyglass", x_px, y_px, radius_px: this.compare.spyglass_radius_px * pane.ratio };
      }
      case "side-by-side":
        return { show: "cbct" };
      default:
        return { show: this.compare.mode };
    }
  }

  private write(pane: Pane, parts: readonly Part[]): void {
    const { texts } = this.options;
    const { name, normal } = pane.plane;
    const world = this.grid.world(this.cursor_ijk);
    const place_mm = { axial: world[2], coronal: world[1], sagittal: world[0] }[name];
    const main = normal === 2;
    const edited = main && this.session && texts.copy_of_draft ? `\n${texts.copy_of_draft}: ${this.session.edits.method}` : "";
    pane.say("slice", `${texts.planes[name]}\n${main ? this.sliceText : `${place_mm.toFixed(1)} mm`}${edited}`);
    const planning = this.material.planningAt(this.slice);
    const labels = parts.map(({ mix }) => {
      const shown = needs(mix);
      return [...(shown.cbct ? [this.view.images.cbct.label] : []), ...(shown.planning ? [planning.label] : [])].join("\n");
    });
    pane.say("image", labels[0] ?? "");
    pane.say("image-2", labels[1] ?? "");
    pane.root.toggleAttribute("data-halves", parts.length > 1);
    const here = this.hand.hover?.pane === pane;
    const probe = here ? this.probe() : null;
    const hu = (value: number | null): string => (value === null ? "–" : String(value));
    pane.say("probe", probe ? `${hu(probe.cbct_hu)} | ${hu(probe.planning_hu)} HU` : "");
    const wantsPlanning = this.flicker || this.compare.mode !== "blend" || this.compare.blend_percent > 0;
    const notices = [
      ...(this.foreign ? [texts.foreign_frame] : []),
      ...(main && !this.broken && !this.material.cbct.has(this.slice) ? [texts.loading] : []),
      ...(planning.volume === null && wantsPlanning ? [texts.no_planning] : []),
    ];
    pane.say("notice", notices.join("\n"));
    pane.root.toggleAttribute("data-drawing", main && here && isDrawing(this.tool));
  }
}
