import { describe, expect, test } from "vitest";
import type { DraftBody } from "../viewer/contract";
import { DraftProblem, DraftSaver, same, sameTag, type DraftStorage, type Saving } from "./saver";

/** A clock that goes on when it is told to. */
class Clock {
  ms = 0;
  private calls: { at: number; call: () => void }[] = [];
  readonly now = (): number => this.ms;
  readonly later = (call: () => void, ms: number): (() => void) => {
    const entry = { at: this.ms + ms, call };
    this.calls.push(entry);
    return () => {
      this.calls = this.calls.filter((other) => other !== entry);
    };
  };

  async advance(ms: number): Promise<void> {
    const end = this.ms + ms;
    for (;;) {
      await settled();
      const next = this.calls.filter(({ at }) => at <= end).sort((a, b) => a.at - b.at)[0];
      if (!next) break;
      this.calls = this.calls.filter((other) => other !== next);
      this.ms = next.at;
      next.call();
    }
    this.ms = end;
    await settled();
  }
}

/** All that promises still had to do is done. */
async function settled(): Promise<void> {
  for (let n = 0; n < 60; n++) await Promise.resolve();
}

/** The service's side of the contract, kept in memory. */
class Service {
  draft: (DraftBody & { by: string; saved_at: string }) | null = null;
  version = 0;
  puts = 0;
  under_way = 0;
  most_under_way = 0;
  /** Fails, or holds requests up. */
  fault: ((method: string) => Response | Promise<never> | null) | null = null;
  hold: Promise<void> | null = null;
  losesAnswer = false;

  constructor(readonly me = "Dr. A") {}

  get etag(): string {
    return `"${this.version}"`;
  }

  save(body: DraftBody, by: string): void {
    this.draft = { ...(JSON.parse(JSON.stringify(body)) as DraftBody), by, saved_at: "2026-01-03T08:20:00Z" };
    this.version++;
  }

  readonly http = async (path: string, init: RequestInit = {}): Promise<Response> => {
    expect(path).toBe("/v1/propagations/p1/draft");
    this.under_way++;
    this.most_under_way = Math.max(this.most_under_way, this.under_way);
    try {
      if (this.hold) await this.hold;
      const fault = this.fault?.(init.method ?? "GET");
      if (fault) return await fault;
      return this.answer(init);
    } finally {
      this.under_way--;
    }
  };

  private answer(init: RequestInit): Response {
    const headers = new Headers(init.headers);
    if (init.method === "GET") {
      return this.draft
        ? Response.json(this.draft, { headers: { ETag: this.etag } })
        : Response.json({ title: "there is no draft" }, { status: 404 });
    }
    if (init.method === "DELETE") {
      this.draft = null;
      return new Response(null, { status: 204 });
    }
    this.puts++;
    const fits = this.draft ? headers.get("If-Match") === this.etag : headers.get("If-None-Match") === "*";
    if (!fits) return Response.json({ title: "somebody else saved" }, { status: 412 });
    this.save(JSON.parse(init.body as string) as DraftBody, this.me);
    if (this.losesAnswer) {
      this.losesAnswer = false;
      throw new TypeError("Failed to fetch");
    }
    return new Response(null, { status: 204, headers: { ETag: this.etag } });
  }
}

class Memory implements DraftStorage {
  readonly items = new Map<string, string>();
  getItem = (key: string): string | null => this.items.get(key) ?? null;
  setItem = (key: string, value: string): void => void this.items.set(key, value);
  removeItem = (key: string): void => void this.items.delete(key);
}

function begin(service = new Service(), storage: DraftStorage = new Memory()) {
  const clock = new Clock();
  const told: Saving[] = [];
  let work = 0;
  const body = (): DraftBody => ({ method: "rigid", slices: { "4": [[[work, 0]]] }, edited_slices: [4], seconds: 1 });
  const saver = new DraftSaver({
    http: service.http,
    propagation: "p1",
    account: "local:ann",
    storage,
    body,
    changed: (saving) => told.push(saving),
    now: clock.now,
    later: clock.later,
  });
  const draw = (): void => {
    work++;
    saver.touch();
  };
  const drawn = (): number => work;
  const saved = (): number | undefined => service.draft?.slices["4"]?.[0]?.[0]?.[0];
  return { saver, service, clock, told, draw, drawn, saved, storage };
}

