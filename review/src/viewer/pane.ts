/** One plane on the screen: a picture, what is drawn over it, letters and corners. */

import { compose, needs, type Mix } from "./compose";
import type { Grid } from "./grid";
import type { Plane } from "./planes";
import { NOTHING, sample } from "./sample";
import { Viewport } from "./viewport";
import type { Volume } from "./volume";
import type { Window } from "./window";

/** A part of a pane with a picture of its own: the whole, or one half of two side by side. */
export interface Part {
  readonly mix: Mix;
  readonly left_px: number;
  readonly width_px: number;
}

/** What pictures are made of. */
export interface Sources {
  readonly cbct: Volume;
  readonly planning: Volume | null;
  readonly cbct_window: Window;
  readonly planning_window: Window;
  readonly interpolation: boolean;
}

/** HU of a part, kept as long as nothing that they are made of changes. */
interface Kept {
  key: string;
  hu: Float32Array;
}

const EMPTY: Kept = { key: "", hu: new Float32Array(0) };

export class Pane {
  readonly root: HTMLElement;
  readonly overlay: CanvasRenderingContext2D;
  viewport: Viewport;
  /** Pixels of the canvas for each of the page. */
  ratio = 1;
  private readonly picture: CanvasRenderingContext2D;
  private readonly corners: Readonly<Record<Corner, HTMLElement>>;
  private readonly kept = new Map<string, Kept>();
  private image: ImageData | null = null;
  /** What the parts were made of when they were drawn. */
  private drawn: string[] = [];
  private fitted = true;

  constructor(
    readonly grid: Grid,
    readonly plane: Plane,
    label: string,
  ) {
    this.root = element("div", `cv-pane cv-${plane.name}`);
    this.root.tabIndex = 0;
    this.root.setAttribute("role", "application");
    this.root.setAttribute("aria-label", label);
    const canvas = (name: string): CanvasRenderingContext2D => {
      const made = element("canvas", name);
      made.setAttribute("aria-hidden", "true");
      this.root.append(made);
      // A picture is made of bytes: its canvas stays with the processor, and is not sent to a card and back.
      const isPicture = name === "cv-picture";
      const context = made.getContext("2d", { alpha: !isPicture, willReadFrequently: isPicture });
      // Null only for a canvas that had another kind of context before.
      return context!;
    };
    this.picture = canvas("cv-picture");
    this.overlay = canvas("cv-overlay");
    const { left, right } = plane.letters;
    // Two halves have four sides: those in the middle are seen only then.
    for (const [side, letter] of Object.entries({ ...plane.letters, "inner-right": right, "inner-left": left })) {
      const mark = element("span", `cv-letter cv-letter-${side}`);
      mark.textContent = letter;
      this.root.append(mark);
    }
    const corner = (name: Corner): HTMLElement => {
      const made = element("div", `cv-corner cv-corner-${name}`);
      this.root.append(made);
      return made;
    };
    this.corners = { slice: corner("slice"), image: corner("image"), "image-2": corner("image-2"), probe: corner("probe"), notice: corner("notice") };
    this.viewport = Viewport.fit(grid, plane, 1, 1);
  }

