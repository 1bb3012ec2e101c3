/** What keys do: each screen's own actions, one list that the listener and the `?` dialog both read. */

export interface Action {
  /** Its text in the catalogue is `key.{id}`. */
  id: string;
  /** Values that the text takes. */
  values?: Readonly<Record<string, string | number>>;
  /** Such as `n`, `?`, `Shift+P`, `Ctrl+,`; any of them. */
  keys: readonly string[];
  run(): void;
  /** Whether it is possible now; left out: always. */
  when?(): boolean;
}

/** A key press as it stands in a list of keys: `Ctrl+Z`, `Shift+P`, `?`, `ArrowDown`. */
export function chordOf(event: Pick<KeyboardEvent, "key" | "ctrlKey" | "metaKey" | "altKey" | "shiftKey">): string {
  const held: string[] = [];
  const letter = event.key.length === 1 && event.key.toLowerCase() !== event.key.toUpperCase();
  if (event.ctrlKey || event.metaKey) held.push("Ctrl");
  if (event.altKey) held.push("Alt");
  // What Shift makes of a sign is the sign itself: `?` is not Shift+/.
  if (event.shiftKey && (letter || event.key.length > 1)) held.push("Shift");
  const name = letter ? (held.length > 0 ? event.key.toUpperCase() : event.key.toLowerCase()) : event.key;
  return [...held, name].join("+");
}

/** The action of a key press that is possible now. */
export function actionFor(actions: readonly Action[], chord: string): Action | null {
  return actions.find((action) => action.keys.includes(chord) && (action.when?.() ?? true)) ?? null;
}

/** Keys that an element with the focus needs for itself. */
export function belongsTo(element: Element | null, chord: string): boolean {
  if (element === null) return false;
  const plain = chord.replace(/^Shift\+/, "");
  // A select has no use for Ctrl: undo is not lost in it.
  if (element.matches("select")) return !chord.startsWith("Ctrl+");
  if (element.matches("textarea, input:not([type=range], [type=radio], [type=checkbox], [type=button])")) return true;
  const moves = /^(Arrow(Up|Down|Left|Right)|Home|End|PageUp|PageDown)$/.test(plain);
  if (element.matches("input[type=range], input[type=radio]")) return moves || plain === " ";
  if (element.matches("button, a[href], summary, input")) return plain === "Enter" || plain === " ";
  return false;
}

const NAMES: Readonly<Record<string, string>> = {
  ArrowDown: "↓",
  ArrowUp: "↑",
  ArrowLeft: "←",
  ArrowRight: "→",
  PageDown: "Page ↓",
  PageUp: "Page ↑",
  Escape: "Esc",
  Delete: "Del",
  " ": "Space",
};

/** A chord as it stands on a keyboard. */
export function readable(chord: string): string {
  const parts = chord === "+" ? ["+"] : chord.replace(/\+\+$/, "+plus").split("+");
  return parts.map((part) => (part === "plus" ? "+" : (NAMES[part] ?? part))).join(" + ");
}