describe("a draft", () => {
  test("is saved within a second of the last change", async () => {
    const { draw, clock, saved, saver, told } = begin();
    draw();
    await clock.advance(1000);
    expect(saved()).toBe(1);
    expect(saver.state).toEqual({ state: "saved" });
    expect(told.map(({ state }) => state)).toEqual(["unsaved", "saving", "saved"]);
    draw();
    await clock.advance(1000);
    expect(saved()).toBe(2);
  });

  test("is never more than a second behind while somebody draws", async () => {
    const { draw, clock, saved, drawn, service } = begin();
    draw();
    for (let n = 0; n < 100; n++) {
      await clock.advance(100);
      if (n > 10) expect(drawn() - saved()!).toBeLessThanOrEqual(10);
      draw();
    }
    expect(service.most_under_way).toBe(1);
    expect(service.puts).toBeLessThan(30);
  });

  test("has one request under way, however slow the service is, and a copy meanwhile", async () => {
    const { draw, clock, saved, service, saver, storage } = begin();
    let release = (): void => undefined;
    service.hold = new Promise((resolve) => (release = resolve));
    draw();
    await clock.advance(600);
    draw();
    await clock.advance(5000);
    expect(service.most_under_way).toBe(1);
    expect(saved()).toBeUndefined();
    expect((storage as Memory).getItem("contourcast.draft.local:ann.p1")).toContain("[2,0]");
    service.hold = null;
    release();
    await clock.advance(1000);
    expect(saved()).toBe(2);
    expect(saver.state.state).toBe("saved");
  });

  test("that nobody changed is not sent", async () => {
    const { clock, service } = begin();
    await clock.advance(10_000);
    expect(service.puts).toBe(0);
  });
});

describe("when the service is gone", () => {
  const gone = (): Promise<never> => Promise.reject(new TypeError("Failed to fetch"));

  test("it is asked again, less and less often, and says since when", async () => {
    const { draw, clock, saved, service, saver } = begin();
    let asked = 0;
    service.fault = () => {
      asked++;
      return gone();
    };
    draw();
    await clock.advance(60_000);
    expect(saver.state).toMatchObject({ state: "offline", since: new Date(0) });
    expect(asked).toBeGreaterThan(4);
    expect(asked).toBeLessThan(12);
    service.fault = null;
    await clock.advance(16_000);
    expect(saver.state).toEqual({ state: "saved" });
    expect(saved()).toBe(1);
  });

  test("the copy in the browser is a second old at most, and goes when the service has it", async () => {
    const { draw, clock, service, storage } = begin();
    const copied = (): string | undefined => (storage as Memory).items.get("contourcast.draft.local:ann.p1");
    service.fault = gone;
    for (let n = 0; n < 30; n++) {
      draw();
      await clock.advance(100);
    }
    await clock.advance(1000);
    expect(copied()).toContain("[30,0]");
    service.fault = null;
    await clock.advance(20_000);
    expect(copied()).toBeUndefined();
  });

  test.each([500, 503, 429, 401])("or answers %i, it is the same", async (status) => {
    const { draw, clock, service, saver, saved } = begin();
    service.fault = () => Response.json({ title: "later" }, { status });
    draw();
    await clock.advance(1000);
    expect(saver.state.state).toBe("offline");
    service.fault = null;
    await clock.advance(20_000);
    expect(saved()).toBe(1);
  });

  test("and an answer is lost, the draft that arrived is known as ours", async () => {
    const { draw, clock, service, saver, drawn, saved } = begin();
    service.losesAnswer = true;
    draw();
    await clock.advance(5000);
    expect(saver.state).toEqual({ state: "saved" });
    draw();
    await clock.advance(1000);
    expect(saved()).toBe(drawn());
  });

  test("and an answer is lost while somebody draws on, the draft that arrived is no other person's", async () => {
    const { draw, clock, service, saver, drawn, saved } = begin();
    draw();
    await clock.advance(1000);
    service.losesAnswer = true;
    for (let n = 0; n < 10; n++) {
      draw();
      await clock.advance(400);
    }
    await clock.advance(15_000);
    expect(saver.state).toEqual({ state: "saved" });
    expect(saved()).toBe(drawn());
  });

  test("and an answer is lost, what somebody else saved after it is a conflict", async () => {
    const { draw, clock, service, saver } = begin();
    service.losesAnswer = true;
    draw();
    await clock.advance(600);
    service.save({ method: "dir-l", slices: {}, edited_slices: [], seconds: 3 }, "Dr. B");
    draw();
    await clock.advance(15_000);
    expect(saver.state).toEqual({ state: "conflict", by: "Dr. B" });
  });

  test("and takes no end over a request, that request is given up", async () => {
    const { draw, clock, service, saver } = begin();
    const http = service.http;
    let given_up = false;
    const stuck = new DraftSaver({
      http: (path, init) =>
        init?.method === "PUT"
          ? new Promise((_, reject) => {
              init.signal!.addEventListener("abort", () => {
                given_up = true;
                reject(new DOMException("aborted", "AbortError"));
              });
            })
          : http(path, init),
      propagation: "p1",
      account: "local:ann",
      storage: null,
      body: () => ({ method: "rigid", slices: {}, edited_slices: [], seconds: 0 }),
      changed: () => undefined,
      now: clock.now,
      later: clock.later,
    });
    stuck.touch();
    await clock.advance(11_000);
    expect(given_up).toBe(true);
    expect(stuck.state.state).toBe("offline");
    stuck.close();
    draw();
    await clock.advance(1000);
    expect(saver.state.state).toBe("saved");
  });
});

