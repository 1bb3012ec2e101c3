/** Every text of the page, in the language that was chosen. */

import type { Language } from "../preferences";
import { en } from "./en";
import { zh } from "./zh";

export type Key = keyof typeof en;
export type Texts = { readonly [K in Key]: string };

const CATALOGUES: Record<Language, Texts> = { en, zh };
let texts: Texts = en;

export function speak(language: Language): void {
  texts = CATALOGUES[language];
}

/** Whether the page speaks the service's own language, so that its sentences can be shown as they are. */
export function speaksAsTheService(): boolean {
  return texts === en;
}

/** A text, with `{name}` filled in. */
export function t(key: Key, values: Readonly<Record<string, string | number>> = {}): string {
  return texts[key].replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

/** A text whose key is put together from what the service said; what it said, where there is none. */
export function told(group: string, name: string): string {
  const key = `${group}.${name}`;
  return key in texts ? texts[key as Key] : name.replaceAll("_", " ");
}
