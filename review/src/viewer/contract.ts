/**
 * What the viewer reads of the service's answers. Lengths are mm, volumes cm³ (`_cc`); DICOM patient axes: x to the patient's left,
 * y to the back, z to the head.
 */

export type Triple = readonly [number, number, number];

/** A point of a slice: mm along the image's i and j from the centre of its first voxel. */
export type Point = readonly [u_mm: number, v_mm: number];

/** A closed line; its first point is not repeated. */
export type Ring = readonly Point[];

/** All lines of one slice. What is inside is told by the even-odd rule, so a hole is a line of its own. */
export type Rings = readonly Ring[];

/** Lines by the slice that they lie in. */
export type Slices = ReadonlyMap<number, Rings>;

/** An image on the CBCT's grid. The columns of `direction` are the world directions of i, j and k. */
export interface ViewImage {
  readonly volume: string;
  readonly shape_zyx: Triple;
  readonly spacing_xyz_mm: Triple;
  readonly origin_xyz_mm: Triple;
  readonly direction: readonly (readonly number[])[];
  /** Of each slice, along k from the first; not always evenly apart. */
  readonly slice_z_mm: readonly number[];
  readonly label: string;
  readonly outside: number;
  readonly frame_of_reference: string;
}

export interface ViewMethod {
  readonly method: string;
  readonly colour: string;
  readonly dash: readonly number[];
  readonly recommended: boolean;
}

export interface ViewGhost {
  readonly ghost: string;
  readonly colour: string;
  readonly dash: readonly number[];
}

/** The part of `GET /v1/propagations/{id}/view` that is drawn. */
export interface View {
  readonly propagation: string;
  readonly images: { readonly cbct: ViewImage; readonly planning: ViewImage | null };
  readonly target: {
    readonly center_xyz_mm: Triple;
    readonly first_slice: number;
    readonly last_slice: number;
  } | null;
  readonly methods: readonly ViewMethod[];
  readonly disagreement: readonly { readonly slice: number; readonly mm: number }[];
  readonly ghosts: readonly ViewGhost[];
}

export interface Loop {
  readonly slice: number;
  readonly points_xy_mm: Ring;
}

export interface Contours {
  readonly frame_of_reference: string;
  readonly contours: Readonly<Record<string, readonly Loop[]>>;
}

/** The body of `PUT /v1/propagations/{id}/draft`: edited slices alone; all others are the method's own. */
export interface DraftBody {
  readonly method: string;
  readonly slices: Readonly<Record<string, Rings>>;
  readonly edited_slices: readonly number[];
  readonly seconds: number;
}

/** A request to the service; who makes it adds what the session wants. */
export type Http = (path: string, init?: RequestInit) => Promise<Response>;