describe("when somebody else saved", () => {
  test("saving stops and says who", async () => {
    const { draw, clock, service, saver } = begin();
    draw();
    await clock.advance(1000);
    service.save({ method: "dir-l", slices: {}, edited_slices: [], seconds: 3 }, "Dr. B");
    draw();
    await clock.advance(1000);
    expect(saver.state).toEqual({ state: "conflict", by: "Dr. B" });
    const puts = service.puts;
    draw();
    await clock.advance(20_000);
    expect(service.puts).toBe(puts);
    expect(service.draft!.by).toBe("Dr. B");
    await expect(saver.flush()).rejects.toThrow(DraftProblem);
  });

  test("theirs goes only when the user says so", async () => {
    const { draw, clock, service, saver, saved } = begin();
    service.save({ method: "dir-l", slices: {}, edited_slices: [], seconds: 3 }, "Dr. B");
    draw();
    await clock.advance(1000);
    expect(saver.state.state).toBe("conflict");
    await saver.overrule();
    expect(saved()).toBe(1);
    expect(saver.state).toEqual({ state: "saved" });
  });

  test("theirs stays when ours is thrown away, and ours stays in the browser when the page is left", async () => {
    const { draw, clock, service, saver, storage } = begin();
    service.save({ method: "dir-l", slices: {}, edited_slices: [], seconds: 3 }, "Dr. B");
    draw();
    await clock.advance(1000);
    draw();
    saver.close();
    expect((storage as Memory).getItem("contourcast.draft.local:ann.p1")).toContain("[2,0]");
    await saver.discard();
    expect(service.draft!.by).toBe("Dr. B");
    expect((storage as Memory).items.size).toBe(0);
  });

  test("or threw ours away, it is begun anew", async () => {
    const { draw, clock, service, saver, saved } = begin();
    draw();
    await clock.advance(1000);
    service.draft = null;
    draw();
    await clock.advance(1000);
    expect(saved()).toBe(2);
    expect(saver.state.state).toBe("saved");
  });
});

describe("a refusal", () => {
  test("is told with its reason; the next change tries again", async () => {
    const { draw, clock, service, saver, saved } = begin();
    service.fault = (method) =>
      method === "PUT" ? Response.json({ title: "not for viewers", detail: "ask for the role" }, { status: 403 }) : null;
    draw();
    await clock.advance(5000);
    expect(saver.state).toEqual({ state: "refused", title: "not for viewers", detail: "ask for the role" });
    service.fault = null;
    draw();
    await clock.advance(1000);
    expect(saved()).toBe(2);
  });
});

describe("before a signature", () => {
  test("all is saved, and the tag is the one that the service has", async () => {
    const { draw, saver, service, saved } = begin();
    draw();
    expect(await saver.flush()).toBe(service.etag);
    expect(saved()).toBe(1);
    expect(await saver.flush()).toBe(service.etag);
    expect(service.puts).toBe(1);
  });

  test("a draft that cannot be saved is an error and no signature", async () => {
    const { draw, saver, service } = begin();
    service.fault = () => Promise.reject(new TypeError("Failed to fetch"));
    draw();
    await expect(saver.flush()).rejects.toMatchObject({ status: 0, message: "Failed to fetch" });
  });
});

