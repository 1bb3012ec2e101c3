/** What the page uses of the viewer. */

import "./viewer.css";

export { createViewer } from "./viewer";
export type {
  ContourDisplay,
  EditingState,
  Probe,
  Viewer,
  ViewerEvents,
  ViewerOptions,
  ViewerState,
  ViewerTexts,
} from "./api";
export type { Compare, CompareMode } from "./compose";
export type { Contours, DraftBody, Http, Loop, Point, Ring, Rings, Triple, View, ViewGhost, ViewImage, ViewMethod } from "./contract";
export { ForeignFrameError } from "./contours";
export type { Dragged } from "./hand";
export { KEYS } from "./keys";
export type { Command, Key } from "./keys";
export type { Tool } from "./tools";
export type { Window, WindowPreset } from "./window";
export { VolumeError } from "./volume";
export type { Brush } from "../editing/brush";
export { DraftProblem } from "../editing/saver";
export type { DraftStorage, Saving } from "../editing/saver";
export type { Restored } from "../editing/session";
