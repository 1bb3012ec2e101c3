import { describe, expect, test } from "vitest";
import type { DraftBody, Ring, Slices } from "../viewer/contract";
import { Stack } from "../viewer/stack";
import { DraftProblem, type DraftStorage, type Saving } from "./saver";
import { EditingSession } from "./session";

const triangle = (size: number): Ring => [[0, 0], [size, 0], [0, size]];
const contours = new Map<string, Slices>([
  ["rigid", new Map([[3, [triangle(5)]], [4, [triangle(6)]]])],
  ["dir-l", new Map([[3, [triangle(7)]]])],
]);

class Memory implements DraftStorage {
  readonly items = new Map<string, string>();
  getItem = (key: string): string | null => this.items.get(key) ?? null;
  setItem = (key: string, value: string): void => void this.items.set(key, value);
  removeItem = (key: string): void => void this.items.delete(key);
}

const body = (size: number): DraftBody => ({ method: "dir-l", slices: { "3": [triangle(size)] }, edited_slices: [3], seconds: 40 });

/** A service with a draft, or none. */
function answering(draft: DraftBody | null, etag = '"7"') {
  const puts: { body: DraftBody; tag: string | null }[] = [];
  const http = (_: string, init: RequestInit = {}): Promise<Response> => {
    if (init.method === "PUT") {
      puts.push({ body: JSON.parse(init.body as string) as DraftBody, tag: new Headers(init.headers).get("If-Match") });
      return Promise.resolve(new Response(null, { status: 204, headers: { ETag: '"8"' } }));
    }
    return Promise.resolve(
      draft
        ? Response.json({ ...draft, by: "Dr. B", saved_at: "2026-01-03T08:20:00Z" }, { headers: { ETag: etag } })
        : new Response(null, { status: 404 }),
    );
  };
  return { http, puts };
}

function begin(http: (path: string, init?: RequestInit) => Promise<Response>, storage: DraftStorage | null = null) {
  const saving: Saving[] = [];
  const options = {
    http,
    propagation: "p1",
    account: "local:ann",
    storage,
    method: "rigid",
    contours,
    plane: { stack: new Stack([0, 2, 4, 6, 8], 2), bounds: { left_mm: -50, top_mm: -50, right_mm: 50, bottom_mm: 50 } },
    saving: (told: Saving) => saving.push(told),
    later: () => () => undefined,
    now: () => 0,
  };
  return { begun: EditingSession.begin(options), saving };
}

const copyIn = (storage: Memory, base_etag: string | null, size = 9): void =>
  storage.setItem("contourcast.draft.local:ann.p1", JSON.stringify({ body: body(size), base_etag, saved_at: "2026-01-03T08:21:00Z" }));

describe("editing begins", () => {
  test("from the method's own lines where there is no draft", async () => {
    const { session, restored } = await begin(answering(null).http).begun;
    expect(restored).toBeNull();
    expect(session.edits.method).toBe("rigid");
    expect(session.edits.at(3)).toBe(contours.get("rigid")!.get(3));
    expect(session.body()).toEqual({ method: "rigid", slices: {}, edited_slices: [], seconds: 0 });
  });

  test("from the service's draft, of whatever method it is", async () => {
    const { session, restored } = await begin(answering(body(2)).http).begun;
    expect(restored).toEqual({ from: "server", edited_slices: [3], saved_at: "2026-01-03T08:20:00Z", by: "Dr. B" });
    expect(session.body()).toEqual(body(2));
    expect(session.saver.saved_etag).toBe('"7"');
    expect(session.saver.state).toEqual({ state: "saved" });
  });

  test("from the browser's copy where the service still has what it was made from", async () => {
    const storage = new Memory();
    copyIn(storage, '"7"');
    const { http, puts } = answering(body(2));
    const { session, restored } = await begin(http, storage).begun;
    expect(restored).toMatchObject({ from: "browser", saved_at: "2026-01-03T08:21:00Z" });
    expect(session.edits.at(3)).toEqual([triangle(9)]);
    expect(await session.saver.flush()).toBe('"8"');
    expect(puts).toEqual([{ body: body(9), tag: '"7"' }]);
    expect(storage.items.size).toBe(0);
  });

  test("from the copy where the service never had a draft", async () => {
    const storage = new Memory();
    copyIn(storage, null);
    const { session } = await begin(answering(null).http, storage).begun;
    expect(session.saver.state).toEqual({ state: "unsaved" });
  });

  test("with a conflict where somebody else's draft lies there by now, and nothing is sent", async () => {
    const storage = new Memory();
    copyIn(storage, '"6"');
    const { http, puts } = answering(body(2));
    const { session } = await begin(http, storage).begun;
    expect(session.saver.state).toEqual({ state: "conflict", by: "Dr. B" });
    session.touch();
    await expect(session.saver.flush()).rejects.toThrow(DraftProblem);
    expect(puts).toEqual([]);
    session.saver.close();
    expect(storage.items.size).toBe(1);
    session.saver.abandon();
    expect(storage.items.size).toBe(0);
  });

  test("from the service's where the copy is the same", async () => {
    const storage = new Memory();
    copyIn(storage, '"6"', 2);
    const { session, restored } = await begin(answering(body(2)).http, storage).begun;
    expect(restored?.from).toBe("server");
    expect(session.saver.state).toEqual({ state: "saved" });
  });

  test("never from the copy of somebody else who used this browser", async () => {
    const storage = new Memory();
    const copy = { body: body(9), base_etag: null, saved_at: "2026-01-03T08:21:00Z" };
    for (const key of ["contourcast.draft.local:bob.p1", "contourcast.draft.p1"]) storage.setItem(key, JSON.stringify(copy));
    const { session, restored } = await begin(answering(null).http, storage).begun;
    expect(restored).toBeNull();
    expect(session.edits.edited_slices).toEqual([]);
    session.saver.abandon();
    expect(storage.items.size).toBe(2);
  });

  test("not where the service does not say whether there is a draft", async () => {
    await expect(begin(() => Promise.reject(new TypeError("Failed to fetch"))).begun).rejects.toThrow(DraftProblem);
    const refused = Response.json({ title: "not yours" }, { status: 403 });
    await expect(begin(() => Promise.resolve(refused)).begun).rejects.toMatchObject({ message: "not yours", status: 403 });
  });
});
