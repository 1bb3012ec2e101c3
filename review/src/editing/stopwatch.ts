/** How long somebody worked at a contour: the time between one action and the next, but not the time away from the desk. */
export class Stopwatch {
  private last_ms: number | null = null;
  private sum_ms = 0;

  constructor(
    seconds = 0,
    /** Who does nothing for longer is away: this much of a pause counts. */
    private readonly pause_ms = 30_000,
  ) {
    this.sum_ms = seconds * 1000;
  }

  /** Something was done. */
  tick(now_ms: number): void {
    if (this.last_ms !== null) this.sum_ms += Math.min(this.pause_ms, Math.max(0, now_ms - this.last_ms));
    this.last_ms = now_ms;
  }

  get seconds(): number {
    return Math.round(this.sum_ms / 1000);
  }
}
