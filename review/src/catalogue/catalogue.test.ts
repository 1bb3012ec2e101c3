import { expect, test } from "vitest";
import { speak, t, told, type Key } from ".";
import { en } from "./en";
import { zh } from "./zh";

const KEYS = Object.keys(en) as Key[];
const places = (text: string): string[] => (text.match(/\{\w+\}/g) ?? []).sort();

test("a text takes the same values in both languages", () => {
  expect(KEYS.filter((key) => places(zh[key]).join() !== places(en[key]).join())).toEqual([]);
});

test("no text is empty", () => {
  expect(KEYS.filter((key) => en[key].trim() === "" || zh[key].trim() === "")).toEqual([]);
});

test("a text is filled in; a value that is not given stays visible", () => {
  speak("en");
  expect(t("review.fraction", { n: 7, of: 30 })).toBe("fraction 7/30");
  expect(t("review.fraction", { n: 7 })).toBe("fraction 7/{of}");
});

test("what the catalogue does not have is told in the service's own word", () => {
  speak("zh");
  expect(told("state", "awaiting_review")).toBe("待审核");
  expect(told("state", "pondering_deeply")).toBe("pondering deeply");
  speak("en");
});
