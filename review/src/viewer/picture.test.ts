import { describe, expect, test } from "vitest";
import { compose, difference, differenceRamp, needs, type Mix, type Pictures } from "./compose";
import { Grid } from "./grid";
import { imageOf, random, voxelsOf } from "./phantom";
import { planesOf } from "./planes";
import { NOTHING, sample, type Voxels } from "./sample";
import { Viewport } from "./viewport";
import { automatic, dragged, grey, PRESETS, ramp, Windows } from "./window";

const SOFT = ramp(PRESETS.soft);

/** Bilinear interpolation as it is written in a textbook: four voxels, four weights, pixel by pixel. */
function textbook(voxels: Voxels, viewport: Viewport, slice: number, x: number, y: number): number {
  const index = viewport.index(x + 0.5, y + 0.5, slice);
  const { right, down, normal } = viewport.plane;
  const count = voxels.shape_ijk;
  for (const axis of [right.axis, down.axis]) {
    if (index[axis] < -0.5 || index[axis] >= count[axis] - 0.5) return NOTHING;
  }
  const clamp = (value: number, axis: 0 | 1 | 2): number => Math.min(count[axis] - 1, Math.max(0, value));
  const u = clamp(index[right.axis], right.axis);
  const v = clamp(index[down.axis], down.axis);
  let sum = 0;
  for (const [du, dv] of [[0, 0], [1, 0], [0, 1], [1, 1]] as const) {
    const at = [0, 0, 0];
    at[normal] = slice;
    at[right.axis] = clamp(Math.floor(u) + du, right.axis);
    at[down.axis] = clamp(Math.floor(v) + dv, down.axis);
    const weight = Math.abs(1 - du - (u - Math.floor(u))) * Math.abs(1 - dv - (v - Math.floor(v)));
    const hu = voxels.values[at[0]! + count[0] * (at[1]! + count[1] * at[2]!)]!;
    if (weight > 1e-12 && hu === voxels.outside) return NOTHING;
    sum += weight > 1e-12 ? weight * hu : 0;
  }
  return sum;
}

describe("the three planes of a volume of noise", () => {
  const next = random(3);
  const shape = [23, 17, 11] as const;
  const voxels = voxelsOf(shape, () => (next() < 0.02 ? -32768 : Math.round(next() * 4000 - 1000)));
  const grid = new Grid(imageOf(shape, [1.1, 0.9, 2.5]));

  test.each(planesOf(grid))("are what a textbook computes: $name", (plane) => {
    const viewport = Viewport.fit(grid, plane, 120, 90).zoomed(1.3).panned(9, -4);
    const slice = 5;
    const hu = new Float32Array(120 * 90);
    const cut = {
      normal: plane.normal,
      slice,
      across: plane.right.axis,
      down: plane.down.axis,
      columns: viewport.columns,
      rows: viewport.rows,
    };
    sample(voxels, cut, 120, 90, true, hu);
    let inside = 0;
    for (let y = 0; y < 90; y++) {
      for (let x = 0; x < 120; x++) {
        const expected = textbook(voxels, viewport, slice, x, y);
        expect(Math.abs(hu[y * 120 + x]! - expected)).toBeLessThan(0.01);
        if (expected !== NOTHING) inside++;
      }
    }
    expect(inside).toBeGreaterThan(1000);
  });

  test("show stored integers alone where interpolation is off", () => {
    const viewport = Viewport.fit(grid, planesOf(grid)[0], 120, 90);
    const hu = new Float32Array(120 * 90);
    const cut = { normal: 2, slice: 3, across: 0, down: 1, columns: viewport.columns, rows: viewport.rows } as const;
    sample(voxels, cut, 120, 90, false, hu);
    const stored = new Set(voxels.values);
    expect(hu.every((value) => stored.has(value))).toBe(true);
  });

  test("are nothing beyond the last slice", () => {
    const hu = new Float32Array(4);
    const line = Float64Array.of(0, 1);
    sample(voxels, { normal: 2, slice: 11, across: 0, down: 1, columns: line, rows: line }, 2, 2, true, hu);
    expect([...hu]).toEqual([NOTHING, NOTHING, NOTHING, NOTHING]);
  });
});

test("a voxel that is nothing does not reach into a pixel that lies on its neighbour", () => {
  const voxels = voxelsOf([2, 1, 1], (i) => (i === 1 ? -32768 : 70));
  const hu = new Float32Array(3);
  const cut = { normal: 2, slice: 0, across: 0, down: 1, columns: Float64Array.of(0, 0.5, 1), rows: Float64Array.of(0) } as const;
  sample(voxels, cut, 3, 1, true, hu);
  expect([...hu]).toEqual([70, NOTHING, NOTHING]);
});

describe("windows", () => {
  test("are linear from black to white", () => {
    expect(grey(-160, SOFT)).toBe(0);
    expect(grey(240, SOFT)).toBeCloseTo(255, 10);
    expect(grey(40, SOFT)).toBeCloseTo(127.5, 12);
    expect(grey(-1000, SOFT)).toBe(0);
    expect(grey(3000, SOFT)).toBe(255);
    expect(grey(NOTHING, ramp({ center_hu: -32768, width_hu: 100 }))).toBe(0);
  });

  test("widen across, brighten down, and never close", () => {
    expect(dragged({ center_hu: 40, width_hu: 500 }, 10, 5)).toEqual({ center_hu: 50, width_hu: 520 });
    expect(dragged({ center_hu: 40, width_hu: 10 }, -100, 0).width_hu).toBe(1);
  });

  test("are found from the middle of a slice", () => {
    // Air around, the patient in the middle from 0 to 99 HU.
    const { values } = voxelsOf([40, 40, 2], (i, j, k) =>
      k === 1 && i >= 10 && i < 30 && j >= 10 && j < 30 ? (i * 7 + j * 13) % 100 : -1000,
    );
    const window = automatic(values, 40, 40, 1, -32768)!;
    expect(Math.abs(window.center_hu - 49.5)).toBeLessThan(1.5);
    expect(Math.abs(window.width_hu - 98)).toBeLessThan(3);
    expect(automatic(new Int16Array(16).fill(-32768), 4, 4, 0, -32768)).toBeNull();
  });
});

