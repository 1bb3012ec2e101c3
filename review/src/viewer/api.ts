/** What the page sees of the viewer. */

import type { Brush } from "../editing/brush";
import type { DraftStorage, Saving } from "../editing/saver";
import type { Restored } from "../editing/session";
import type { Compare } from "./compose";
import type { ForeignFrameError } from "./contours";
import type { DraftBody, Http, Loop, Triple, ViewImage } from "./contract";
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
  readonly copy_of_draft?: string;
}

export interface ViewerOptions {
  readonly http: Http;
  readonly texts: ViewerTexts;
  readonly tool?: Tool;
  /** Where the copy of a draft lies; null: nowhere. */
  readonly storage?: DraftStorage | null;
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
  editing: EditingState | null;
  restored: Restored;
}

export interface Viewer {
  readonly loaded: Promise<void>;
  readonly state: ViewerState;
  readonly adjusting: boolean;
  on<Name extends keyof ViewerEvents>(name: Name, listener: (value: ViewerEvents[Name]) => void): () => void;
  run(command: Command): boolean;
  keyDown(event: KeyboardEvent): boolean;
  keyUp(event: KeyboardEvent): boolean;
  goToSlice(slice: number): void;
  goTo(world_xyz_mm: Triple): void;
  setWindow(window: WindowPreset | Window): void;
  setCompare(change: Partial<Compare>): void;
  setFlicker(held: boolean): void;
  setInterpolation(on: boolean): void;
  setContours(change: Partial<ContourDisplay>): void;
  setTool(tool: Tool): void;
  setBrush(change: Partial<Brush>): void;
  clearDistances(): void;
  edit(method: string): Promise<void>;
  leaveEditing(): Promise<void>;
  draft(): DraftBody | null;
  saveDraft(): Promise<string>;
  discardDraft(): Promise<void>;
  resolveConflict(whose: "mine" | "theirs"): Promise<void>;
  copySlice(from: string): boolean;
  preview(image: ViewImage | null, contours?: Readonly<Record<string, readonly Loop[]>>): void;
  destroy(): void;
}
