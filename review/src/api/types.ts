/** What the service says, as far as the page reads it. Lengths are mm, volumes cm³; DICOM patient axes. */

import type { Loop } from "../viewer";

export type Verdict = "accept" | "look" | "reject";
export type Triple = readonly [number, number, number];

export interface Session {
  name: string;
  kind: "key" | "person" | "loopback";
  roles: string[];
  expires_at: string | null;
  proven_at: string | null;
  csrf: string | null;
}

export interface Ways {
  local: boolean;
  oidc: boolean;
}

export interface Patient {
  key: string;
  id: string;
  name: string;
  birth_date: string;
}

export interface WorklistItem {
  kind: "propagation" | "question" | "series";
  id: string;
  link: string;
  patient: Patient | null;
  course: string | null;
  fraction: number | null;
  /** Of that fraction, the how-manieth. */
  scan: number | null;
  cbct: string;
  acquired_at: string;
  arrived_at: string;
  machine: string;
  state: string;
  verdict: Verdict | "";
  reason: string;
  doubt: Figure | null;
  roi: string;
  volumes_cc: Record<string, number | null>;
  volume_change_percent: number | null;
  open_by?: string[];
  agreement?: number | null;
  /** Scans of the same fraction before it, the latest first. */
  earlier?: WorklistItem[];
}

export interface Figure {
  name: string;
  value: number | null;
  limit: string;
  verdict: Verdict | null;
  reason: string;
}

export interface Image {
  volume: string;
  shape_zyx: Triple;
  spacing_xyz_mm: Triple;
  origin_xyz_mm: Triple;
  direction: readonly (readonly number[])[];
  slice_z_mm: readonly number[];
  label: string;
  outside: number;
  frame_of_reference: string;
}

export interface Method {
  method: string;
  roi_name: string;
  colour: string;
  dash: readonly number[];
  volume_cc: number | null;
  change_percent: number | null;
  shift_xyz_mm: Triple | null;
  seconds: number | null;
  recommended: boolean;
  empty: boolean;
  agreement: Readonly<Record<string, { dice: number | null; mean_surface_mm: number | null }>>;
  note: string;
}

export interface Ghost {
  ghost: "prior" | "approved";
  /** Whose contour the prior was; null: it is none. */
  carried_from: "planning" | "signed" | null;
  label: string;
  colour: string;
  dash: readonly number[];
  volume_cc: number | null;
}

export interface Registration {
  direction: string;
  translation_xyz_mm: Triple;
  rotation_xyz_deg: Triple;
  at: string;
  at_xyz_mm: Triple;
  figures: Figure[];
  planning_from_cbct: readonly (readonly number[])[];
}

/** A series that something was taken from. */
export interface Source {
  series: string;
  taken_at: string;
  description: string;
}

/** What a fraction was drawn from, and why that. */
export interface Basis {
  planning_ct: Source;
  structures: Source;
  signed_on: string | null;
  vouched: string;
  reasons: { question: string; rule: string; sentence: string }[];
}

/** Something that goes, or went, to another system. */
export interface Delivery {
  id: string;
  destination: string;
  propagation: string | null;
  state: "waiting" | "held" | "delivered" | "dead" | "dropped";
  attempts: number;
  made_at: string;
  next_at: string;
  objects: { role?: string }[];
  problem: { cause?: string; detail?: string; remedy?: string };
}

export interface View {
  propagation: string;
  state: string;
  patient: Patient | null;
  course: string | null;
  fraction: number | null;
  fractions: number | null;
  scan: number | null;
  scans: number | null;
  roi: string;
  acquired_at: string;
  arrived_at: string;
  machine: string;
  cbct_series: string;
  frame_of_reference: string;
  stale: { why: string; propagation: string | null } | null;
  verdict: { verdict: Verdict | ""; reasons: string[]; figures: Figure[] };
  registration: Registration | null;
  images: { cbct: Image; planning: Image | null; planning_why_not: string };
  target: { center_xyz_mm: Triple; first_slice: number; last_slice: number } | null;
  methods: Method[];
  disagreement: { slice: number; mm: number }[];
  worst_slice: number | null;
  ghosts: Ghost[];
  approved: Approved | null;
  /** An edit that somebody began and nobody signed: no part of what is shown. */
  draft?: Draft | null;
  basis: Basis;
  may: { sign: boolean; edit: boolean; retry: boolean; reject: boolean; why_not: string };
}

export interface Approved {
  number: number;
  method: string;
  reviewer: string;
  at: string;
  structures_uid: string;
}

export interface Draft {
  by: string;
  saved_at: string;
  method: string;
  edited_slices: number;
}

/** `reviewer` is who is meant to decide: the service refuses anybody else. */
export type Decision = { reviewer: string; text: string } & (
  | { decision: "approved"; method: string }
  | { decision: "edited"; method: string; draft_etag: string }
  | { decision: "rejected"; reason: string }
);

export interface Reviewed {
  number: number;
  propagation: string;
  decision: string;
  method: string;
  reason: string;
  reviewer: string;
  at: string;
  structures_uid: string;
  figures?: {
    surface_dice_1mm: number | null;
    mean_surface_mm: number | null;
    edited_slices: number | null;
    seconds: number | null;
    volume_cc: number | null;
    machine_volume_cc: number | null;
  } | null;
  deliveries?: string[];
}

export interface Change {
  translation_xyz_mm: Triple;
  rotation_xyz_deg: Triple;
}

export interface Adjusted {
  image: Image;
  contours: Record<string, Loop[]>;
}

export interface FractionHistory {
  fraction: number | null;
  scan: number | null;
  roi: string;
  propagation: string;
  acquired_at: string;
  state: string;
  verdict: Verdict | "";
  reason: string;
  doubt: Figure | null;
  volumes_cc: Record<string, number | null>;
  signed_volume_cc: number | null;
  prior_volume_cc: number | null;
  shift_xyz_mm: Triple | null;
  review: {
    decision: string;
    method: string;
    reviewer: string;
    at: string;
    surface_dice_1mm: number | null;
    mean_surface_mm: number | null;
    edited_slices: number | null;
    seconds: number | null;
  } | null;
}

export interface History {
  course: string;
  /** The key; who it is stands in the worklist. */
  patient: string;
  roi: string;
  fractions: FractionHistory[];
}

export interface EditingStatistics {
  since: string | null;
  methods: {
    method: string;
    signed: number;
    unchanged: number;
    edited: number;
    rejected: number;
    median_surface_dice_1mm: number | null;
    median_mean_surface_mm: number | null;
    median_seconds: number | null;
    months: { month: string; signed: number; edited: number; median_surface_dice_1mm: number | null }[];
  }[];
}

export interface Course {
  id: string;
  question: string | null;
  fractions: {
    id: string;
    patient: Patient | null;
    acquired_at: string;
    state: string;
    question: {
      question: string;
      why: string;
      choices: { value: string; label: string }[];
      several: boolean;
      missing: string[];
    } | null;
    propagations: string[];
  }[];
}