describe("the windows of two images", () => {
  const own = { cbct: { center_hu: -50, width_hu: 300 }, planning: { center_hu: 20, width_hu: 350 } };

  test("are one for a preset, and each image's own for auto", () => {
    const windows = new Windows((image) => own[image]);
    windows.choose("lung");
    expect([windows.cbct, windows.planning]).toEqual([PRESETS.lung, PRESETS.lung]);
    windows.choose("auto");
    expect([windows.cbct, windows.planning, windows.preset]).toEqual([own.cbct, own.planning, "auto"]);
    windows.choose({ center_hu: 1, width_hu: 2 });
    expect([windows.planning, windows.preset]).toEqual([{ center_hu: 1, width_hu: 2 }, null]);
  });

  test("stay as they are until the values for auto are there", () => {
    let there = false;
    const windows = new Windows((image) => (there ? own[image] : null));
    windows.choose("auto");
    expect(windows.cbct).toEqual(PRESETS.soft);
    there = true;
    windows.settle();
    expect(windows.cbct).toEqual(own.cbct);
    windows.choose("bone");
    windows.settle();
    expect(windows.cbct).toEqual(PRESETS.bone);
  });

  test("follow one hand", () => {
    const windows = new Windows((image) => own[image]);
    windows.choose("auto");
    windows.drag(0, 10);
    expect(windows.preset).toBeNull();
    expect([windows.cbct.center_hu, windows.planning.center_hu]).toEqual([-50 + 12, 20 + 14]);
  });
});

describe("two pictures in one", () => {
  const width = 64;
  const height = 48;
  const next = random(5);
  const noise = (): Float32Array =>
    Float32Array.from({ length: width * height }, () => (next() < 0.05 ? NOTHING : next() * 1600 - 800));
  const pictures: Pictures = {
    cbct_hu: noise(),
    planning_hu: noise(),
    cbct_window: { center_hu: 0, width_hu: 900 },
    planning_window: { center_hu: 20, width_hu: 800 },
  };
  const level = (hu: number, center: number, wide: number): number =>
    hu === NOTHING ? 0 : Math.min(255, Math.max(0, ((hu - (center - wide / 2)) / wide) * 255));

  const cases: [Mix, (x: number, y: number, a: number, b: number, ha: number, hb: number) => number][] = [
    [{ show: "cbct" }, (_x, _y, a) => a],
    [{ show: "planning" }, (_x, _y, _a, b) => b],
    [{ show: "blend", planning_share: 0 }, (_x, _y, a) => a],
    [{ show: "blend", planning_share: 1 }, (_x, _y, _a, b) => b],
    [{ show: "blend", planning_share: 0.35 }, (_x, _y, a, b, _ha, hb) => (hb === NOTHING ? a : 0.65 * a + 0.35 * b)],
    [{ show: "checkerboard" }, (x, y, a, b) => ((Math.floor(x / 8) + Math.floor(y / 6)) % 2 ? b : a)],
    [
      { show: "spyglass", x_px: 20, y_px: 30, radius_px: 9.5 },
      (x, y, a, b) => (Math.hypot(x + 0.5 - 20, y + 0.5 - 30) < 9.5 ? b : a),
    ],
    [
      { show: "difference" },
      (_x, _y, _a, _b, ha, hb) => (ha === NOTHING || hb === NOTHING ? 0 : level(ha - hb, 0, 900)),
    ],
  ];

  test.each(cases)("%o is right to the grey level, and opaque", (mix, expected) => {
    const pixels = new Uint32Array(width * height);
    compose(pictures, mix, width, height, pixels);
    const bytes = new Uint8Array(pixels.buffer);
    let worst = 0;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const at = y * width + x;
        const ha = pictures.cbct_hu[at]!;
        const hb = pictures.planning_hu[at]!;
        const wanted = expected(x, y, level(ha, 0, 900), level(hb, 20, 800), ha, hb);
        worst = Math.max(worst, Math.abs(bytes[4 * at]! - wanted));
        expect(bytes[4 * at + 1]).toBe(bytes[4 * at]);
        expect(bytes[4 * at + 2]).toBe(bytes[4 * at]);
        expect(bytes[4 * at + 3]).toBe(255);
      }
    }
    expect(worst).toBeLessThanOrEqual(0.51);
  });

  test("the same HU in both is middle grey in the difference", () => {
    const differences = differenceRamp({ center_hu: 40, width_hu: 400 });
    expect(difference(35, 35, differences)).toBeCloseTo(127.5, 12);
    expect(difference(235, 35, differences)).toBeCloseTo(255, 10);
    expect(difference(35, NOTHING, differences)).toBe(0);
  });

  test("only what is shown is computed", () => {
    expect(needs({ show: "blend", planning_share: 0 })).toEqual({ cbct: true, planning: false });
    expect(needs({ show: "blend", planning_share: 1 })).toEqual({ cbct: false, planning: true });
    expect(needs({ show: "blend", planning_share: 0.5 })).toEqual({ cbct: true, planning: true });
    expect(needs({ show: "cbct" })).toEqual({ cbct: true, planning: false });
    expect(needs({ show: "planning" })).toEqual({ cbct: false, planning: true });
    expect(needs({ show: "checkerboard" })).toEqual({ cbct: true, planning: true });
  });
});
