/** What the page sees of the viewer. */

import type { Brush } from "../editing/brush";
import type { DraftStorage, Saving } from "../editing/saver";
import type { Restored } from "../editing/session";
import type { Compare } from "./compose";
import type { ForeignFrameError } from "./contours";
import type { DraftBody, Http, Loop, Triple, ViewImage } from "./contract";
import type { Dragged } from "./hand";
import type { Command } from "./keys";
import type { Tool } from "./tools";
import type { Window, WindowPreset } from "./window";

export interface ViewerTexts {
  readonly planes: { readonly axial: string; readonly coronal: string; readonly sagittal: string };
  readonly slice_bar: string;
  slice_value(slice: number, slices: number, z_mm: number): string;
  readonly loading: string;
  readonly foreign_frame: string;
  readonly no_planning: string;
  /** What is shown with the name of the method while it is edited. */
  readonly copy_of_draft?: string;
}

export interface ViewerOptions {
  readonly http: Http;
  readonly texts: ViewerTexts;
  readonly tool?: Tool;
  /** Where the copy of a draft lies; null: nowhere. */
  readonly storage?: DraftStorage | null;
  /** Whose copies of drafts those in the storage are: nobody takes up another's. */
  readonly account: string;
}

export interface ContourDisplay {
  readonly show: "all" | "one" | "none";
  readonly selected: string;
  /** Names of the ghosts that are shown. */
  readonly ghosts: readonly string[];
  readonly width_px: number;
}

export interface EditingState {
  readonly method: string;
  readonly edited_slices: readonly number[];
  readonly volume_cc: number;
  readonly can_undo: boolean;
  readonly can_redo: boolean;
  readonly seconds: number;
  readonly saving: Saving;
}

export interface ViewerState {
  readonly slice: number;
  readonly slices: number;
  readonly cursor_xyz_mm: Triple;
  readonly window: Window;
  readonly preset: WindowPreset | null;
  readonly compare: Compare;
  readonly flicker: boolean;
  readonly interpolation: boolean;
  readonly contours: ContourDisplay;
  readonly tool: Tool;
  readonly brush: Brush;
  readonly zoom: number;
  readonly editing: EditingState | null;
  /** The contours and all slices of the target are there, and were drawn. */
  readonly shown: boolean;
}

/** What lies under the pointer: stored integers, never what was interpolated for the screen. */
export interface Probe {
  readonly slice: number;
  readonly world_xyz_mm: Triple;
  readonly cbct_hu: number | null;
  readonly planning_hu: number | null;
}

export interface ViewerEvents {
  loading: { readonly image: "cbct" | "planning"; readonly loaded_slices: number; readonly slices: number };
  failed: { readonly what: "cbct" | "planning" | "contours"; readonly error: Error };
  refused: { readonly error: ForeignFrameError };
  state: ViewerState;
  probe: Probe | null;
  distance: { readonly length_mm: number };
  dragged: Dragged;
  editing: EditingState | null;
  restored: Restored;
}

export interface Viewer {
  /** The first picture at the target is on the screen, with its contours; it never rejects: failures are events. */
  readonly loaded: Promise<void>;
  readonly state: ViewerState;
  /** Whether another planning CT than the propagation's own is shown. */
  readonly adjusting: boolean;
  /** Listens; returns what ends it. */
  on<Name extends keyof ViewerEvents>(name: Name, listener: (value: ViewerEvents[Name]) => void): () => void;
  /** Does what a key does. Returns whether it was possible. */
  run(command: Command): boolean;
  /** Takes a key press. Returns whether it was the viewer's. */
  keyDown(event: KeyboardEvent): boolean;
  keyUp(event: KeyboardEvent): boolean;

  goToSlice(slice: number): void;
  goTo(world_xyz_mm: Triple): void;

  /** A window for both images; `auto` is each image's own. */
  setWindow(window: WindowPreset | Window): void;
  setCompare(change: Partial<Compare>): void;
  /** The planning CT alone, as long as a key is held. */
  setFlicker(held: boolean): void;
  setInterpolation(on: boolean): void;
  setContours(change: Partial<ContourDisplay>): void;
  /** Tools that draw are there only while a contour is edited. */
  setTool(tool: Tool): void;
  setBrush(change: Partial<Brush>): void;
  clearDistances(): void;

  /** Begins a draft from a method, or takes up the one that there is. Rejects with `DraftProblem`. */
  edit(method: string): Promise<void>;
  /** Saves, and shows the machine's contours again. Rejects with `DraftProblem`, and goes on editing then. */
  leaveEditing(): Promise<void>;
  draft(): DraftBody | null;
  /** Saves what is not saved. Resolves to the draft's ETag, which a signature names; rejects with `DraftProblem`. */
  saveDraft(): Promise<string>;
  /** Throws the draft away, here and at the service. Rejects with `DraftProblem`. */
  discardDraft(): Promise<void>;
  /** Keys are the plane of the slices' now. */
  focus(): void;
  /** Ends a conflict: this draft replaces the other one, or the other one is taken up. */
  resolveConflict(whose: "mine" | "theirs"): Promise<void>;
  /** Takes the lines of this slice from a method or ghost. Returns whether there are any. */
  copySlice(from: string): boolean;

  /** Shows another planning CT, and contours in the place of those of their names; null: as it was. */
  preview(image: ViewImage | null, contours?: Readonly<Record<string, readonly Loop[]>>): void;

  /** Ends requests and listeners, and takes everything out of the page. */
  destroy(): void;
}
