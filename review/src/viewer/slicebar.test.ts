import { expect, test } from "vitest";
import { heat, sliceAt } from "./slicebar";

test("a place of the bar is a slice, whichever way the slices run", () => {
  expect([0, 0.099, 0.1, 0.999, 1, -2, 3].map((share) => sliceAt(share, 10, 1))).toEqual([0, 0, 1, 9, 9, 0, 9]);
  expect([0, 0.099, 0.1, 0.999].map((share) => sliceAt(share, 10, -1))).toEqual([9, 9, 8, 0]);
});

test("heat is full at five millimetres, or at the worst there is", () => {
  expect(heat(0, 2)).toBe(0);
  expect(heat(2.5, 2.5)).toBe(0.5);
  expect(heat(5, 5)).toBe(1);
  expect(heat(5, 20)).toBe(0.25);
});
