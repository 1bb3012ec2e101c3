/** Where the slices of a stack lie along their normal, be they evenly apart or not. */
export class Stack {
  /**
   * @param offsets_mm Of each slice from the first; rising.
   * @param alone_mm How thick a slice is that has no neighbour.
   */
  constructor(
    readonly offsets_mm: readonly number[],
    private readonly alone_mm: number,
  ) {}

  get slices(): number {
    return this.offsets_mm.length;
  }

  /** Where an index with fractions lies: linear between two slices, and beyond the outer ones as between the last two. */
  mm(index: number): number {
    const before = this.before(Math.floor(index));
    return this.offsets_mm[before]! + (index - before) * this.gap_mm(before);
  }

  /** The index of a place, with fractions. */
  index(mm: number): number {
    let low = 0;
    let high = this.slices - 1;
    // The last slice that does not lie beyond.
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.offsets_mm[middle]! <= mm) low = middle;
      else high = middle - 1;
    }
    const before = this.before(low);
    return before + (mm - this.offsets_mm[before]!) / this.gap_mm(before);
  }

  /** The length that a slice stands for: half way to its neighbours, an outer one as far outwards as inwards. */
  thickness_mm(slice: number): number {
    return this.mm(slice + 0.5) - this.mm(slice - 0.5);
  }

  /** The gap that a place between slices belongs to, by the slice before it. */
  private before(slice: number): number {
    return Math.max(0, Math.min(this.slices - 2, slice));
  }

  private gap_mm(before: number): number {
    const next = this.offsets_mm[before + 1];
    return next === undefined ? this.alone_mm : next - this.offsets_mm[before]!;
  }
}
