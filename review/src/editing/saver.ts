/**
 * Saves a draft while it is made.
 *
 * At most half a second after a change, and as often while changes go on, the draft is copied into the browser and sent to the service: one request
 * at a time, never waited for by who draws. When the service is gone it is asked again, less and less often; the copy in the browser outlives
 * a reload and a crash. When somebody else saved meanwhile, saving stops and says who: two drafts are never mixed.
 */

import type { DraftBody, Http } from "../viewer/contract";

/** Less than the second of work that may be lost, by what a request takes. */
const EVERY_MS: number = 500;
const GIVE_UP_MS: number = 10_000;
const LONGEST_PAUSE_MS: number = 15_000;

export type Saving =
  | { readonly state: "saved" | "unsaved" | "saving" }
  /** `kept`: a copy lies in the browser. */
  | { readonly state: "offline"; readonly since: Date; readonly attempts: number; readonly kept: boolean }
  | { readonly state: "conflict"; readonly by: string }
  | { readonly state: "refused"; readonly title: string; readonly detail: string };

/** Where the copy lies: the part of `localStorage` that is used. */
export type DraftStorage = Pick<Storage, "getItem" | "setItem" | "removeItem">;

/** A draft as the service keeps it. */
export interface ServerDraft extends DraftBody {
  readonly saved_at: string;
  readonly by: string;
}

/** A draft in the browser that the service may not have, and what the service had when it was made. */
export interface LocalDraft {
  readonly body: DraftBody;
  readonly base_etag: string | null;
  readonly saved_at: string;
}

/** The draft could not be saved, loaded or thrown away. */
export class DraftProblem extends Error {
  constructor(
    message: string,
    /** Of the answer; 0 where there was none. */
    readonly status: number,
    readonly detail: string,
  ) {
    super(message);
    this.name = "DraftProblem";
  }
}

export interface SaverOptions {
  readonly http: Http;
  readonly propagation: string;
  /** Whose copy lies in the storage. */
  readonly account: string;
  readonly storage: DraftStorage | null;
  /** The draft as it is now. */
  readonly body: () => DraftBody;
  readonly changed: (saving: Saving) => void;
  readonly now?: () => number;
  /** Calls back later; returns what takes the call back. */
  readonly later?: (call: () => void, ms: number) => () => void;
}

export class DraftSaver {
  private saving: Saving = { state: "saved" };
  private etag: string | null = null;
  /** Counts changes; what was sent and what is kept are told by it. */
  private change = 0;
  private kept = 0;
  /** The copy in the browser that is ours: another tab may have one under the same key. */
  private copied: string | null = null;
  private room = true;
  private acknowledged = 0;
  private flight: Promise<void> | null = null;
  private began_ms = -Infinity;
  private attempts = 0;
  /** What was sent and not answered, since the last answer: the first and the latest. One of them may have arrived. */
  private unanswered: readonly DraftBody[] = [];
  private cancel: (() => void) | null = null;
  private closed = false;
  private readonly now: () => number;
  private readonly later: (call: () => void, ms: number) => () => void;

  constructor(private readonly options: SaverOptions) {
    this.now = options.now ?? Date.now;
    this.later =
      options.later ??
      ((call, ms) => {
        const timer = setTimeout(call, ms);
        return () => clearTimeout(timer);
      });
  }

  get state(): Saving {
    return this.saving;
  }

  /** The tag of the draft that the service has; null where it has none of ours. */
  get saved_etag(): string | null {
    return this.etag;
  }

  /** What the service holds for everybody.
   *
   * @throws DraftProblem The service refused, or was not there.
   */
  async fetched(): Promise<{ draft: ServerDraft; etag: string } | null> {
    const answer = await this.ask("GET");
    if (answer.status === 404) return null;
    if (!answer.ok) throw await problemOf(answer);
    return { draft: (await answer.json()) as ServerDraft, etag: answer.headers.get("ETag") ?? "" };
  }

  /** The copy that a page left that ended before the service had it. */
  copy(): LocalDraft | null {
    try {
      this.copied = this.options.storage?.getItem(this.key) ?? null;
      return this.copied ? (JSON.parse(this.copied) as LocalDraft) : null;
    } catch {
      // A browser may forbid its storage, or another version may have written there: then there is no copy.
      return null;
    }
  }

