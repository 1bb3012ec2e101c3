import { expect, test } from "vitest";
import { commandOf, KEYS, nameOf } from "./keys";

const press = (key: string, held: Partial<Record<"ctrlKey" | "metaKey" | "shiftKey" | "altKey", boolean>> = {}) => ({
  key,
  ctrlKey: false,
  metaKey: false,
  shiftKey: false,
  altKey: false,
  ...held,
});

test("no key has two commands, and no command is without a key", () => {
  const names = KEYS.flatMap(({ keys }) => keys);
  expect(new Set(names).size).toBe(names.length);
  expect(KEYS.every(({ keys }) => keys.length > 0)).toBe(true);
  expect(new Set(KEYS.map(({ command }) => command)).size).toBe(KEYS.length);
});

test("signs are their own keys, however a keyboard types them", () => {
  expect(nameOf(press("+", { shiftKey: true }))).toBe("+");
  expect(commandOf(press("]"))?.command).toBe("worst-slice-next");
  expect(commandOf(press(">", { shiftKey: true }))?.command).toBe("brush-bigger");
});

test("letters are told apart by what is held, not by Caps Lock", () => {
  expect(commandOf(press("C"))?.command).toBe("target-centre");
  expect(commandOf(press("A", { shiftKey: true }))?.command).toBe("show-all");
  expect(commandOf(press("a"))?.command).toBe("tool-add");
  expect(commandOf(press("z", { ctrlKey: true }))?.command).toBe("undo");
  expect(commandOf(press("z", { metaKey: true }))?.command).toBe("undo");
  expect(commandOf(press("Z", { ctrlKey: true, shiftKey: true }))?.command).toBe("redo");
  expect(commandOf(press("c", { ctrlKey: true }))).toBeUndefined();
  expect(commandOf(press("ArrowUp", { shiftKey: true }))?.command).toBe("five-slices-back");
});

test("what draws or takes away is there only while a contour is edited", () => {
  for (const command of ["delete-slice", "tool-eraser", "smooth", "interpolate", "undo"]) {
    expect(KEYS.find((key) => key.command === command)?.editing).toBe(true);
  }
});