  /** Follows the size that the page gives it. Returns whether it changed. */
  measure(): boolean {
    this.ratio = globalThis.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(this.root.clientWidth * this.ratio));
    const height = Math.max(1, Math.round(this.root.clientHeight * this.ratio));
    const { canvas } = this.picture;
    if (canvas.width === width && canvas.height === height) return false;
    for (const { canvas: each } of [this.picture, this.overlay]) {
      each.width = width;
      each.height = height;
    }
    this.image = null;
    this.drawn = [];
    this.viewport = this.fitted ? Viewport.fit(this.grid, this.plane, width, height) : this.viewport.resized(width, height);
    return true;
  }

  fit(): void {
    this.fitted = true;
    const { canvas } = this.picture;
    this.viewport = Viewport.fit(this.grid, this.plane, canvas.width, canvas.height);
  }

  /** Looks at what a part of the pane is to show. */
  look(viewport: Viewport): void {
    this.fitted = false;
    this.viewport = viewport.resized(this.viewport.width_px, this.viewport.height_px);
  }

  /** The scale at which the whole plane is seen. */
  get fitting_px_per_mm(): number {
    const { canvas } = this.picture;
    return Viewport.fit(this.grid, this.plane, canvas.width, canvas.height).scale_px_per_mm;
  }

  get width_px(): number {
    return this.picture.canvas.width;
  }

  /** The part of the plane that a part of the pane shows: halves show the same places, whole planes where nobody zoomed. */
  viewportOf({ width_px }: Part): Viewport {
    const { height_px } = this.viewport;
    if (width_px === this.viewport.width_px) return this.viewport;
    return this.fitted ? Viewport.fit(this.grid, this.plane, width_px, height_px) : this.viewport.resized(width_px, height_px);
  }

  /** Where a pointer is, in pixels of the canvas, and in which part. */
  locate(event: Pick<PointerEvent, "clientX" | "clientY">, parts: readonly Part[]): { x_px: number; y_px: number; part: Part } {
    const box = this.picture.canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) * this.picture.canvas.width) / (box.width || 1);
    const y = ((event.clientY - box.top) * this.picture.canvas.height) / (box.height || 1);
    const part = parts.findLast(({ left_px }) => x >= left_px) ?? parts[0]!;
    return { x_px: x - part.left_px, y_px: y, part };
  }

  drawPicture(sources: Sources, parts: readonly Part[], slice: number): void {
    if (parts.length !== this.drawn.length) this.drawn = parts.map(() => "");
    parts.forEach((part, n) => {
      const viewport = this.viewportOf(part);
      const wanted = needs(part.mix);
      const none = EMPTY.hu;
      const cbct_hu = wanted.cbct ? this.hu(`cbct ${n}`, sources.cbct, viewport, slice, sources.interpolation) : none;
      const planning_hu =
        wanted.planning && sources.planning
          ? this.hu(`planning ${n}`, sources.planning, viewport, slice, sources.interpolation)
          : none;
      const key = JSON.stringify([part, this.kept.get(`cbct ${n}`)?.key, this.kept.get(`planning ${n}`)?.key, sources.cbct_window, sources.planning_window]);
      if (this.drawn[n] === key) return;
      this.drawn[n] = key;
      const image = this.imageOf(part.width_px, viewport.height_px);
      const pixels = new Uint32Array(image.data.buffer);
      const pictures = { cbct_hu, planning_hu, cbct_window: sources.cbct_window, planning_window: sources.planning_window };
      compose(pictures, part.mix, part.width_px, viewport.height_px, pixels);
      this.picture.putImageData(image, part.left_px, 0);
    });
  }

  say(corner: Corner, text: string): void {
    if (this.corners[corner].textContent !== text) this.corners[corner].textContent = text;
  }

  private hu(name: string, volume: Volume, viewport: Viewport, slice: number, interpolate: boolean): Float32Array {
    const { plane, width_px, height_px, columns, rows } = viewport;
    const { center_ijk, scale_px_per_mm } = viewport;
    const state = plane.normal === 2 ? volume.has(slice) : volume.loaded_slices;
    const key = [volume.digest, state, slice, width_px, height_px, ...center_ijk, scale_px_per_mm, interpolate].join();
    const kept = this.kept.get(name) ?? { ...EMPTY };
    if (kept.key === key) return kept.hu;
    if (kept.hu.length !== width_px * height_px) kept.hu = new Float32Array(width_px * height_px).fill(NOTHING);
    const cut = { normal: plane.normal, slice, across: plane.right.axis, down: plane.down.axis, columns, rows };
    sample(volume, cut, width_px, height_px, interpolate, kept.hu);
    kept.key = key;
    this.kept.set(name, kept);
    return kept.hu;
  }

  private imageOf(width: number, height: number): ImageData {
    if (this.image?.width !== width || this.image.height !== height) this.image = this.picture.createImageData(width, height);
    return this.image;
  }
}

export type Corner = "slice" | "image" | "image-2" | "probe" | "notice";

/** The parts of a pane for what is compared. */
export function partsOf(width_px: number, mix: Mix, sideBySide: boolean): Part[] {
  if (!sideBySide) return [{ mix, left_px: 0, width_px }];
  const half = Math.floor(width_px / 2);
  return [
    { mix: { show: "cbct" }, left_px: 0, width_px: half },
    { mix: { show: "planning" }, left_px: half, width_px: width_px - half },
  ];
}

export function element<Tag extends keyof HTMLElementTagNameMap>(tag: Tag, name: string): HTMLElementTagNameMap[Tag] {
  const made = document.createElement(tag);
  made.className = name;
  return made;
}
