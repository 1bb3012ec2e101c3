import { describe, expect, test } from "vitest";
import { ForeignFrameError } from "./contours";
import type { View, ViewImage } from "./contract";
import { ForeignGridError, foreignness, Material, type What } from "./material";
import { imageOf } from "./phantom";

const cbct: ViewImage = { ...imageOf([4, 3, 20], [1, 1, 2]), volume: "c" };
const planning: ViewImage = { ...cbct, volume: "p", label: "planning CT through rigid" };
const contours = { frame_of_reference: "1.2.3", contours: { rigid: [{ slice: 9, points_xy_mm: [[0, 0], [1, 0], [0, 1]] }] } };

const viewOf = (other: ViewImage | null): View => ({
  propagation: "p1",
  images: { cbct, planning: other },
  target: { center_xyz_mm: [-9, 21, 50], first_slice: 9, last_slice: 11 },
  methods: [],
  disagreement: [],
  ghosts: [],
});

/** A service whose voxels are 1 in the CBCT, 2 in the planning CT, 3 in any other. */
function serving(drawn: unknown = contours, status = 200) {
  const asked: string[] = [];
  const http = (path: string): Promise<Response> => {
    asked.push(path);
    const url = new URL(path, "http://here");
    if (url.pathname.endsWith("/contours")) return Promise.resolve(Response.json(drawn, { status }));
    const count = Number(url.searchParams.get("to")) - Number(url.searchParams.get("from")) + 1;
    const value = url.pathname.includes("/c/") ? 1 : url.pathname.includes("/p/") ? 2 : 3;
    return Promise.resolve(new Response(new Int16Array(12 * count).fill(value)));
  };
  return { http, asked };
}

/** Material, and promises of what it tells. */
function begin(view: View, service = serving()) {
  const failures: [What, Error][] = [];
  const waiting: { what: What; slices: number; tell: () => void }[] = [];
  const material = new Material(view, service.http, {
    arrived: (what, volume) => {
      for (const each of waiting) if (each.what === what && (volume?.loaded_slices ?? 0) >= each.slices) each.tell();
    },
    failed: (what, error) => failures.push([what, error]),
  });
  const whole = (what: What): Promise<void> => new Promise((tell) => waiting.push({ what, slices: 20, tell }));
  return { material, failures, whole };
}

test("images and contours of one frame and grid come, and are shown together", async () => {
  const { material, failures, whole } = begin(viewOf(planning));
  const all = [whole("cbct"), whole("planning")];
  await material.begin();
  expect(material.cbct.has(10)).toBe(true);
  expect(material.lines("rigid")?.get(9)).toHaveLength(1);
  await Promise.all(all);
  expect(material.planningAt(10)).toMatchObject({ label: "planning CT through rigid" });
  expect(material.planningAt(10).volume!.at([1, 1, 10])).toBe(2);
  expect(material.start()).toEqual([1, 1, 10]);
  expect(failures).toEqual([]);
});

describe("what lies elsewhere is never laid over the CBCT", () => {
  test("a planning CT of another frame of reference", async () => {
    const { material, failures } = begin(viewOf({ ...planning, frame_of_reference: "9.9" }));
    await material.begin();
    expect(failures).toEqual([["planning", expect.any(ForeignFrameError)]]);
    expect(material.planningAt(10).volume).toBeNull();
  });

  test("a planning CT on another grid", async () => {
    const { material, failures } = begin(viewOf({ ...planning, slice_z_mm: cbct.slice_z_mm.map((mm) => 1.25 * mm) }));
    await material.begin();
    expect(failures).toEqual([["planning", expect.any(ForeignGridError)]]);
    expect(foreignness(planning, cbct)).toBeNull();
  });

  test("contours of another frame of reference", async () => {
    const { material, failures } = begin(viewOf(null), serving({ ...contours, frame_of_reference: "9.9" }));
    await material.begin();
    expect(failures).toEqual([["contours", expect.any(ForeignFrameError)]]);
    expect(material.lines("rigid")).toBeUndefined();
  });

  test("a previewed image of another frame", async () => {
    const { material, failures } = begin(viewOf(planning));
    await material.begin();
    material.preview({ ...planning, frame_of_reference: "9.9" }, {});
    expect(failures).toEqual([["planning", expect.any(ForeignFrameError)]]);
    expect(material.previewing).toBe(false);
  });
});

test("contours that the service does not give are a failure with its reason", async () => {
  const { material, failures } = begin(viewOf(null), serving({ title: "no such propagation" }, 404));
  await material.begin();
  expect(failures).toEqual([["contours", new Error("no such propagation")]]);
});

test("a preview takes the place of the planning CT once it is there, and goes again", async () => {
  const { material, whole } = begin(viewOf(planning));
  const came = whole("planning");
  await material.begin();
  await came;
  const again = whole("planning");
  material.preview({ ...planning, volume: "x", label: "adjusted" }, { rigid: [] });
  expect(material.planningAt(10).label).toBe("planning CT through rigid");
  await again;
  expect(material.planningAt(10).label).toBe("adjusted");
  expect(material.planningAt(10).volume!.at([1, 1, 10])).toBe(3);
  expect(material.lines("rigid")?.size).toBe(0);
  material.preview(null, {});
  expect(material.planningAt(10).label).toBe("planning CT through rigid");
  expect(material.lines("rigid")?.size).toBe(1);
});

test("after the end nothing is told any more", async () => {
  const { material, failures } = begin(viewOf(planning));
  const beginning = material.begin();
  material.close();
  await beginning;
  expect(failures).toEqual([]);
});

test("it is whole when the contours and every slice of the target are there, not before", async () => {
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => (release = resolve));
  const { http } = serving();
  const slow = async (path: string): Promise<Response> => {
    if (/from=0&/.test(path)) await held;
    return http(path);
  };
  const { material, whole } = begin({ ...viewOf(null), target: { center_xyz_mm: [-9, 21, 50], first_slice: 0, last_slice: 11 } }, { http: slow, asked: [] });
  const all = whole("cbct");
  await material.begin();
  expect([material.cbct.has(5), material.contours !== null, material.whole]).toEqual([true, true, false]);
  release();
  await all;
  expect(material.whole).toBe(true);
});

test("it is never whole without contours", async () => {
  const { material, whole } = begin(viewOf(null), serving({ title: "gone" }, 404));
  const all = whole("cbct");
  await material.begin();
  await all;
  expect(material.whole).toBe(false);
});
