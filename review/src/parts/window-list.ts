/** A list of any length of which only the rows in view are elements. */

import { h, show } from "../dom";

const SPARE_ROWS = 8;

/** First and last (exclusive) row to be drawn. */
export function rowsInView(top_px: number, height_px: number, row_px: number, count: number): [number, number] {
  const first = Math.max(0, Math.floor(top_px / row_px) - SPARE_ROWS);
  const last = Math.min(count, Math.ceil((top_px + height_px) / row_px) + SPARE_ROWS);
  return [Math.min(first, last), last];
}

export class WindowList {
  readonly element: HTMLElement;
  private readonly body: HTMLElement;
  private count = 0;
  private drawn: [number, number] = [0, 0];

  constructor(
    private readonly row_px: number,
    private readonly row: (index: number) => HTMLElement,
    /** What a row is about: the focus stays with it, wherever in the list it goes. */
    private readonly key: (index: number) => string,
    /** Rows up to here are in view: the moment to load more. */
    private readonly reached: (last: number) => void,
  ) {
    this.body = h("div", { class: "window-body", role: "presentation" });
    this.element = h("div", { class: "window", role: "rowgroup" }, this.body);
    this.element.addEventListener("scroll", () => this.draw(false), { passive: true });
    new ResizeObserver(() => this.draw(false)).observe(this.element);
  }

  /** There are so many rows now, and all of them may be others. */
  set(count: number): void {
    this.count = count;
    this.body.style.setProperty("height", `${count * this.row_px}px`);
    this.draw(true);
  }

  get top_px(): number {
    return this.element.scrollTop;
  }

  get page(): number {
    return Math.max(1, Math.floor(this.element.clientHeight / this.row_px) - 1);
  }

  /** Brings a row into view. */
  reveal(index: number): void {
    const top = index * this.row_px;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + this.row_px > scrollTop + clientHeight) this.element.scrollTop = top + this.row_px - clientHeight;
    this.draw(false);
  }

  /** What the row with the focus is about. */
  get focused(): string | null {
    const { activeElement } = document;
    return this.body.contains(activeElement) ? ((activeElement as HTMLElement).dataset["key"] ?? null) : null;
  }

  /** The element of a row, while it is in view. */
  at(index: number): HTMLElement | null {
    return this.body.querySelector<HTMLElement>(`[data-index="${index}"]`);
  }

  private draw(all: boolean): void {
    const next = rowsInView(this.element.scrollTop, this.element.clientHeight, this.row_px, this.count);
    if (!all && next[0] === this.drawn[0] && next[1] === this.drawn[1]) return;
    this.drawn = next;
    const { focused } = this;
    const rows: HTMLElement[] = [];
    for (let index = next[0]; index < next[1]; index++) {
      const made = this.row(index);
      made.dataset["index"] = String(index);
      made.dataset["key"] = this.key(index);
      made.style.setProperty("top", `${index * this.row_px}px`);
      rows.push(made);
    }
    show(this.body, rows);
    if (focused !== null) rows.find((made) => made.dataset["key"] === focused)?.focus({ preventScroll: true });
    this.reached(next[1]);
  }
}
