import { describe, expect, test } from "vitest";
import type { Triple } from "./contract";
import { Grid } from "./grid";
import { imageOf, lying, voxelsOf, type Position } from "./phantom";
import { letters, planesOf } from "./planes";
import { sample } from "./sample";
import { Viewport } from "./viewport";

const POSITIONS: Position[] = ["HFS", "HFP", "FFS", "FFP", "HFDL", "HFDR", "FFDL", "FFDR"];

describe.each(POSITIONS)("a patient scanned %s", (position) => {
  const grid = new Grid(lying(position, [9, 9, 9]));
  const [axial, coronal, sagittal] = planesOf(grid);

  test("has the planes that the letters say", () => {
    expect([axial.name, coronal.name, sagittal.name]).toEqual(["axial", "coronal", "sagittal"]);
    expect(axial.letters).toEqual({ left: "R", right: "L", top: "A", bottom: "P" });
    expect(coronal.letters).toEqual({ left: "R", right: "L", top: "H", bottom: "F" });
    expect(sagittal.letters).toEqual({ left: "A", right: "P", top: "H", bottom: "F" });
  });

  test("is shown with a mark on the left side on the right of the picture, whatever the array", () => {
    // One bright voxel, 3 mm left, 2 mm in front, 1 mm towards the head of the middle voxel.
    const middle = grid.world([4, 4, 4]);
    const mark = grid.nearest(grid.index([middle[0] + 3, middle[1] - 2, middle[2] + 1]));
    const voxels = voxelsOf([9, 9, 9], (i, j, k) => (i === mark[0] && j === mark[1] && k === mark[2] ? 1000 : 0));
    const seen = (plane: typeof axial): [number, number] => {
      const viewport = Viewport.fit(grid, plane, 9, 9);
      const hu = new Float32Array(81);
      const cut = {
        normal: plane.normal,
        slice: mark[plane.normal],
        across: plane.right.axis,
        down: plane.down.axis,
        columns: viewport.columns,
        rows: viewport.rows,
      };
      sample(voxels, cut, 9, 9, false, hu);
      const place = hu.indexOf(1000);
      return [(place % 9) - 4, Math.floor(place / 9) - 4];
    };
    expect(seen(axial)).toEqual([3, -2]);
    expect(seen(coronal)).toEqual([3, -1]);
    expect(seen(sagittal)).toEqual([-2, -1]);
  });
});

test("slices that stand on another axis are named by it", () => {
  const upright: [Triple, Triple, Triple] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]];
  const planes = planesOf(new Grid(imageOf([4, 5, 6], [1, 1, 1], upright)));
  expect(planes.map((plane) => [plane.name, plane.normal])).toEqual([["coronal", 2], ["axial", 1], ["sagittal", 0]]);
  expect(planes[0].letters).toEqual({ left: "R", right: "L", top: "H", bottom: "F" });
});

test("an oblique plane has the letters of both ends it points between, the foremost first", () => {
  const turn = (30 * Math.PI) / 180;
  const oblique: [Triple, Triple, Triple] = [
    [Math.cos(turn), Math.sin(turn), 0],
    [-Math.sin(turn), Math.cos(turn), 0],
    [0, 0, 1],
  ];
  const [axial, coronal] = planesOf(new Grid(imageOf([4, 5, 6], [1, 1, 1], oblique)));
  expect(axial.letters).toEqual({ left: "RA", right: "LP", top: "AL", bottom: "PR" });
  expect(coronal.name).toBe("coronal");
  expect(letters([0.98, 0.2, 0])).toBe("L");
  expect(letters([0, -0.5, -0.87])).toBe("FA");
});

test("index to world to index is the identity on an oblique grid", () => {
  const s = Math.SQRT1_2;
  const grid = new Grid(imageOf([4, 5, 6], [0.9, 1.1, 2.5], [[s, s, 0], [-s, s, 0], [0, 0, 1]], [7, -8, 9]));
  const back = grid.index(grid.world([1.25, -2, 3.5]));
  [1.25, -2, 3.5].forEach((value, axis) => expect(back[axis as 0 | 1 | 2]).toBeCloseTo(value, 10));
  expect(grid.nearest([1.6, -2, 9])).toEqual([2, 0, 5]);
  expect(grid.contains([3.4, 0, 0])).toBe(true);
  expect(grid.contains([3.5, 0, 0])).toBe(false);
});

test("voxels reach half a voxel beyond their centres", () => {
  expect(new Grid(imageOf([10, 20, 5], [1, 2, 3])).bounds).toEqual({ left_mm: -0.5, top_mm: -1, right_mm: 9.5, bottom_mm: 39 });
});

test("a grid that is shifted by a tenth of a millimetre is another one", () => {
  const image = imageOf([4, 5, 6], [1, 1, 2]);
  expect(new Grid(image).equals(new Grid({ ...image }))).toBe(true);
  expect(new Grid(image).equals(new Grid({ ...image, origin_xyz_mm: [-10.1, 20, 30] }))).toBe(false);
  expect(new Grid(image).equals(new Grid({ ...image, shape_zyx: [6, 5, 5] }))).toBe(false);
});

test("a millimetre is as long down as across where voxels are not square", () => {
  const grid = new Grid(imageOf([100, 100, 50], [1, 2, 3]));
  for (const plane of planesOf(grid)) {
    const viewport = Viewport.fit(grid, plane, 300, 200);
    const [left, right] = [grid.mm(plane.right.axis, viewport.columns[10]!), grid.mm(plane.right.axis, viewport.columns[20]!)];
    const [top, bottom] = [grid.mm(plane.down.axis, viewport.rows[10]!), grid.mm(plane.down.axis, viewport.rows[20]!)];
    expect(Math.abs(right - left)).toBeCloseTo(Math.abs(bottom - top), 10);
  }
});

test("slices that are not evenly apart lie where they are", () => {
  // The slice at 9 mm is missing.
  const image = { ...imageOf([16, 16, 5], [1, 1, 3]), slice_z_mm: [0, 3, 6, 12, 15] };
  const grid = new Grid(image);
  expect(grid.world([0, 0, 3])).toEqual([-10, 20, 42]);
  expect(grid.index([-10, 20, 39])[2]).toBeCloseTo(2.5, 12);
  const coronal = planesOf(grid)[1];
  const viewport = Viewport.fit(grid, coronal, 180, 180);
  const row = (slice: number): number => viewport.pixel([0, 0, slice])[1];
  expect((row(2) - row(3)) / (row(1) - row(2))).toBeCloseTo(2, 10);
  expect(viewport.index(20, row(3), 0)[2]).toBeCloseTo(3, 10);
  expect(grid.equals(new Grid({ ...image, slice_z_mm: [0, 3, 6, 9, 15] }))).toBe(false);
});

test("places of a pane are indices and back, also after zoom and pan", () => {
  const grid = new Grid(lying("FFP", [64, 48, 20], [1, 1.5, 3]));
  for (const plane of planesOf(grid)) {
    const viewport = Viewport.fit(grid, plane, 320, 240).zoomed(2.5, 40, 200).panned(13, -7);
    const [x, y] = viewport.pixel(viewport.index(17.25, 201.5, 3));
    expect(x).toBeCloseTo(17.25, 9);
    expect(y).toBeCloseTo(201.5, 9);
    const before = Viewport.fit(grid, plane, 320, 240);
    const kept = before.zoomed(3, 40, 200).pixel(before.index(40, 200, 0));
    expect(kept[0]).toBeCloseTo(40, 9);
    expect(kept[1]).toBeCloseTo(200, 9);
  }
});
