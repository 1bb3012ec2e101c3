/** Somebody mends the contour of a method: from the draft that there is, with every step back, saved while it goes on. */

import type { DraftBody, Http, Slices } from "../viewer/contract";
import { Edits, type Plane } from "./edits";
import { DraftSaver, same, sameTag, type DraftStorage, type Saving } from "./saver";
import { Stopwatch } from "./stopwatch";

export interface SessionOptions {
  readonly http: Http;
  readonly propagation: string;
  readonly account: string;
  readonly storage: DraftStorage | null;
  /** What is begun from where there is no draft. */
  readonly method: string;
  readonly contours: ReadonlyMap<string, Slices>;
  readonly plane: Plane;
  readonly saving: (saving: Saving) => void;
  readonly now?: () => number;
  readonly later?: (call: () => void, ms: number) => () => void;
}

/** An earlier draft that was taken up. */
export interface Restored {
  readonly from: "server" | "browser";
  readonly edited_slices: readonly number[];
  readonly saved_at: string | null;
  readonly by: string;
}

export class EditingSession {
  private readonly watch: Stopwatch;
  private readonly now: () => number;

  private constructor(
    readonly edits: Edits,
    readonly saver: DraftSaver,
    seconds: number,
    now: () => number,
  ) {
    this.watch = new Stopwatch(seconds);
    this.now = now;
    this.watch.tick(now());
  }

  /**
   * Takes up the draft that there is, or begins one.
   *
   * The browser's copy counts where the service still has what the copy was made from. Where the service has another one by now, the copy
   * is shown all the same, but as a conflict: nothing is saved until somebody decides.
   *
   * @throws DraftProblem The service did not say whether there is a draft.
   */
  static async begin(options: SessionOptions): Promise<{ session: EditingSession; restored: Restored | null }> {
    let session: EditingSession | null = null;
    const { http, propagation, account, storage, now, later } = options;
    const saver = new DraftSaver({
      http,
      propagation,
      account,
      storage,
      body: () => session!.body(),
      changed: options.saving,
      ...(now ? { now } : {}),
      ...(later ? { later } : {}),
    });
    const server = await saver.fetched();
    const copy = saver.copy();
    const fromCopy = copy !== null && !(server && same(copy.body, server.draft));
    const draft: DraftBody | null = fromCopy ? copy.body : (server?.draft ?? null);
    const method = draft?.method ?? options.method;
    const base = options.contours.get(method) ?? new Map<number, never>();
    const edits = new Edits(method, base, options.plane, draft?.slices);
    session = new EditingSession(edits, saver, draft?.seconds ?? 0, now ?? Date.now);
    const etag = server?.etag ?? null;
    if (fromCopy && server && !sameTag(copy.base_etag, etag)) saver.refuse(server.draft.by);
    else saver.adopt(etag, fromCopy);
    if (!draft) return { session, restored: null };
    const restored: Restored = fromCopy
      ? { from: "browser", edited_slices: draft.edited_slices, saved_at: copy.saved_at, by: "" }
      : { from: "server", edited_slices: draft.edited_slices, saved_at: server!.draft.saved_at, by: server!.draft.by };
    return { session, restored };
  }

  body(): DraftBody {
    return this.edits.body(this.watch.seconds);
  }

  get seconds(): number {
    return this.watch.seconds;
  }

  /** A hand is at work; whether it changes anything is not known yet. */
  work(): void {
    this.watch.tick(this.now());
  }

  /** Something was drawn. */
  touch(): void {
    this.work();
    this.saver.touch();
  }
}