  /** Goes on from what the service has; `unsaved` when the draft in hand is newer. */
  adopt(etag: string | null, unsaved: boolean): void {
    this.etag = etag;
    if (unsaved) this.touch();
    else this.tell({ state: "saved" });
  }

  /** Somebody else's draft lies there: nothing is saved until it is decided whose goes on. */
  refuse(by: string): void {
    this.change++;
    this.kept = this.change;
    this.tell({ state: "conflict", by });
  }

  /** The draft was changed. */
  touch(): void {
    this.change++;
    if (this.closed) return;
    if (this.saving.state === "saved" || this.saving.state === "refused") this.tell({ state: "unsaved" });
    if (!this.cancel) this.schedule(Math.max(0, this.began_ms + EVERY_MS - this.now()));
  }

  /**
   * Saves what is not saved yet.
   *
   * @returns The tag of the draft.
   * @throws DraftProblem It could not be saved.
   */
  async flush(): Promise<string> {
    while (this.flight) await this.flight;
    while (this.acknowledged < this.change || this.etag === null) {
      if (this.saving.state === "conflict") throw new DraftProblem(this.saving.by, 412, this.saving.by);
      this.keep();
      const failure = await this.send();
      if (failure) throw failure;
    }
    return this.etag;
  }

  /** Somebody else's draft is thrown away for this one, because the user said so. */
  async overrule(): Promise<void> {
    const theirs = await this.fetched();
    this.etag = theirs?.etag ?? null;
    this.tell({ state: "unsaved" });
    this.change++;
    await this.flush();
  }

  /** Ours is given up for somebody else's: nothing is saved any more, and the copy goes. */
  abandon(): void {
    this.closed = true;
    this.cancel?.();
    this.cancel = null;
    this.forget();
  }

  /** Throws the draft away, here and at the service; in a conflict the service's is somebody else's, and stays.
   *
   * @throws DraftProblem The service did not.
   */
  async discard(): Promise<void> {
    if (this.saving.state === "conflict") return this.abandon();
    this.close();
    while (this.flight) await this.flight;
    try {
      const answer = await this.ask("DELETE", undefined, this.etag === null ? {} : { "If-Match": this.etag });
      if (!answer.ok && answer.status !== 404) throw await problemOf(answer);
    } catch (error) {
      this.closed = false;
      throw error;
    }
    this.etag = null;
    this.forget();
  }

  /** Ends the saving; a copy of what is not saved stays. */
  close(): void {
    if (this.saving.state === "conflict") this.kept = -1; // another tab may have written over it
    this.keep();
    this.closed = true;
    this.cancel?.();
    this.cancel = null;
  }

  private schedule(wait_ms: number): void {
    this.cancel = this.later(() => {
      this.cancel = null;
      this.tick();
    }, wait_ms);
  }

  /** What happens twice a second while there is something to save. */
  private tick(): void {
    if (this.closed || this.saving.state === "conflict" || this.acknowledged === this.change) return;
    this.keep();
    // While a request is under way, or the service is gone, the copy is all that is done.
    if (!this.flight && this.now() >= this.began_ms + this.pause_ms) void this.send();
    if (this.acknowledged < this.change && this.saving.state !== "refused") this.schedule(EVERY_MS);
  }

  private get pause_ms(): number {
    return this.attempts === 0 ? 0 : Math.min(LONGEST_PAUSE_MS, EVERY_MS * 2 ** this.attempts);
  }

  /** One request; the failure that it met. */
  private send(): Promise<DraftProblem | null> {
    const sent = this.change;
    const body = this.options.body();
    this.began_ms = this.now();
    if (this.saving.state !== "offline") this.tell({ state: "saving" });
    const sending = this.put(body, sent);
    this.flight = sending.then(
      () => void (this.flight = null),
      () => void (this.flight = null),
    );
    return sending;
  }

