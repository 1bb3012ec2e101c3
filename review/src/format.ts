/** Numbers and names as people read them; every number goes with its unit. */

import { speaksAsTheService, t } from "./catalogue";
import type { Patient, Triple } from "./api/types";
import type { Names } from "./preferences";

const MINUS = "\u2212";
const NOT_KNOWN = "–";

/** A number with fixed places and a true minus sign; a dash where there is none. */
export function number(value: number | null | undefined, places: number): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return NOT_KNOWN;
  const text = Math.abs(value).toFixed(places);
  return value < 0 && Number(text) !== 0 ? MINUS + text : text;
}

/** The same with a sign always. */
export function signed(value: number | null | undefined, places: number): string {
  const text = number(value, places);
  return value !== null && value !== undefined && value > 0 && Number(text) !== 0 ? `+${text}` : text;
}

export function cc(value: number | null | undefined): string {
  return value === null || value === undefined ? NOT_KNOWN : `${number(value, value < 10 ? 2 : 1)} cm³`;
}

export function mm(value: number | null | undefined, places = 1): string {
  return value === null || value === undefined ? NOT_KNOWN : `${number(value, places)} mm`;
}

export function percent(value: number | null | undefined): string {
  return value === null || value === undefined ? NOT_KNOWN : `${signed(value, 0)} %`;
}

export function length_mm(xyz: Triple): number {
  return Math.hypot(...xyz);
}

/** Where something went, in the patient's own directions. */
export function towards(xyz_mm: Triple): string {
  const ways = [
    ["left", "right"],
    ["posterior", "anterior"],
    ["superior", "inferior"],
  ] as const;
  return ways
    .map(([plus, minus], axis) => {
      const value = xyz_mm[axis] ?? 0;
      return `${number(Math.abs(value), 1)} ${t(`way.${value < 0 ? minus : plus}`)}`;
    })
    .join(" · ");
}

/** Seconds of work as a person counts them. */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return NOT_KNOWN;
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** When a machine took a scan, in its own words made readable: it names no zone, so none is added. */
export function taken(at: string): string {
  const found = /^(\d{4})-?(\d{2})-?(\d{2})[T ]?(?:(\d{2}):?(\d{2}))?/.exec(at);
  if (!found) return at || NOT_KNOWN;
  const [, year, month, day, hour, minute] = found;
  return hour === undefined ? `${year}-${month}-${day}` : `${year}-${month}-${day} ${hour}:${minute}`;
}

/** When something happened here (RFC 3339), on this computer's clock. */
export function local(at: string | null): string {
  const when = new Date(at ?? "");
  if (Number.isNaN(when.getTime())) return at || NOT_KNOWN;
  const two = (value: number): string => String(value).padStart(2, "0");
  const day = `${when.getFullYear()}-${two(when.getMonth() + 1)}-${two(when.getDate())}`;
  return `${day} ${two(when.getHours())}:${two(when.getMinutes())}`;
}

/** A DICOM date. */
export function day(date: string): string {
  return taken(date).slice(0, 10);
}

/** A DICOM name (PS3.5 §6.2.1) as people write it, as far as it may be shown: in the page's own writing first, the other beside it. */
export function patientName(patient: Patient | null, names: Names): string {
  if (patient === null) return t("patient.unknown");
  const [alphabetic = "", ideographic = ""] = patient.name.split("=");
  const groups = (speaksAsTheService() ? [alphabetic, ideographic] : [ideographic, alphabetic])
    .map((group) => group.split("^").map((part) => part.trim()))
    .filter((parts) => parts.some(Boolean));
  const [first, second] = groups;
  if (names === "id" || first === undefined) return patient.id || t("patient.unknown");
  if (names === "initials") return first.slice(0, 2).filter(Boolean).map((part) => `${[...part][0] ?? ""}.`).join(" ");
  return second === undefined ? inFull(first) : `${inFull(first)} (${inFull(second)})`;
}

/** Everything that tells father and son apart. */
function inFull([family = "", given = "", middle = "", prefix = "", suffix = ""]: readonly string[]): string {
  return [family, [given, middle].filter(Boolean).join(" "), prefix, suffix].filter(Boolean).join(", ");
}

/** Whose scan it is, in full. */
export function fullName(patient: Patient | null): string {
  if (patient === null) return t("patient.unknown");
  const born = patient.birth_date && t("patient.born", { date: day(patient.birth_date) });
  return [patientName(patient, "full"), t("patient.id", { id: patient.id }), born].filter(Boolean).join(" · ");
}

/** `local:ann` is ann. */
export function personName(name: string): string {
  return name.replace(/^(local|oidc):/, "");
}
