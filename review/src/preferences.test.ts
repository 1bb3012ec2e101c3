import { expect, test } from "vitest";
import { keep, recall, USUAL, type Shelf } from "./preferences";

function shelf(text: string | null): Shelf & { text: string | null } {
  return {
    text,
    getItem() {
      return this.text;
    },
    setItem(_: string, value: string) {
      this.text = value;
    },
  };
}

test("what was kept is recalled", () => {
  const place = shelf(null);
  keep(place, { ...USUAL, theme: "light", contour_px: 3 });
  expect(recall(place)).toEqual({ ...USUAL, theme: "light", contour_px: 3 });
});

test("what makes no sense is as usual, value by value", () => {
  expect(recall(shelf('{"theme": "pink", "contour_px": 9, "language": "zh"}'))).toEqual({ ...USUAL, language: "zh" });
  expect(recall(shelf("{"))).toEqual(USUAL);
  expect(recall(null)).toEqual(USUAL);
});
