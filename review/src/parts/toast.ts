/** One line that says what came about, and goes by itself; read aloud politely. */

import { h } from "../dom";

const STAYS_MS = 6000;

let place: HTMLElement | null = null;

export function say(words: string): void {
  place ??= h("div", { class: "toasts", role: "status", "aria-live": "polite" });
  if (!place.isConnected) document.body.append(place);
  const line = h("div", { class: "toast" }, words);
  place.append(line);
  window.setTimeout(() => line.remove(), STAYS_MS);
}
