import { expect, test } from "vitest";
import { Stack } from "./stack";

// Slices at 0, 3, 6, 12, 15 mm: one is missing.
const stack = new Stack([0, 3, 6, 12, 15], 3);

test("places between slices are linear, and go on beyond the outer ones", () => {
  expect([-0.5, 0, 0.5, 2, 2.5, 3, 4, 4.5].map((index) => stack.mm(index))).toEqual([-1.5, 0, 1.5, 6, 9, 12, 15, 16.5]);
});

test("place to index and back is the identity", () => {
  for (const index of [-0.5, 0, 0.25, 1, 1.75, 2, 2.5, 3, 3.9, 4, 4.4]) expect(stack.index(stack.mm(index))).toBeCloseTo(index, 12);
});

test("a slice stands for half the way to its neighbours, as the service counts volumes", () => {
  expect([0, 1, 2, 3, 4].map((slice) => stack.thickness_mm(slice))).toEqual([3, 3, 4.5, 4.5, 3]);
});

test("a slice alone is as thick as it is said to be", () => {
  const alone = new Stack([0], 2.5);
  expect(alone.thickness_mm(0)).toBe(2.5);
  expect(alone.index(alone.mm(0.3))).toBeCloseTo(0.3, 12);
});