  private async put(body: DraftBody, sent: number): Promise<DraftProblem | null> {
    let failure: DraftProblem;
    try {
      const tag = this.etag === null ? { "If-None-Match": "*" } : { "If-Match": this.etag };
      const answer = await this.ask("PUT", JSON.stringify(body), { "Content-Type": "application/json", ...tag });
      if (answer.ok) return this.arrived(answer.headers.get("ETag") ?? "", sent);
      if (answer.status === 412) return await this.overtaken(body, sent);
      failure = await problemOf(answer);
    } catch (error) {
      failure = error instanceof DraftProblem ? error : new DraftProblem(String(error), 0, "");
    }
    // Signed out (401) is like gone: who signs in again goes on. Too much and too often pass, too.
    const passes = failure.status === 0 || failure.status === 401 || failure.status === 429 || failure.status >= 500;
    if (passes) {
      this.attempts++;
      this.unanswered = [this.unanswered[0] ?? body, body];
      const since = this.saving.state === "offline" ? this.saving.since : new Date(this.now());
      this.tell({ state: "offline", since, attempts: this.attempts, kept: this.room });
      if (!this.cancel && !this.closed) this.schedule(EVERY_MS);
    } else {
      this.tell({ state: "refused", title: failure.message, detail: failure.detail });
    }
    return failure;
  }

  private arrived(etag: string, sent: number): null {
    this.etag = etag;
    this.attempts = 0;
    this.unanswered = [];
    this.acknowledged = sent;
    if (sent === this.change) {
      this.forget();
      this.tell({ state: "saved" });
    } else {
      this.tell({ state: "unsaved" });
    }
    return null;
  }

  /** Somebody else's draft lies there; or our own, whose answer was lost on the way. */
  private async overtaken(body: DraftBody, sent: number): Promise<DraftProblem | null> {
    const theirs = await this.fetched();
    if (theirs && same(theirs.draft, body)) return this.arrived(theirs.etag, sent);
    if (!theirs || this.unanswered.some((each) => same(theirs.draft, each))) {
      // It was thrown away elsewhere, and ours begins anew; or it is what we had drawn before, and ours goes on from there.
      this.etag = theirs?.etag ?? null;
      return this.put(body, sent);
    }
    this.tell({ state: "conflict", by: theirs.draft.by });
    return new DraftProblem(theirs.draft.by, 412, theirs.draft.by);
  }

  /** Copies what is not saved into the browser. */
  keep(): void {
    if (this.kept === this.change || this.acknowledged === this.change) return;
    this.kept = this.change;
    const copy: LocalDraft = {
      body: this.options.body(),
      base_etag: this.etag,
      saved_at: new Date(this.now()).toISOString(),
    };
    const text = JSON.stringify(copy);
    try {
      this.options.storage?.setItem(this.key, text);
      this.room = this.options.storage !== null;
      this.copied = text;
    } catch {
      this.room = false; // full or forbidden: who draws is told as soon as the service is gone, too
    }
  }

  /** Takes our copy away, and no other tab's. */
  private forget(): void {
    try {
      if (this.copied !== null && this.options.storage?.getItem(this.key) === this.copied) this.options.storage.removeItem(this.key);
    } catch {
      // As above.
    }
    this.copied = null;
  }

  private async ask(method: string, body?: string, headers: Record<string, string> = {}): Promise<Response> {
    const stop = new AbortController();
    const takeBack = this.later(() => stop.abort(), GIVE_UP_MS);
    try {
      const init: RequestInit = { method, headers, signal: stop.signal };
      if (body !== undefined) init.body = body;
      return await this.options.http(`/v1/propagations/${this.options.propagation}/draft`, init);
    } catch (error) {
      throw new DraftProblem(error instanceof Error ? error.message : String(error), 0, "");
    } finally {
      takeBack();
    }
  }

  private get key(): string {
    const { account, propagation } = this.options;
    return `contourcast.draft.${account}.${propagation}`;
  }

  private tell(saving: Saving): void {
    this.saving = saving;
    this.options.changed(saving);
  }
}

/** Whether two tags are of one draft: a compressed answer has a tag of its own, which ends in `-gzip`. */
export function sameTag(a: string | null, b: string | null): boolean {
  const digest = (tag: string | null): string | null => tag?.replace(/^W\//, "").replace(/^"(.*?)(-gzip)?"$/, "$1") ?? null;
  return digest(a) === digest(b);
}

/** Whether two drafts draw the same. */
export function same(a: DraftBody, b: DraftBody): boolean {
  const lines = ({ method, slices, edited_slices }: DraftBody): string =>
    JSON.stringify([method, edited_slices, edited_slices.map((slice) => slices[String(slice)])]);
  return lines(a) === lines(b);
}

async function problemOf(answer: Response): Promise<DraftProblem> {
  const problem = (await answer.json().catch(() => ({}))) as { title?: string; detail?: string };
  return new DraftProblem(problem.title ?? answer.statusText, answer.status, problem.detail ?? "");
}
