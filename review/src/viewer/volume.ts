/** Brings a volume over HTTP, those slices first that matter. */

import type { Http, Triple, ViewImage } from "./contract";
import type { Voxels } from "./sample";

/** Slices of one request; the service allows 64. */
const FIRST: number = 8;
const MORE: number = 32;
const AT_ONCE: number = 2;
const TRIES: number = 4;

export interface Span {
  /** Both inclusive. */
  readonly from: number;
  readonly to: number;
}

/** The service did not hand out slices. */
export class VolumeError extends Error {
  constructor(
    message: string,
    /** Of the answer; 0 where there was none. */
    readonly status: number,
    readonly detail: string,
  ) {
    super(message);
    this.name = "VolumeError";
  }
}

/** A volume that may be there in part: slices that are not are `outside`. */
export class Volume implements Voxels {
  readonly values: Int16Array;
  readonly shape_ijk: Triple;
  readonly outside: number;
  readonly digest: string;
  private readonly there: Uint8Array;
  private count = 0;

  constructor(image: ViewImage) {
    const [slices, rows, columns] = image.shape_zyx;
    this.shape_ijk = [columns, rows, slices];
    this.outside = image.outside;
    this.digest = image.volume;
    this.values = new Int16Array(slices * rows * columns).fill(image.outside);
    this.there = new Uint8Array(slices);
  }

  get slices(): number {
    return this.shape_ijk[2];
  }

  get loaded_slices(): number {
    return this.count;
  }

  has(slice: number): boolean {
    return this.there[slice] === 1;
  }

  /** The stored integer of a voxel; null where there is none. */
  at(index_ijk: Triple): number | null {
    const [i, j, k] = index_ijk;
    const inside = index_ijk.every((value, axis) => value >= 0 && value < this.shape_ijk[axis as 0 | 1 | 2]);
    if (!inside || !this.has(k)) return null;
    const value = this.values[i + this.shape_ijk[0] * (j + this.shape_ijk[1] * k)]!;
    return value === this.outside ? null : value;
  }

  /** Puts slices in their place.
   *
   * @throws VolumeError There are more or fewer bytes than these slices have.
   */
  put(span: Span, bytes: ArrayBuffer): void {
    const size = this.shape_ijk[0] * this.shape_ijk[1];
    const expected = 2 * size * (span.to - span.from + 1);
    if (bytes.byteLength !== expected) {
      throw new VolumeError(
        `slices ${span.from} to ${span.to} have ${bytes.byteLength} bytes where ${expected} belong`,
        200,
        "",
      );
    }
    // Little endian on the line, and in every processor that a browser of today runs on.
    this.values.set(new Int16Array(bytes), span.from * size);
    for (let slice = span.from; slice <= span.to; slice++) {
      if (!this.has(slice)) this.count++;
      this.there[slice] = 1;
    }
  }
}

/** In which order slices are asked for: around the middle of the target, then the target, then what lies further off. */
export function order(slices: number, target: Span | null): Span[] {
  const wanted = target ?? { from: Math.floor(slices / 2), to: Math.floor(slices / 2) };
  const from = Math.min(slices - 1, Math.max(0, wanted.from));
  const to = Math.min(slices - 1, Math.max(from, wanted.to));
  const middle = Math.floor((from + to) / 2);
  const first = Math.max(0, Math.min(slices - FIRST, middle - FIRST / 2));
  const spans: Span[] = [{ from: first, to: Math.min(slices, first + FIRST) - 1 }];
  let low = spans[0]!.from;
  let high = spans[0]!.to;
  const downTo = (end: number): void => {
    while (low > end) {
      const next = Math.max(end, low - MORE);
      spans.push({ from: next, to: low - 1 });
      low = next;
    }
  };
  const upTo = (end: number): void => {
    while (high < end) {
      const next = Math.min(end, high + MORE);
      spans.push({ from: high + 1, to: next });
      high = next;
    }
  };
  downTo(Math.min(low, from));
  upTo(Math.max(high, to));
  while (low > 0 || high < slices - 1) {
    downTo(Math.max(0, low - MORE));
    upTo(Math.min(slices - 1, high + MORE));
  }
  return spans;
}

export interface Loading {
  readonly http: Http;
  readonly target: Span | null;
  readonly signal: AbortSignal;
  /** Slices that are there now. */
  readonly arrived: (span: Span) => void;
  /** Waits before another try. */
  readonly pause?: (try_: number) => Promise<void>;
}

/**
 * Loads a volume; resolves when all of it is there.
 *
 * @throws VolumeError The service refused, or was not there in several tries.
 */
export async function load(volume: Volume, loading: Loading): Promise<void> {
  const spans = order(volume.slices, loading.target);
  const one = async (span: Span): Promise<void> => {
    const bytes = await fetched(volume.digest, span, loading);
    loading.signal.throwIfAborted();
    volume.put(span, bytes);
    loading.arrived(span);
  };
  // The first picture has the line for itself.
  await one(spans.shift()!);
  const worker = async (): Promise<void> => {
    for (let span = spans.shift(); span; span = spans.shift()) await one(span);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

async function fetched(digest: string, { from, to }: Span, loading: Loading): Promise<ArrayBuffer> {
  const pause = loading.pause ?? wait;
  for (let try_ = 1; ; try_++) {
    let failure: VolumeError;
    try {
      const answer = await loading.http(`/v1/volumes/${digest}/slices?from=${from}&to=${to}`, {
        signal: loading.signal,
      });
      if (answer.ok) return await answer.arrayBuffer();
      const problem = (await answer.json().catch(() => ({}))) as { title?: string; detail?: string };
      failure = new VolumeError(problem.title ?? answer.statusText, answer.status, problem.detail ?? "");
      // What the service refuses it refuses again.
      if (answer.status < 500 && answer.status !== 429) throw failure;
    } catch (error) {
      loading.signal.throwIfAborted();
      if (error instanceof VolumeError) throw error;
      failure = new VolumeError(error instanceof Error ? error.message : String(error), 0, "");
    }
    if (try_ === TRIES) throw failure;
    await pause(try_);
    loading.signal.throwIfAborted();
  }
}

function wait(try_: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 250 * 2 ** try_));
}
