/** One way to the service: same origin, the cookie of the sign-in, the token that only this page has. */

import { Problem, Unreachable } from "./problem";
import type {
  Adjusted,
  Change,
  Course,
  Decision,
  Delivery,
  EditingStatistics,
  History,
  Reviewed,
  Session,
  View,
  Ways,
  WorklistItem,
} from "./types";

const SAFE = new Set(["GET", "HEAD"]);
// The one refusal that another token mends: another tab of the same sign-in asked for one.
const FOREIGN = "does not come from a page of ours";

export interface Tagged<T> {
  body: T;
  etag: string;
}

export interface Page<T> {
  items: T[];
  /** Where the list goes on; null at its end. */
  next: string | null;
}

export interface Watch {
  /** The sign-in ended. */
  signedOut(): void;
  /** The service answered, or did not. */
  answered(yes: boolean): void;
}

export class Client {
  private csrf = "";
  // Whose page this is. Another tab may sign somebody else in; nothing that is done here is done in that name.
  private account = "";
  // A page that was loaded anew has no token; it asks for one before it first changes something.
  private wantsToken = false;
  private renewing: Promise<void> | null = null;

  constructor(
    private readonly watch: Watch,
    private readonly fetch_: typeof fetch = (input, init) => fetch(input, init),
  ) {}

  /** A request with all that the service wants of one; refusals are the caller's to read. */
  readonly http = async (path: string, init: RequestInit = {}): Promise<Response> => {
    if (this.wantsToken && !SAFE.has(init.method ?? "GET")) await this.renew();
    const answer = await this.once(path, init);
    if (answer.status === 403 && !SAFE.has(init.method ?? "GET") && (await foreign(answer.clone()))) {
      await this.renew();
      return this.once(path, init);
    }
    if (answer.status === 401 && path !== "/v1/session" && path !== "/v1/session/proof") this.watch.signedOut();
    return answer;
  };

  // Session

  /** Who is signed in; null: nobody. */
  async session(): Promise<Session | null> {
    const answer = await this.once("/v1/session", {});
    if (answer.status === 401) return null;
    const body = (await read(answer)) as Session;
    this.account ||= body.name;
    this.wantsToken = body.kind === "person" && this.csrf === "";
    return body;
  }

  async signIn(name: string, password: string): Promise<Session> {
    const body = (await this.json("POST", "/v1/session", { name, password })) as Session;
    this.account = body.name;
    this.hold(body);
    return body;
  }

  async signOut(): Promise<void> {
    await this.json("DELETE", "/v1/session");
    this.account = "";
    this.csrf = "";
    this.wantsToken = false;
  }

  ways(): Promise<Ways> {
    return this.json("GET", "/v1/session/ways") as Promise<Ways>;
  }

  /** Shows the credential again. */
  async prove(password: string): Promise<void> {
    await this.json("POST", "/v1/session/proof", { password });
  }

  // Lists

  async worklist(path: string): Promise<Page<WorklistItem>> {
    const answer = await this.http(path);
    const body = (await read(answer)) as { items: WorklistItem[] };
    return { items: body.items, next: nextOf(answer.headers.get("Link")) };
  }

  async course(id: string): Promise<Tagged<Course>> {
    const answer = await this.http(`/v1/courses/${id}`);
    return { body: (await read(answer)) as Course, etag: answer.headers.get("ETag") ?? "" };
  }

  /** Answers a question of matching, on what was looked at and nothing else. */
  async answer(id: string, etag: string, answer: { question: string; choice: string[]; fraction: string }): Promise<void> {
    await this.json("PATCH", `/v1/courses/${id}`, answer, { "If-Match": etag });
  }

  history(course: string): Promise<History> {
    return this.json("GET", `/v1/courses/${course}/history`) as Promise<History>;
  }

  editing(): Promise<EditingStatistics> {
    return this.json("GET", "/v1/statistics/editing") as Promise<EditingStatistics>;
  }

  /** Puts away a series that lacks slices: it comes back when more of it comes. */
  async dismiss(series: string): Promise<void> {
    await this.json("PUT", `/v1/series/${series}/dismissal`);
  }

  // One propagation

