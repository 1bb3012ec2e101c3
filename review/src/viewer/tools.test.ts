import { describe, expect, test } from "vitest";
import { area_mm2 } from "../editing/clip";
import { Edits } from "../editing/edits";
import type { Ring } from "./contract";
import { Stack } from "./stack";
import { Drawing, isDrawing, type DrawingTool } from "./tools";

const disc = (r: number): Ring =>
  Array.from({ length: 120 }, (_, k) => [r * Math.cos((2 * Math.PI * k) / 120), r * Math.sin((2 * Math.PI * k) / 120)]);

const stack = new Stack(Array.from({ length: 40 }, (_, slice) => 2 * slice), 2);

function begin(tool: DrawingTool, sphere = false, at: readonly [number, number] = [10, 0]) {
  const base = new Map([9, 10, 11].map((slice) => [slice, [disc(10)]]));
  const edits = new Edits("rigid", base, {
    stack,
    bounds: { left_mm: -100, top_mm: -100, right_mm: 100, bottom_mm: 100 },
  });
  const drawing = new Drawing(edits, tool, { diameter_mm: 8, sphere }, 10, stack, at);
  return { base, edits, drawing };
}

describe("one press of the button is one step back", () => {
  test.each(["brush", "eraser", "nudge"] as const)("%s", (tool) => {
    const { base, edits, drawing } = begin(tool);
    for (let n = 1; n <= 20; n++) drawing.move([10 + n / 2, n / 4]);
    expect(drawing.end()).toBe(true);
    expect(edits.edited_slices).toEqual([10]);
    edits.undo();
    expect(edits.at(10)).toBe(base.get(10));
    expect(edits.can_undo).toBe(false);
  });
});

test("a brush draws at the press, and an eraser takes", () => {
  const wider = begin("brush");
  expect(area_mm2(wider.edits.at(10))).toBeGreaterThan(Math.PI * 100 + 20);
  const smaller = begin("eraser");
  expect(area_mm2(smaller.edits.at(10))).toBeLessThan(Math.PI * 100 - 20);
});

test("a ball draws in the neighbouring slices, too", () => {
  const { edits, drawing } = begin("brush", true);
  drawing.end();
  expect(edits.edited_slices).toEqual([9, 10, 11]);
  expect(area_mm2(edits.at(9))).toBeLessThan(area_mm2(edits.at(10)));
});

test("a line by hand counts when it is closed, and a press without one is no step", () => {
  const { edits, drawing } = begin("add", false, [8, -4]);
  for (const point of [[20, -4], [20, 4], [8, 4]] as const) drawing.move(point);
  expect(drawing.line).toHaveLength(4);
  expect(edits.edited_slices).toEqual([]);
  expect(drawing.end()).toBe(true);
  expect(area_mm2(edits.at(10))).toBeGreaterThan(Math.PI * 100 + 70);
  const click = begin("subtract");
  expect(click.drawing.end()).toBe(false);
  expect(click.edits.can_undo).toBe(false);
});

test("a line by hand inside takes a hole out", () => {
  const { edits, drawing } = begin("subtract", false, [-2, -2]);
  for (const point of [[2, -2], [2, 2], [-2, 2]] as const) drawing.move(point);
  drawing.end();
  expect(edits.at(10)).toHaveLength(2);
  expect(area_mm2(edits.at(10))).toBeCloseTo(area_mm2([disc(10)]) - 16, 3);
});

test("a brush in its own place draws nothing new", () => {
  const { drawing } = begin("brush");
  expect(drawing.move([10.1, 0])).toBe(false);
  expect(drawing.line).toEqual([]);
});

test("looking and measuring draw nothing", () => {
  expect(isDrawing("navigate")).toBe(false);
  expect(isDrawing("distance")).toBe(false);
  expect(isDrawing("nudge")).toBe(true);
});
