/** The lines of one method while somebody mends them, and every step back. */

import { ringsOf } from "../viewer/contours";
import type { DraftBody, Rings, Slices } from "../viewer/contract";
import type { Stack } from "../viewer/stack";
import { area_mm2 } from "./clip";
import { between } from "./shape";
import { sound, type Bounds } from "./sound";

/** What of the grid an editor of lines has to know. */
export interface Plane {
  readonly stack: Stack;
  readonly bounds: Bounds;
}

/** One operation: what the slices that it changed held before and after. */
interface Step {
  readonly before: ReadonlyMap<number, Rings>;
  readonly after: ReadonlyMap<number, Rings>;
}

/**
 * Lines by slice with undo.
 *
 * A slice that was not touched, or was brought back, holds the very array that the service sent: what counts as edited is told by
 * identity, not by comparing numbers.
 */
export class Edits {
  private readonly now: Map<number, Rings>;
  private readonly done: Step[] = [];
  private undone: Step[] = [];
  /** What the slices held when the running operation began. */
  private began: Map<number, Rings> | null = null;
  private readonly areas = new WeakMap<Rings, number>();
  private readonly interpolated = new WeakSet<Rings>();

  constructor(
    readonly method: string,
    private readonly base: Slices,
    private readonly plane: Plane,
    saved?: DraftBody["slices"],
  ) {
    this.now = new Map(base);
    for (const [slice, rings] of Object.entries(saved ?? {})) this.now.set(Number(slice), rings);
  }

  /** All lines as they are now. */
  get slices(): Slices {
    return this.now;
  }

  at(slice: number): Rings {
    return ringsOf(this.now, slice);
  }

  /** What the method itself drew there. */
  machine(slice: number): Rings {
    return ringsOf(this.base, slice);
  }

  get edited_slices(): number[] {
    return [...this.now]
      .filter(([slice, rings]) => rings !== this.machine(slice))
      .map(([slice]) => slice)
      .sort((a, b) => a - b);
  }

  /** Area under the even-odd rule times the length that each slice stands for, as the service counts it. */
  get volume_cc(): number {
    let volume_mm3 = 0;
    for (const [slice, rings] of this.now) volume_mm3 += this.area_mm2(rings) * this.plane.stack.thickness_mm(slice);
    return volume_mm3 / 1000;
  }

  get can_undo(): boolean {
    return this.done.length > 0;
  }

  get can_redo(): boolean {
    return this.undone.length > 0;
  }

  /** Opens an operation: what changes until `commit` is one step back. */
  begin(): void {
    this.commit();
    this.began = new Map();
  }

  /** Changes a slice in the open operation, or as an operation of its own. */
  change(slice: number, rings: Rings): void {
    const alone = this.began === null;
    if (alone) this.begin();
    const before = this.at(slice);
    if (rings !== before) {
      if (!this.began!.has(slice)) this.began!.set(slice, before);
      this.now.set(slice, rings);
    }
    if (alone) this.commit();
  }

  /** Closes the operation; what it left is sound. Returns whether it changed anything. */
  commit(): boolean {
    for (const slice of this.began?.keys() ?? []) this.settle(slice);
    const before = new Map([...(this.began ?? [])].filter(([slice, rings]) => rings !== this.at(slice)));
    this.began = null;
    if (before.size === 0) return false;
    this.done.push({ before, after: new Map([...before.keys()].map((slice) => [slice, this.at(slice)])) });
    this.undone = [];
    return true;
  }

  /** Takes back the last operation. Returns the slices that it changed; null where there is none. */
  undo(): number[] | null {
    this.commit();
    const step = this.done.pop();
    if (!step) return null;
    this.undone.push(step);
    return this.set(step.before);
  }

  redo(): number[] | null {
    this.commit();
    const step = this.undone.pop();
    if (!step) return null;
    this.done.push(step);
    return this.set(step.after);
  }

  /**
   * Fills the slices between edited ones with shapes between them, as one operation.
   *
   * Shapes that an earlier call made are made anew. Towards a slice that was emptied there is nothing to interpolate.
   *
   * @returns Whether anything changed.
   */
  interpolate(): boolean {
    const keys = this.edited_slices.filter((slice) => !this.interpolated.has(this.at(slice)));
    this.begin();
    keys.slice(1).forEach((to, n) => {
      const from = keys[n]!;
      const wanted = Array.from({ length: to - from - 1 }, (_, m) => from + 1 + m);
      if (wanted.length === 0 || this.at(from).length === 0 || this.at(to).length === 0) return;
      const [from_mm, to_mm] = [this.plane.stack.mm(from), this.plane.stack.mm(to)];
      const shares = wanted.map((slice) => (this.plane.stack.mm(slice) - from_mm) / (to_mm - from_mm));
      between(this.at(from), this.at(to), shares).forEach((rings, m) => {
        this.interpolated.add(rings);
        this.change(wanted[m]!, rings);
      });
    });
    return this.commit();
  }

  /** What is saved: the edited slices alone. */
  body(seconds: number): DraftBody {
    const edited_slices = this.edited_slices;
    return {
      method: this.method,
      slices: Object.fromEntries(edited_slices.map((slice) => [String(slice), this.at(slice)])),
      edited_slices,
      seconds,
    };
  }

  private settle(slice: number): void {
    const rings = this.at(slice);
    const settled = rings === this.machine(slice) ? rings : sound(rings, this.plane.bounds);
    if (settled === rings) return;
    if (this.interpolated.has(rings)) this.interpolated.add(settled);
    this.now.set(slice, settled);
  }

  private set(slices: ReadonlyMap<number, Rings>): number[] {
    for (const [slice, rings] of slices) {
      // A slice that the method never had is not one that somebody emptied.
      if (rings.length === 0 && rings === this.machine(slice)) this.now.delete(slice);
      else this.now.set(slice, rings);
    }
    return [...slices.keys()];
  }

  private area_mm2(rings: Rings): number {
    let area = this.areas.get(rings);
    if (area === undefined) {
      area = area_mm2(rings);
      this.areas.set(rings, area);
    }
    return area;
  }
}
