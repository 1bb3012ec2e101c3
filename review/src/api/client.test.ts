import { expect, test } from "vitest";
import { Client, nextOf } from "./client";
import { Problem, Unreachable } from "./problem";

interface Asked {
  method: string;
  path: string;
  headers: Headers;
}

/** A client that gets these answers in turn, and what it asked for. */
function client(...answers: (Response | Error)[]) {
  const asked: Asked[] = [];
  const seen = { signedOut: 0, answered: [] as boolean[] };
  const made = new Client(
    { signedOut: () => seen.signedOut++, answered: (yes) => seen.answered.push(yes) },
    (input, init) => {
      asked.push({ method: init?.method ?? "GET", path: String(input), headers: new Headers(init?.headers) });
      const answer = answers.shift();
      return answer instanceof Response ? Promise.resolve(answer) : Promise.reject(answer ?? new Error("asked too often"));
    },
  );
  return { client: made, asked, seen };
}

function json(body: unknown, status = 200, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), { status, headers });
}

const SESSION = { name: "local:ann", kind: "person", roles: ["reviewer"], expires_at: null, proven_at: null };

test("whatever changes something bears the token of the sign-in, and nothing else does", async () => {
  const { client: made, asked } = client(json({ ...SESSION, csrf: "t1" }), json({ others: [] }), json({}, 200, { ETag: '"e"' }));
  await made.signIn("ann", "secret");
  await made.presence("p");
  await made.view("p");
  expect(asked.map(({ headers }) => headers.get("X-CSRF-Token"))).toEqual([null, "t1", null]);
});

test("a token that another tab made void is asked for again, once", async () => {
  const foreign = json({ cause: "the request does not come from a page of ours" }, 403);
  const { client: made, asked } = client(foreign, json({ ...SESSION, csrf: "t2" }), json({ others: ["bob"] }));
  expect(await made.presence("p")).toEqual({ others: ["bob"] });
  expect(asked.map(({ method, path }) => `${method} ${path}`)).toEqual([
    "POST /v1/propagations/p/presence",
    "GET /v1/session?renew=true",
    "POST /v1/propagations/p/presence",
  ]);
  expect(asked[2]?.headers.get("X-CSRF-Token")).toBe("t2");
});

test("nothing is done in the name of somebody else who signed in meanwhile in another tab", async () => {
  const foreign = (): Response => json({ cause: "the request does not come from a page of ours" }, 403);
  const bob = { ...SESSION, name: "local:bob", csrf: "t3" };
  const { client: made, asked, seen } = client(json({ ...SESSION, csrf: "t1" }), foreign(), json(bob), foreign());
  await made.signIn("ann", "secret");
  await expect(made.presence("p")).rejects.toMatchObject({ status: 403 });
  expect(asked.map(({ headers }) => headers.get("X-CSRF-Token"))).not.toContain("t3");
  expect(seen.signedOut).toBe(1);
});

test("a page that was loaded anew asks for a token before it first changes something, and once", async () => {
  const { client: made, asked } = client(json({ ...SESSION, csrf: null }), json({ ...SESSION, csrf: "t3" }), json({}), json({}));
  await made.session();
  await made.presence("p");
  await made.presence("p");
  expect(asked.map(({ path, headers }) => [path, headers.get("X-CSRF-Token")])).toEqual([
    ["/v1/session", null],
    ["/v1/session?renew=true", null],
    ["/v1/propagations/p/presence", "t3"],
    ["/v1/propagations/p/presence", "t3"],
  ]);
});

test("two changes at once ask for one token", async () => {
  const { client: made, asked } = client(json({ ...SESSION, csrf: null }), json({ ...SESSION, csrf: "t4" }), json({}), json({}));
  await made.session();
  await Promise.all([made.presence("p"), made.presence("q")]);
  expect(asked.map(({ headers }) => headers.get("X-CSRF-Token"))).toEqual([null, null, "t4", "t4"]);
});

test("whoever has no session needs no token", async () => {
  const { client: made, asked } = client(json({ ...SESSION, kind: "loopback", csrf: null }), json({}));
  await made.session();
  await made.presence("p");
  expect(asked).toHaveLength(2);
});

test("another refusal with 403 is told as it is", async () => {
  const { client: made, asked } = client(json({ cause: "a signature needs a person" }, 403));
  await expect(made.presence("p")).rejects.toMatchObject({ status: 403, cause_: "a signature needs a person" });
  expect(asked).toHaveLength(1);
});

test("a decision says what was looked at", async () => {
  const { client: made, asked } = client(json({ number: 1 }, 201));
  await made.decide("p", '"seen"', { decision: "approved", method: "rigid", text: "", reviewer: "local:ann" });
  expect(asked[0]?.headers.get("If-Match")).toBe('"seen"');
});

test("a refusal keeps cause, where, remedy and trace apart", async () => {
  const problem = { title: "Changed", cause: "it changed", where: "SOP 1.2.3", remedy: "look again", trace: "abc" };
  const { client: made } = client(json(problem, 412));
  const error: unknown = await made.view("p").catch((told: unknown) => told);
  expect(error).toBeInstanceOf(Problem);
  expect(error).toMatchObject({ status: 412, cause_: "it changed", where: "SOP 1.2.3", remedy: "look again", trace: "abc" });
});

test("a refusal without a document is told by its status", async () => {
  const { client: made } = client(new Response("<html>", { status: 502 }));
  await expect(made.view("p")).rejects.toMatchObject({ status: 502, title: "HTTP 502" });
});

test("silence is no refusal, and is told to the page", async () => {
  const { client: made, seen } = client(new TypeError("Failed to fetch"), json({ others: [] }));
  await expect(made.presence("p")).rejects.toBeInstanceOf(Unreachable);
  await made.presence("p");
  expect(seen.answered).toEqual([false, true]);
});

test("the end of a sign-in is told; a wrong password is not one", async () => {
  const { client: made, seen } = client(json({}, 401), json({}, 401), json({}, 401));
  await made.prove("wrong").catch(() => null);
  await made.signIn("ann", "wrong").catch(() => null);
  expect(seen.signedOut).toBe(0);
  await made.view("p").catch(() => null);
  expect(seen.signedOut).toBe(1);
});

test("a list leads on where its Link says so", async () => {
  const next = "/v1/worklist?limit=2&cursor=abc";
  expect(nextOf(`<${next}>; rel="next"`)).toBe(next);
  expect(nextOf('</elsewhere>; rel="prev"')).toBeNull();
  expect(nextOf(null)).toBeNull();
});