describe("after a reload", () => {
  test("the copy is there, with what the service had then", async () => {
    const service = new Service();
    const storage = new Memory();
    const first = begin(service, storage);
    first.draw();
    await first.clock.advance(1000);
    service.fault = () => Promise.reject(new TypeError("Failed to fetch"));
    first.draw();
    await first.clock.advance(700);
    const second = begin(service, storage);
    const copy = second.saver.copy()!;
    expect(copy.body.slices["4"]).toEqual([[[2, 0]]]);
    expect(copy.base_etag).toBe(service.etag);
    await expect(second.saver.fetched()).rejects.toThrow(DraftProblem);
    service.fault = null;
    expect((await second.saver.fetched())!.draft.by).toBe("Dr. A");
    second.saver.adopt(copy.base_etag, true);
    await second.clock.advance(1000);
    expect(second.saver.state).toEqual({ state: "saved" });
  });

  test("a page that is left keeps what the service does not have", () => {
    const storage = new Memory();
    const { draw, saver } = begin(new Service(), storage);
    draw();
    saver.close();
    expect(storage.items.size).toBe(1);
  });

  test("a copy that cannot be read is none", () => {
    const storage = new Memory();
    storage.setItem("contourcast.draft.local:ann.p1", "{");
    expect(begin(new Service(), storage).saver.copy()).toBeNull();
  });

  test("a browser without room saves all the same", async () => {
    const full: DraftStorage = {
      getItem: () => null,
      setItem: () => {
        throw new DOMException("full", "QuotaExceededError");
      },
      removeItem: () => {
        throw new DOMException("no", "SecurityError");
      },
    };
    const { draw, clock, saved, saver, service } = begin(new Service(), full);
    draw();
    await clock.advance(1000);
    expect(saved()).toBe(1);
    // and without the service, nobody is told that anything is kept
    service.fault = () => Promise.reject(new TypeError("Failed to fetch"));
    draw();
    await clock.advance(1000);
    expect(saver.state).toMatchObject({ state: "offline", kept: false });
  });

  test("a browser that keeps it says so", async () => {
    const { draw, clock, saver, service } = begin();
    service.fault = () => Promise.reject(new TypeError("Failed to fetch"));
    draw();
    await clock.advance(1000);
    expect(saver.state).toMatchObject({ state: "offline", kept: true });
  });

  test("of two tabs of one person, the one in conflict keeps its draft when the other one saves", async () => {
    const [service, storage] = [new Service(), new Memory()];
    const [one, other] = [begin(service, storage), begin(service, storage)];
    one.draw();
    await one.clock.advance(1000);
    other.draw();
    other.draw();
    await other.clock.advance(1000);
    expect(other.saver.state.state).toBe("conflict");
    one.draw();
    one.draw();
    one.draw();
    await one.clock.advance(1000);
    expect(one.saver.state.state).toBe("saved");
    other.saver.close();
    expect([...storage.items.values()].join()).toContain("[2,0]");
  });
});

test("a draft that is thrown away is gone in both places", async () => {
  const { draw, clock, saver, service, storage } = begin();
  draw();
  await clock.advance(1000);
  draw();
  await saver.discard();
  expect(service.draft).toBeNull();
  expect((storage as Memory).items.size).toBe(0);
  await clock.advance(5000);
  expect(service.draft).toBeNull();
});

test("a draft that the service does not throw away is an error, and kept", async () => {
  const { draw, clock, saver, service, storage } = begin();
  service.fault = () => Response.json({ title: "no", detail: "locked" }, { status: 409 });
  draw();
  await clock.advance(100);
  await expect(saver.discard()).rejects.toMatchObject({ status: 409, detail: "locked" });
  expect((storage as Memory).items.size).toBe(1);
});

test("two drafts are the same when they draw the same, however long it took", () => {
  const a = { method: "rigid", slices: { "4": [[[1, 2] as const]] }, edited_slices: [4], seconds: 1 };
  expect(same(a, { ...a, seconds: 9 })).toBe(true);
  expect(same(a, { ...a, method: "dir-l" })).toBe(false);
  expect(same(a, { ...a, slices: { "4": [] } })).toBe(false);
});

test("a tag is the same however its answer was packed", () => {
  expect(sameTag('"abc"', '"abc-gzip"')).toBe(true);
  expect(sameTag('W/"abc"', '"abc"')).toBe(true);
  expect(sameTag('"abc"', '"abd-gzip"')).toBe(false);
  expect(sameTag(null, '"abc"')).toBe(false);
  expect(sameTag(null, null)).toBe(true);
});
