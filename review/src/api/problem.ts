/** Refusals of the service (`application/problem+json`), and its silence. */

/** The service refused, and said why. */
export class Problem extends Error {
  override readonly name = "Problem";

  constructor(
    readonly status: number,
    readonly title: string,
    /** What is wrong; where; what to do; what to quote. Empty where it was not said. */
    readonly cause_: string,
    readonly where: string,
    readonly remedy: string,
    readonly trace: string,
  ) {
    super(cause_ || title);
  }

  /** Reads an answer that is no success; one that is no problem document is told by its status. */
  static async from(answer: Response): Promise<Problem> {
    const body: unknown = await answer.json().catch(() => null);
    const said = typeof body === "object" && body !== null ? (body as Record<string, unknown>) : {};
    const text = (name: string): string => (typeof said[name] === "string" ? said[name] : "");
    return new Problem(
      answer.status,
      text("title") || `HTTP ${answer.status}`,
      text("cause") || text("detail"),
      text("where"),
      text("remedy"),
      text("trace"),
    );
  }
}

/** Nobody answered at all. */
export class Unreachable extends Error {
  override readonly name = "Unreachable";
}
