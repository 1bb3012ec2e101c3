/** Every command has a key. */

export type Command =
  | "previous-slice"
  | "next-slice"
  | "five-slices-back"
  | "five-slices-on"
  | "first-slice"
  | "last-slice"
  | "worst-slice-next"
  | "worst-slice-previous"
  | "contour-slice-next"
  | "contour-slice-previous"
  | "target-centre"
  | "flicker"
  | "window-lung"
  | "window-soft"
  | "window-bone"
  | "window-auto"
  | "compare-blend"
  | "compare-checkerboard"
  | "compare-spyglass"
  | "compare-side-by-side"
  | "compare-difference"
  | "blend-more"
  | "blend-less"
  | "interpolation"
  | "show-all"
  | "show-one"
  | "show-none"
  | "next-method"
  | "width"
  | "zoom-in"
  | "zoom-out"
  | "fit"
  | "tool-navigate"
  | "tool-distance"
  | "tool-brush"
  | "tool-eraser"
  | "tool-nudge"
  | "tool-add"
  | "tool-subtract"
  | "brush-bigger"
  | "brush-smaller"
  | "brush-sphere"
  | "interpolate"
  | "smooth"
  | "delete-slice"
  | "undo"
  | "redo";

export interface Key {
  readonly command: Command;
  /** Names as `nameOf` gives them. */
  readonly keys: readonly string[];
  /** Lasts as long as the key is held. */
  readonly held?: true;
  /** Possible only while a contour is edited. */
  readonly editing?: true;
}

export const KEYS: readonly Key[] = [
  { command: "previous-slice", keys: ["ArrowUp", "PageUp"] },
  { command: "next-slice", keys: ["ArrowDown", "PageDown"] },
  { command: "five-slices-back", keys: ["Shift+ArrowUp"] },
  { command: "five-slices-on", keys: ["Shift+ArrowDown"] },
  { command: "first-slice", keys: ["Home"] },
  { command: "last-slice", keys: ["End"] },
  { command: "worst-slice-next", keys: ["]"] },
  { command: "worst-slice-previous", keys: ["["] },
  { command: "contour-slice-next", keys: ["."] },
  { command: "contour-slice-previous", keys: [","] },
  { command: "target-centre", keys: ["c"] },
  { command: "flicker", keys: ["f"], held: true },
  { command: "window-lung", keys: ["1"] },
  { command: "window-soft", keys: ["2"] },
  { command: "window-bone", keys: ["3"] },
  { command: "window-auto", keys: ["4"] },
  { command: "compare-blend", keys: ["b"] },
  { command: "compare-checkerboard", keys: ["k"] },
  { command: "compare-spyglass", keys: ["g"] },
  { command: "compare-side-by-side", keys: ["v"] },
  { command: "compare-difference", keys: ["d"] },
  { command: "blend-more", keys: ["+"] },
  { command: "blend-less", keys: ["-"] },
  { command: "interpolation", keys: ["i"] },
  { command: "show-all", keys: ["Shift+A"] },
  { command: "show-one", keys: ["Shift+O"] },
  { command: "show-none", keys: ["Shift+N"] },
  { command: "next-method", keys: ["m"] },
  { command: "width", keys: ["w"] },
  { command: "zoom-in", keys: ["="] },
  { command: "zoom-out", keys: ["_"] },
  { command: "fit", keys: ["0"] },
  { command: "tool-navigate", keys: ["Escape"] },
  { command: "tool-distance", keys: ["t"] },
  { command: "brush-bigger", keys: [">"] },
  { command: "brush-smaller", keys: ["<"] },
  { command: "tool-brush", keys: ["p"], editing: true },
  { command: "tool-eraser", keys: ["e"], editing: true },
  { command: "tool-nudge", keys: ["u"], editing: true },
  { command: "tool-add", keys: ["a"], editing: true },
  { command: "tool-subtract", keys: ["s"], editing: true },
  { command: "brush-sphere", keys: ["o"], editing: true },
  { command: "interpolate", keys: ["l"], editing: true },
  { command: "smooth", keys: ["h"], editing: true },
  { command: "delete-slice", keys: ["Delete"], editing: true },
  { command: "undo", keys: ["Ctrl+Z"], editing: true },
  { command: "redo", keys: ["Ctrl+Y", "Ctrl+Shift+Z"], editing: true },
];

type Pressed = Pick<KeyboardEvent, "key" | "ctrlKey" | "metaKey" | "shiftKey" | "altKey">;

/** What a pressed key is called: `c`, `Shift+A`, `Ctrl+Shift+Z`, `Shift+ArrowUp`; signs as they are printed, whatever it takes to type them. */
export function nameOf({ key, ctrlKey, metaKey, shiftKey, altKey }: Pressed): string {
  const letter = /^[a-z]$/i.test(key);
  const modifiers = [
    ...(ctrlKey || metaKey ? ["Ctrl"] : []),
    ...(altKey ? ["Alt"] : []),
    ...(shiftKey && (letter || key.length > 1) ? ["Shift"] : []),
  ];
  // With Caps Lock a letter comes large without Shift: it is the small one's key.
  const name = letter ? (modifiers.length > 0 ? key.toUpperCase() : key.toLowerCase()) : key;
  return [...modifiers, name].join("+");
}

const BY_NAME: ReadonlyMap<string, Key> = new Map(KEYS.flatMap((key) => key.keys.map((name) => [name, key] as const)));

/** The command of a pressed key; undefined where it has none. */
export function commandOf(pressed: Pressed): Key | undefined {
  return BY_NAME.get(nameOf(pressed));
}