  async view(id: string): Promise<Tagged<View>> {
    const answer = await this.http(`/v1/propagations/${id}/view`);
    return { body: (await read(answer)) as View, etag: answer.headers.get("ETag") ?? "" };
  }

  /** Says that it is looked at; tells who else looks, and the ETag that it has now where that is known. */
  presence(id: string): Promise<{ others: string[]; etag?: string }> {
    return this.json("POST", `/v1/propagations/${id}/presence`, {}) as Promise<{ others: string[]; etag?: string }>;
  }

  /** Decides, on what was looked at and nothing else. */
  async decide(id: string, etag: string, decision: Decision): Promise<Reviewed> {
    return (await this.json("POST", `/v1/propagations/${id}/reviews`, decision, { "If-Match": etag })) as Reviewed;
  }

  /** Every decision, the first first. */
  async reviews(id: string): Promise<Reviewed[]> {
    return ((await this.json("GET", `/v1/propagations/${id}/reviews`)) as { reviews: Reviewed[] }).reviews;
  }

  adjusted(id: string, change: Change, signal?: AbortSignal): Promise<Adjusted> {
    return this.json("POST", `/v1/propagations/${id}/adjusted`, change, {}, signal) as Promise<Adjusted>;
  }

  again(id: string, change: Change): Promise<{ propagation: string }> {
    return this.json("POST", `/v1/propagations/${id}/again`, change) as Promise<{ propagation: string }>;
  }

  /** What was sent of it, or waits to be; of all, what was given up. */
  async deliveries(of: { propagation: string } | { state: "dead" }): Promise<Delivery[]> {
    const query = new URLSearchParams(of).toString();
    return ((await this.json("GET", `/v1/deliveries?${query}`)) as { deliveries: Delivery[] }).deliveries;
  }

  resend(delivery: string): Promise<Delivery> {
    return this.json("POST", `/v1/deliveries/${delivery}/resend`) as Promise<Delivery>;
  }

  /** Tries once more what failed. */
  async retry(id: string): Promise<void> {
    await this.json("POST", `/v1/propagations/${id}/retry`);
  }

  /** Puts away what nobody will try again. */
  async cancel(id: string): Promise<void> {
    await this.json("DELETE", `/v1/propagations/${id}`);
  }

  // How

  private async json(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
    signal?: AbortSignal,
  ): Promise<unknown> {
    const init: RequestInit = { method, headers: { ...headers } };
    if (body !== undefined) {
      init.headers = { ...headers, "Content-Type": "application/json" };
      init.body = JSON.stringify(body);
    }
    if (signal) init.signal = signal;
    return read(await this.http(path, init));
  }

  private async once(path: string, init: RequestInit): Promise<Response> {
    const headers = new Headers(init.headers);
    if (!SAFE.has(init.method ?? "GET") && this.csrf) headers.set("X-CSRF-Token", this.csrf);
    try {
      const answer = await this.fetch_(path, { ...init, headers, credentials: "same-origin" });
      // A proxy speaks for a service that is not there.
      this.watch.answered(answer.status !== 502 && answer.status !== 504);
      return answer;
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      this.watch.answered(false);
      throw new Unreachable(String(error));
    }
  }

  private hold(session: Session): void {
    this.csrf = session.csrf ?? "";
    this.wantsToken = false;
  }

  /** Another token; asked for once, however many requests wait for it, as each one voids the former. */
  private renew(): Promise<void> {
    this.renewing ??= this.askForToken().finally(() => (this.renewing = null));
    return this.renewing;
  }

  private async askForToken(): Promise<void> {
    const answer = await this.once("/v1/session?renew=true", {});
    if (!answer.ok) return;
    const session = (await answer.json()) as Session;
    this.account ||= session.name;
    if (session.name === this.account) this.hold(session);
    else this.watch.signedOut();
  }
}

/** The address that a list goes on at (RFC 8288). */
export function nextOf(link: string | null): string | null {
  const found = /<([^>]*)>\s*;\s*rel="?next"?/.exec(link ?? "");
  return found?.[1] ?? null;
}

async function read(answer: Response): Promise<unknown> {
  if (!answer.ok) throw await Problem.from(answer);
  return answer.status === 204 ? null : answer.json();
}

async function foreign(answer: Response): Promise<boolean> {
  return (await Problem.from(answer)).cause_.includes(FOREIGN);
}
