/**
 * Which way up the three planes of a grid are shown.
 *
 * The direction matrix decides, never the order of the array: the patient's right is on the left of an axial and a coronal picture, the
 * front of the patient on top of an axial and on the left of a sagittal one, the head on top of the two others. So a patient scanned prone
 * or feet first is shown like everybody else, and the letters are computed from the same matrix.
 */

import type { Triple } from "./contract";
import type { Axis, Grid } from "./grid";

export type PlaneName = "axial" | "coronal" | "sagittal";

/** An axis of the array along a direction of the screen; `sign` is -1 where the index falls in that direction. */
export interface ScreenAxis {
  readonly axis: Axis;
  readonly sign: 1 | -1;
}

export interface Letters {
  readonly left: string;
  readonly right: string;
  readonly top: string;
  readonly bottom: string;
}

/** A plane of the array, and how it lies on the screen. */
export interface Plane {
  readonly name: PlaneName;
  /** The axis of the array that the plane stands on. */
  readonly normal: Axis;
  readonly right: ScreenAxis;
  readonly down: ScreenAxis;
  readonly letters: Letters;
}

/** What lies right and down on the screen, in world axes: DICOM's are left, posterior, head. */
const LAID: Readonly<Record<PlaneName, { right: readonly [Axis, 1 | -1]; down: readonly [Axis, 1 | -1] }>> = {
  axial: { right: [0, 1], down: [1, 1] },
  coronal: { right: [0, 1], down: [2, -1] },
  sagittal: { right: [1, 1], down: [2, -1] },
};

/** The plane that stands on each world axis. */
const STANDS_ON: readonly [PlaneName, PlaneName, PlaneName] = ["sagittal", "coronal", "axial"];

const ENDS: readonly (readonly [plus: string, minus: string])[] = [
  ["L", "R"],
  ["P", "A"],
  ["H", "F"],
];

/** A direction that goes less than this way along an axis does not name it: 17.5 degrees. */
const NAMED: number = 0.3;

const ORDERS: readonly Triple[] = [
  [0, 1, 2],
  [0, 2, 1],
  [1, 0, 2],
  [1, 2, 0],
  [2, 0, 1],
  [2, 1, 0],
];

/** The plane of the slices, in which contours lie and are edited, and the two others in the order axial, coronal, sagittal. */
export function planesOf(grid: Grid): readonly [main: Plane, second: Plane, third: Plane] {
  const planes = ([0, 1, 2] as const).map((normal) => planeOn(grid, normal));
  const order: PlaneName[] = ["axial", "coronal", "sagittal"];
  const others = [planes[0]!, planes[1]!].sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
  return [planes[2]!, others[0]!, others[1]!];
}

/** The plane that stands on one axis of the array. */
export function planeOn(grid: Grid, normal: Axis): Plane {
  const worldOf = worldAxes(grid);
  const name = STANDS_ON[worldOf[normal] as Axis];
  const screen = ([world, sense]: readonly [Axis, 1 | -1]): ScreenAxis => {
    const axis = worldOf.indexOf(world) as Axis;
    return { axis, sign: grid.axes[axis][world] * sense >= 0 ? 1 : -1 };
  };
  const right = screen(LAID[name].right);
  const down = screen(LAID[name].down);
  return {
    name,
    normal,
    right,
    down,
    letters: {
      left: letters(along(grid, right, -1)),
      right: letters(along(grid, right, 1)),
      top: letters(along(grid, down, -1)),
      bottom: letters(along(grid, down, 1)),
    },
  };
}

/** The ends of the patient that a direction points to, the foremost first: `L`, or `LP` where it points between two. */
export function letters(direction: Triple): string {
  return direction
    .map((part, axis) => ({ size: Math.abs(part), letter: ENDS[axis]![part >= 0 ? 0 : 1] }))
    .sort((a, b) => b.size - a.size)
    .filter(({ size }, place) => place === 0 || size > NAMED)
    .map(({ letter }) => letter)
    .join("");
}

/** The world axis that each axis of the array runs along most; each once, also where the grid is oblique. */
function worldAxes(grid: Grid): Triple {
  const fit = (order: Triple): number =>
    ([0, 1, 2] as const).reduce<number>((sum, axis) => sum + Math.abs(grid.axes[axis][order[axis] as Axis]), 0);
  return ORDERS.reduce((best, order) => (fit(order) > fit(best) + 1e-9 ? order : best));
}

function along(grid: Grid, { axis, sign }: ScreenAxis, sense: 1 | -1): Triple {
  const [x, y, z] = grid.axes[axis];
  return [x * sign * sense, y * sign * sense, z * sign * sense];
}
