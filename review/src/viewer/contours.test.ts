import { describe, expect, test } from "vitest";
import { bySlice, contoursOn, ForeignFrameError, inside, outline, ringsOf, slicesWith } from "./contours";
import type { Ring } from "./contract";
import { nextHolding, nextWorst, worstFirst } from "./jumps";

const square = (from: number, to: number): Ring => [
  [from, from],
  [to, from],
  [to, to],
  [from, to],
];

describe("a contour", () => {
  const answer = { frame_of_reference: "1.2.3", contours: { rigid: [{ slice: 4, points_xy_mm: square(0, 5) }] } };

  test("of another frame of reference than the image is refused", () => {
    expect(() => contoursOn("1.2.4", answer)).toThrow(ForeignFrameError);
    expect(() => contoursOn("1.2.4", answer)).toThrow("1.2.3");
  });

  test("of no frame is refused, also on an image of none", () => {
    expect(() => contoursOn("", { ...answer, frame_of_reference: "" })).toThrow(ForeignFrameError);
  });

  test("of the image's frame keeps the very points that came", () => {
    expect(contoursOn("1.2.3", answer).get("rigid")!.get(4)![0]).toBe(answer.contours.rigid[0]!.points_xy_mm);
  });
});

test("loops of one slice stay together, in their order", () => {
  const slices = bySlice([
    { slice: 7, points_xy_mm: square(0, 9) },
    { slice: 3, points_xy_mm: square(0, 5) },
    { slice: 7, points_xy_mm: square(2, 4) },
  ]);
  expect(slicesWith(slices)).toEqual([3, 7]);
  expect(ringsOf(slices, 7).map((ring) => ring[1]![0])).toEqual([9, 4]);
  expect(ringsOf(slices, 5)).toEqual([]);
  expect(ringsOf(undefined, 5)).toEqual([]);
});

describe("a line through a slice", () => {
  const holed = [square(0, 10), square(4, 6)];

  test("is inside by the even-odd rule, along both axes", () => {
    expect(inside(holed, "u", 5)).toEqual([0, 4, 6, 10]);
    expect(inside(holed, "v", 2)).toEqual([0, 10]);
    expect(inside(holed, "u", 11)).toEqual([]);
  });

  test("that runs along an edge or through corners goes in as often as it comes out", () => {
    expect(inside([square(0, 10)], "u", 0).length % 2).toBe(0);
    expect(inside([square(0, 10)], "u", 10).length % 2).toBe(0);
    const diamond: Ring = [[5, 0], [10, 5], [5, 10], [0, 5]];
    expect(inside([diamond], "u", 5)).toEqual([0, 10]);
    expect(inside([diamond], "u", 10)).toEqual([]);
  });

  test("crosses a slope where it lies", () => {
    expect(inside([[[0, 0], [10, 0], [0, 10]]], "u", 2.5)).toEqual([0, 7.5]);
  });
});

describe("the outline in a plane across the slices", () => {
  test("is a box for a box, as thick as the slices", () => {
    const slices = new Map([4, 5].map((slice) => [slice, [square(2, 8)]]));
    expect(outline(slices, "u", 5)).toEqual([
      [2, 3.5, 2, 4.5],
      [8, 3.5, 8, 4.5],
      [2, 3.5, 8, 3.5],
      [2, 4.5, 2, 5.5],
      [8, 4.5, 8, 5.5],
      [2, 5.5, 8, 5.5],
    ]);
  });

  test("has a step where one slice is wider than the next", () => {
    const slices = new Map([
      [0, [square(0, 10)]],
      [1, [square(3, 10)]],
    ]);
    expect(outline(slices, "v", 5)).toContainEqual([0, 0.5, 3, 0.5]);
    expect(outline(slices, "v", 5)).not.toContainEqual([3, 0.5, 10, 0.5]);
  });

  test("goes around a hole and closes where a slice is missing", () => {
    const slices = new Map([
      [0, [square(0, 10), square(4, 6)]],
      [2, [square(0, 10)]],
    ]);
    const pieces = outline(slices, "u", 5);
    expect(pieces).toContainEqual([4, -0.5, 4, 0.5]);
    expect(pieces).toContainEqual([0, 0.5, 4, 0.5]);
    expect(pieces).toContainEqual([0, 1.5, 10, 1.5]);
    expect(pieces).not.toContainEqual([0, 0.5, 10, 0.5]);
  });

  test("of a disc with a hole is inside where the disc is", () => {
    // Two slices of discs against their radii, every 0.1 mm along a line one millimetre off the centre.
    const disc = (r: number): Ring =>
      Array.from({ length: 90 }, (_, n) => [20 + r * Math.cos((n * Math.PI) / 45), 20 + r * Math.sin((n * Math.PI) / 45)]);
    const slices = new Map([
      [0, [disc(12), disc(5)]],
      [1, [disc(8)]],
    ]);
    const isIn = (x: number, slice: number): boolean => {
      const cut = inside(slices.get(slice)!, "u", 21);
      return cut.filter((mm) => mm < x).length % 2 === 1;
    };
    const radii = (x: number, slice: number): boolean => {
      const d = Math.hypot(x - 20, 1);
      return slice === 0 ? d < 12 && d > 5 : d < 8;
    };
    for (let x = 0.05; x < 40; x += 0.1) {
      for (const slice of [0, 1]) {
        const edge = [12, 5, 8].some((r) => Math.abs(Math.hypot(x - 20, 1) - r) < 0.1);
        if (!edge) expect(isIn(x, slice)).toBe(radii(x, slice));
      }
    }
  });
});

describe("jumps", () => {
  const disagreement = [
    { slice: 10, mm: 1.5 },
    { slice: 11, mm: 4 },
    { slice: 14, mm: 0.2 },
    { slice: 12, mm: 1.5 },
  ];
  const order = worstFirst(disagreement);

  test("lead to the worst slice first, then down the list, and stay at its ends", () => {
    expect(order).toEqual([11, 10, 12, 14]);
    expect(nextWorst(order, 3, null, 1)).toBe(11);
    expect(nextWorst(order, 12, null, -1)).toBe(11);
    expect(nextWorst(order, 11, 11, 1)).toBe(10);
    expect(nextWorst(order, 12, 12, -1)).toBe(10);
    expect(nextWorst(order, 14, 14, 1)).toBe(14);
    expect(nextWorst(order, 11, 11, -1)).toBe(11);
    expect(nextWorst(order, 12, 10, 1)).toBe(11);
    expect(nextWorst([], 11, null, -1)).toBeNull();
  });

  test("lead to the next slice with a contour, over gaps", () => {
    expect(nextHolding([3, 4, 9], 4, 1)).toBe(9);
    expect(nextHolding([3, 4, 9], 6, -1)).toBe(4);
    expect(nextHolding([3, 4, 9], 9, 1)).toBeNull();
    expect(nextHolding([], 9, -1)).toBeNull();
  });
});
