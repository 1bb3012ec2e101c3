import { expect, test } from "vitest";
import { actionFor, belongsTo, chordOf, readable } from "./keys";

const pressed = (key: string, held: Partial<Record<"ctrlKey" | "altKey" | "shiftKey", boolean>> = {}) =>
  chordOf({ key, ctrlKey: false, metaKey: false, altKey: false, shiftKey: false, ...held });

test("a key press has one name", () => {
  expect(pressed("n")).toBe("n");
  expect(pressed("N", { shiftKey: true })).toBe("Shift+N");
  expect(pressed("?", { shiftKey: true })).toBe("?");
  expect(pressed("z", { ctrlKey: true })).toBe("Ctrl+Z");
  expect(pressed("ArrowDown", { shiftKey: true })).toBe("Shift+ArrowDown");
});

test("caps lock signs nothing that its small letter does not", () => {
  expect(pressed("Y")).toBe("y");
});

test("an action that is not possible now gives way to the next one of its key", () => {
  const ran: string[] = [];
  const actions = [
    { id: "a", keys: ["e"], run: () => ran.push("a"), when: () => false },
    { id: "b", keys: ["e"], run: () => ran.push("b") },
  ];
  actionFor(actions, "e")?.run();
  expect(ran).toEqual(["b"]);
  expect(actionFor(actions, "f")).toBeNull();
});

test("keys are read as they stand on a keyboard", () => {
  expect(readable("Shift+ArrowDown")).toBe("Shift + ↓");
  expect(readable("+")).toBe("+");
  expect(readable("Shift++")).toBe("Shift + +");
});

test("a select keeps its letters and arrows, and leaves undo to the page", () => {
  const select = { matches: (selector: string) => selector === "select" } as unknown as Element;
  expect(["ArrowDown", "a", "Escape", "Ctrl+Z", "Ctrl+Shift+Z"].map((chord) => belongsTo(select, chord))).toEqual([true, true, true, false, false]);
});
