import { describe, expect, test } from "vitest";
import { imageOf } from "./phantom";
import { load, order, Volume, VolumeError, type Span } from "./volume";

const SHAPE = [4, 3, 40] as const;
const image = imageOf(SHAPE, [1, 1, 2]);
const stored = Int16Array.from({ length: 4 * 3 * 40 }, (_, place) => place - 200);

/** A service that has the volume; it writes down what it is asked for. */
function serving(asked: Span[], before: (asked: number) => Response | null = () => null) {
  return async (path: string): Promise<Response> => {
    const query = new URL(path, "http://here").searchParams;
    const span = { from: Number(query.get("from")), to: Number(query.get("to")) };
    asked.push(span);
    return before(asked.length) ?? new Response(stored.slice(span.from * 12, (span.to + 1) * 12));
  };
}

const never = new AbortController().signal;
const atOnce = (): Promise<void> => Promise.resolve();

describe("slices are asked for", () => {
  test.each([
    [128, { from: 60, to: 75 }],
    [128, { from: 0, to: 3 }],
    [128, { from: 120, to: 127 }],
    [5, { from: 2, to: 3 }],
    [1, null],
    [300, null],
    [90, { from: 85, to: 200 }],
  ])("once each, the target's first: %i slices, target %o", (slices, target) => {
    const spans = order(slices, target);
    const seen = spans.flatMap(({ from, to }) => Array.from({ length: to - from + 1 }, (_, n) => from + n));
    expect([...seen].sort((a, b) => a - b)).toEqual(Array.from({ length: slices }, (_, n) => n));
    expect(spans.every(({ from, to }) => to >= from && to - from < 64)).toBe(true);
    if (target) {
      const middle = Math.floor((Math.min(slices - 1, target.from) + Math.min(slices - 1, target.to)) / 2);
      expect(spans[0]!.from <= middle && middle <= spans[0]!.to).toBe(true);
      const last = Math.max(...seen.map((slice, place) => (slice >= target.from && slice <= target.to ? place : 0)));
      expect(last).toBeLessThan(target.to - target.from + 1 + 8);
    }
  });
});

test("a volume comes whole, and says what came", async () => {
  const volume = new Volume(image);
  const asked: Span[] = [];
  const arrived: Span[] = [];
  await load(volume, { http: serving(asked), target: { from: 20, to: 24 }, signal: never, arrived: (s) => arrived.push(s) });
  expect(volume.values).toEqual(stored);
  expect(volume.loaded_slices).toBe(40);
  expect(arrived[0]).toEqual({ from: 18, to: 25 });
  expect(volume.at([3, 2, 39])).toBe(4 * 3 * 40 - 1 - 200);
  expect(volume.at([4, 2, 39])).toBeNull();
});

test("what is not there yet is nothing", () => {
  const volume = new Volume(image);
  volume.put({ from: 3, to: 3 }, stored.slice(36, 48).buffer);
  expect(volume.at([0, 0, 3])).toBe(36 - 200);
  expect(volume.at([0, 0, 4])).toBeNull();
  expect(volume.has(4)).toBe(false);
  expect(volume.values[4 * 12]).toBe(-32768);
});

test("slices with a byte too few are refused", () => {
  expect(() => new Volume(image).put({ from: 0, to: 1 }, new ArrayBuffer(47))).toThrow(
    "slices 0 to 1 have 47 bytes where 48 belong",
  );
});

test("a service that comes back is asked again", async () => {
  const asked: Span[] = [];
  const volume = new Volume(image);
  const http = serving(asked, (count) => (count <= 2 ? new Response("", { status: 503 }) : null));
  await load(volume, { http, target: null, signal: never, arrived: () => undefined, pause: atOnce });
  expect(volume.loaded_slices).toBe(40);
});

test("a service that stays away is an error after some tries", async () => {
  let tries = 0;
  const http = (): Promise<Response> => {
    tries++;
    return Promise.reject(new TypeError("Failed to fetch"));
  };
  const loading = load(new Volume(image), { http, target: null, signal: never, arrived: () => undefined, pause: atOnce });
  await expect(loading).rejects.toEqual(new VolumeError("Failed to fetch", 0, ""));
  expect(tries).toBe(4);
});

test("a refusal is told with its reason and not repeated", async () => {
  const asked: Span[] = [];
  const gone = Response.json({ title: "no such volume", detail: "it was never handed out" }, { status: 404 });
  const loading = load(new Volume(image), { http: serving(asked, () => gone), target: null, signal: never, arrived: () => undefined });
  await expect(loading).rejects.toMatchObject({ message: "no such volume", status: 404, detail: "it was never handed out" });
  expect(asked).toHaveLength(1);
});

test("what is aborted puts nothing in place any more", async () => {
  const volume = new Volume(image);
  const stop = new AbortController();
  const asked: Span[] = [];
  const loading = load(volume, {
    http: serving(asked, (count) => {
      if (count === 2) stop.abort();
      return null;
    }),
    target: null,
    signal: stop.signal,
    arrived: () => undefined,
  });
  await expect(loading).rejects.toMatchObject({ name: "AbortError" });
  expect(volume.loaded_slices).toBe(8);
});
