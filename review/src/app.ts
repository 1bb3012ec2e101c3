/** The frame that screens stand in: who is signed in, what is liked, where we are, and what keys do. */

import { Client } from "./api/client";
import type { Session } from "./api/types";
import { speak, t } from "./catalogue";
import { h, show } from "./dom";
import { actionFor, belongsTo, chordOf, type Action } from "./keys";
import { dialogIsOpen } from "./parts/dialog";
import { linesOf, openHelp, type KeyGroup } from "./parts/help";
import { inOneLine } from "./parts/problem";
import { say } from "./parts/toast";
import { browserShelf, keep, recall, type Preferences } from "./preferences";
import { hashOf, placeOf, type Place } from "./router";

/** One screen, from being opened to being left. */
export interface Screen {
  readonly title: string;
  readonly root: HTMLElement;
  actions(): readonly Action[];
  /** Keys of what the screen holds, for the list of keys. */
  keyGroups?(): readonly KeyGroup[];
  /** Keys that are no action of the screen's. True: it was taken. */
  keyDown?(event: KeyboardEvent): boolean;
  keyUp?(event: KeyboardEvent): boolean;
  /** The service answers again, or no longer. */
  answered?(yes: boolean): void;
  leave?(): void | Promise<void>;
}

export type Open = (app: App, place: Place) => Screen;

export class App {
  readonly client: Client;
  session: Session | null = null;
  preferences: Preferences;
  private readonly shelf = browserShelf();
  private screen: Screen | null = null;
  /** How often a place was asked for: only the last one is opened. */
  private asked = 0;
  private reachable = true;
  private readonly bar = h("div", { class: "bar bar-bad", role: "alert", hidden: true });
  private readonly main = h("main", { id: "content", tabindex: "-1" });

  constructor(
    root: HTMLElement,
    private readonly screens: Readonly<Record<Place["screen"], Open>>,
  ) {
    this.preferences = recall(this.shelf);
    this.client = new Client({
      signedOut: () => this.ended(),
      answered: (yes) => this.answered(yes),
    });
    const skip = h("a", { class: "skip", href: "#content" }, t("page.skip"));
    skip.addEventListener("click", (event) => {
      event.preventDefault(); // the hash is the page's address
      this.main.focus();
    });
    root.replaceChildren(skip, this.bar, this.main);
  }

  /** Begins: who is here, and the screen that the address names. */
  async start(): Promise<void> {
    this.dress();
    window.addEventListener("hashchange", () => void this.open());
    window.addEventListener("keydown", (event) => this.keyDown(event));
    window.addEventListener("keyup", (event) => {
      if (this.screen?.keyUp?.(event)) event.preventDefault();
    });
    try {
      this.session = await this.client.session();
    } catch {
      this.session = null; // the screen asks again and tells what is wrong
    }
    await this.open();
  }

  /** Another place; the same one again is opened anew. */
  go(place: Place): void {
    if (window.location.hash === hashOf(place)) void this.open();
    else window.location.hash = hashOf(place);
  }

  /** Changes what is liked, and opens the screen again where its texts change with that. */
  prefer(change: Partial<Preferences>): void {
    const language = this.preferences.language;
    this.preferences = { ...this.preferences, ...change };
    keep(this.shelf, this.preferences);
    this.dress();
    if (this.preferences.language !== language) void this.open();
  }

  /** Ends the sign-in, once what was drawn is saved; who stays signed in is told. */
  async signOut(): Promise<void> {
    await this.screen?.leave?.();
    try {
      await this.client.signOut();
      this.session = null;
      window.location.hash = hashOf({ screen: "worklist" });
    } catch (error) {
      say(`${t("page.still_signed_in")} ${inOneLine(error)}`);
    }
    await this.open();
  }

  /** Whether somebody who is signed in has a role. */
  has(role: string): boolean {
    return this.session?.roles.includes(role) ?? false;
  }

  private dress(): void {
    speak(this.preferences.language);
    document.documentElement.lang = this.preferences.language === "zh" ? "zh-Hans" : "en";
    document.documentElement.dataset["theme"] = this.preferences.theme;
  }

  private async open(): Promise<void> {
    const mine = ++this.asked;
    await this.screen?.leave?.();
    if (mine !== this.asked) return;
    const asked = placeOf(window.location.hash);
    const place: Place = this.session === null && asked.screen !== "settings" ? { screen: "sign-in", from: hashOf(asked) } : asked;
    const screen = this.screens[place.screen](this, place);
    this.screen = screen;
    document.title = `${screen.title} · ${t("page.title")}`;
    show(this.main, screen.root);
    document.querySelectorAll("dialog[open]").forEach((dialog) => (dialog as HTMLDialogElement).close());
  }

  private ended(): void {
    if (this.session === null) return;
    this.session = null;
    say(t("sign_in.ended"));
    void this.open();
  }

  private answered(yes: boolean): void {
    if (yes === this.reachable) return;
    this.reachable = yes;
    this.bar.hidden = yes;
    show(this.bar, yes ? "" : t("page.unreachable"));
    if (yes) say(t("page.reachable"));
    this.screen?.answered?.(yes);
  }

  private keyDown(event: KeyboardEvent): void {
    if (event.defaultPrevented || event.isComposing || dialogIsOpen()) return;
    const chord = chordOf(event);
    const focused = event.target instanceof Element ? event.target : null;
    if (belongsTo(focused, chord)) return;
    const screen = this.screen;
    if (screen === null) return;
    const action = actionFor([...screen.actions(), ...this.everywhere()], chord);
    if (action !== null) {
      event.preventDefault();
      action.run();
    } else if (screen.keyDown?.(event)) event.preventDefault();
  }

  private everywhere(): Action[] {
    return [
      { id: "help", keys: ["?"], run: () => this.help() },
      { id: "settings", keys: ["Ctrl+,"], run: () => this.go({ screen: "settings" }) },
    ];
  }

  /** Shows every key that does something here. */
  help(): void {
    const own = [...(this.screen?.actions() ?? []), ...this.everywhere()];
    const others = this.screen?.keyGroups?.() ?? [];
    openHelp([{ title: t("keys.page"), lines: linesOf(own) }, ...others], others.length > 0);
  }
}
