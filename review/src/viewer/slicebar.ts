/** All slices in a row: where methods disagree, where a contour is, what was edited, where we are. */

import type { Disagreement } from "./jumps";
import { element } from "./pane";

export interface SliceBarState {
  readonly slice: number;
  readonly slices: number;
  /** 1: the first slice is on the left. */
  readonly forward: 1 | -1;
  readonly disagreement: readonly Disagreement[];
  /** Slices that hold the contour that is looked at. */
  readonly holding: readonly number[];
  readonly edited: readonly number[];
  readonly text: string;
}

/** Disagreement of this much has the full colour, or the worst there is where that is more. */
const FULL_MM: number = 5;

/** How strong the colour of a slice is, 0 to 1. */
export function heat(mm: number, worst_mm: number): number {
  return Math.min(1, Math.max(0, mm / Math.max(FULL_MM, worst_mm)));
}

/** The slice at a place of the bar. */
export function sliceAt(share: number, slices: number, forward: 1 | -1): number {
  const place = Math.min(slices - 1, Math.max(0, Math.floor(share * slices)));
  return forward === 1 ? place : slices - 1 - place;
}

export class SliceBar {
  readonly root: HTMLElement;
  private readonly context: CanvasRenderingContext2D;
  private state: SliceBarState | null = null;

  constructor(label: string, ends: readonly [string, string], choose: (slice: number) => void) {
    this.root = element("div", "cv-bar");
    this.root.tabIndex = 0;
    this.root.setAttribute("role", "slider");
    this.root.setAttribute("aria-label", label);
    const canvas = element("canvas", "cv-bar-canvas");
    canvas.setAttribute("aria-hidden", "true");
    // Null only for a canvas that had another kind of context before.
    this.context = canvas.getContext("2d")!;
    const [left, right] = ends.map((letter) => {
      const mark = element("span", "cv-bar-end");
      mark.textContent = letter;
      return mark;
    });
    this.root.append(left!, canvas, right!);
    const pick = (event: PointerEvent): void => {
      const box = canvas.getBoundingClientRect();
      if (this.state) choose(sliceAt((event.clientX - box.left) / (box.width || 1), this.state.slices, this.state.forward));
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pick(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) pick(event);
    });
    this.root.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!this.state || step === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      const { slice, slices, forward } = this.state;
      choose(Math.min(slices - 1, Math.max(0, slice + step * forward)));
    });
  }

  update(state: SliceBarState): void {
    this.state = state;
    this.root.setAttribute("aria-valuemin", "1");
    this.root.setAttribute("aria-valuemax", String(state.slices));
    this.root.setAttribute("aria-valuenow", String(state.slice + 1));
    this.root.setAttribute("aria-valuetext", state.text);
    this.draw(state);
  }

  private draw(state: SliceBarState): void {
    const { canvas } = this.context;
    const ratio = globalThis.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const style = getComputedStyle(this.root);
    const colour = (name: string, otherwise: string): string => style.getPropertyValue(name).trim() || otherwise;
    const context = this.context;
    context.clearRect(0, 0, width, height);
    const one = width / state.slices;
    const left = (slice: number): number => (state.forward === 1 ? slice : state.slices - 1 - slice) * one;
    const cell = (slice: number, top: number, bottom: number): void =>
      context.fillRect(left(slice), top * height, Math.max(one, ratio), (bottom - top) * height);
    const worst = Math.max(0, ...state.disagreement.map(({ mm }) => mm));
    context.fillStyle = colour("--cv-heat", "#e6b450");
    for (const { slice, mm } of state.disagreement) {
      context.globalAlpha = heat(mm, worst);
      cell(slice, 0, 0.6);
    }
    context.globalAlpha = 1;
    context.fillStyle = style.color;
    for (const slice of state.holding) cell(slice, 0.68, 0.8);
    context.fillStyle = colour("--cv-accent", "#79b8ff");
    for (const slice of state.edited) cell(slice, 0.84, 1);
    // A frame as well as a colour: where we are is seen without telling colours apart.
    context.strokeStyle = colour("--cv-accent", "#79b8ff");
    context.lineWidth = 2 * ratio;
    const wide = Math.max(one, 6 * ratio);
    context.strokeRect(left(state.slice) + (one - wide) / 2, ratio, wide, height - 2 * ratio);
  }
}
