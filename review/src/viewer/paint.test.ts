import { describe, expect, test } from "vitest";
import type { ContourDisplay } from "./api";
import type { Slices } from "./contract";
import { Grid } from "./grid";
import { scaleLength_mm } from "./overlay";
import { contoursToDraw, length_mm } from "./paint";
import { imageOf } from "./phantom";

const names = ["diff-umamba", "dir-l", "rigid"];
const view = {
  methods: names.map((method, n) => ({ method, colour: `#00000${n}`, dash: n === 0 ? [] : [n, n], recommended: n === 0 })),
  ghosts: ["prior", "approved"].map((ghost) => ({ ghost, colour: "#ffffff", dash: [2, 3] })),
};
const slicesOf = new Map<string, Slices>([...names, "prior", "approved", "machine"].map((name) => [name, new Map()]));
const lines = (name: string): Slices | undefined => slicesOf.get(name);
const machine = (): Slices | undefined => slicesOf.get("machine");

function drawn(change: Partial<ContourDisplay>, edited: string | null = null): string[] {
  const display: ContourDisplay = { show: "all", selected: "dir-l", ghosts: ["prior"], width_px: 2, ...change };
  const nameOf = (slices: Slices): string => [...slicesOf].find(([, each]) => each === slices)![0];
  return contoursToDraw(view, display, edited, lines, machine).map(([slices]) => nameOf(slices));
}

describe("contours are drawn", () => {
  test("ghosts first, what is selected last", () => {
    expect(drawn({})).toEqual(["prior", "diff-umamba", "rigid", "dir-l"]);
    expect(drawn({ ghosts: [] })).toEqual(["diff-umamba", "rigid", "dir-l"]);
  });

  test("one alone, or none", () => {
    expect(drawn({ show: "one" })).toEqual(["prior", "dir-l"]);
    expect(drawn({ show: "none" })).toEqual([]);
  });

  test("with the edited one always in sight, over what the machine drew", () => {
    expect(drawn({ show: "none", selected: "rigid" }, "rigid")).toEqual(["machine", "rigid"]);
    const strokes = contoursToDraw(view, { show: "one", selected: "rigid", ghosts: [], width_px: 2 }, "rigid", lines, machine);
    expect(strokes.map(([, { dash, opacity, width_px }]) => ({ dash, opacity, width_px }))).toEqual([
      { dash: [2, 2], opacity: 0.45, width_px: 1 },
      { dash: [], opacity: 1, width_px: 2.5 },
    ]);
  });

  test("each in its own colour and dash, as wide as asked for", () => {
    const [first] = contoursToDraw(view, { show: "one", selected: "dir-l", ghosts: [], width_px: 3 }, null, lines, machine);
    expect(first![1]).toEqual({ colour: "#000001", dash: [1, 1], width_px: 3, opacity: 1 });
  });

  test("not where the service sent none", () => {
    expect(contoursToDraw(view, { show: "all", selected: "rigid", ghosts: ["prior"], width_px: 1 }, null, () => undefined, machine)).toEqual([]);
  });
});

test("a distance is in mm of the patient, whatever the voxels are", () => {
  const grid = new Grid(imageOf([10, 10, 10], [0.5, 2, 3]));
  expect(length_mm(grid, [0, 0, 0], [6, 2, 0])).toBeCloseTo(5, 12);
  expect(length_mm(grid, [1, 1, 0], [1, 1, 4])).toBeCloseTo(12, 12);
});

test("the scale is a round number that there is room for", () => {
  expect([230, 199, 100, 99, 51, 49, 19, 7, 1.5, 0.4].map(scaleLength_mm)).toEqual([200, 100, 100, 50, 50, 20, 10, 5, 1, 1]);
});
