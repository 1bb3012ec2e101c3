/** What one person likes, kept in this browser alone; nothing of a patient is in it. */

export type Theme = "dark" | "light";
export type Language = "en" | "zh";
export type Names = "full" | "initials" | "id";

export interface Preferences {
  theme: Theme;
  language: Language;
  contour_px: 1 | 2 | 3;
  interpolation: boolean;
  names: Names;
}

export const USUAL: Preferences = { theme: "dark", language: "en", contour_px: 2, interpolation: true, names: "full" };
const PLACE = "contourcast.preferences";
const ALLOWED: { [K in keyof Preferences]: readonly Preferences[K][] } = {
  theme: ["dark", "light"],
  language: ["en", "zh"],
  contour_px: [1, 2, 3],
  interpolation: [true, false],
  names: ["full", "initials", "id"],
};

/** Where they lie; `localStorage`, where the browser lets us. */
export type Shelf = Pick<Storage, "getItem" | "setItem">;

/** What was chosen before; whatever makes no sense is as usual. */
export function recall(shelf: Shelf | null): Preferences {
  const found: Record<string, unknown> = { ...USUAL };
  let kept: unknown = null;
  try {
    kept = JSON.parse(shelf?.getItem(PLACE) ?? "null");
  } catch {
    kept = null; // what cannot be read was not written by us
  }
  if (typeof kept === "object" && kept !== null) {
    for (const [name, allowed] of Object.entries(ALLOWED)) {
      const value = (kept as Record<string, unknown>)[name];
      if ((allowed as readonly unknown[]).includes(value)) found[name] = value;
    }
  }
  return found as unknown as Preferences;
}

export function keep(shelf: Shelf | null, preferences: Preferences): void {
  shelf?.setItem(PLACE, JSON.stringify(preferences));
}

/** The browser's shelf; null where it is closed to pages. */
export function browserShelf(): Shelf | null {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}
