import { beforeEach, expect, test } from "vitest";
import { speak } from "./catalogue";
import { cc, duration, number, patientName, percent, signed, taken, towards } from "./format";

beforeEach(() => speak("en"));

test("a number has a true minus, and no minus where nothing is left of it", () => {
  expect(number(-1.25, 1)).toBe("\u22121.3");
  expect(number(-0.01, 1)).toBe("0.0");
  expect(number(null, 1)).toBe("–");
  expect(number(Number.NaN, 1)).toBe("–");
});

test("a change always says its sign", () => {
  expect(signed(18, 0)).toBe("+18");
  expect(signed(0.01, 1)).toBe("0.0");
  expect(percent(-18.2)).toBe("\u221218 %");
});

test("volumes and times bear their unit", () => {
  expect(cc(3.217)).toBe("3.22 cm³");
  expect(cc(31.44)).toBe("31.4 cm³");
  expect(duration(42.4)).toBe("42 s");
  expect(duration(130)).toBe("2 min 10 s");
  expect(duration(119.5)).toBe("2 min 0 s");
});

test("a shift is told in the patient's directions: DICOM's x grows to the left, y to the back, z to the head", () => {
  expect(towards([2, -3, 4])).toBe("2.0 L · 3.0 A · 4.0 H");
  expect(towards([-2, 3, -4])).toBe("2.0 R · 3.0 P · 4.0 F");
});

test("a scan's time is its machine's own, in either of the ways that DICOM and JSON write it", () => {
  expect(taken("20260103081427")).toBe("2026-01-03 08:14");
  expect(taken("2026-01-03T08:14:27")).toBe("2026-01-03 08:14");
  expect(taken("20260103")).toBe("2026-01-03");
  expect(taken("")).toBe("–");
});

test("a name is shown as far as was chosen; without one the ID stands for it", () => {
  const patient = { key: "k", id: "P-7", name: "Müller^Anna", birth_date: "" };
  expect(patientName(patient, "full")).toBe("Müller, Anna");
  expect(patientName(patient, "initials")).toBe("M. A.");
  expect(patientName(patient, "id")).toBe("P-7");
  expect(patientName({ ...patient, name: "" }, "full")).toBe("P-7");
  expect(patientName({ ...patient, name: "=王^小東" }, "full")).toBe("王, 小東");
});

test("in full is all that tells two people apart", () => {
  const named = (name: string): string => patientName({ key: "k", id: "P-7", name, birth_date: "" }, "full");
  expect(named("Smith^John^Paul^^Jr")).toBe("Smith, John Paul, Jr");
  expect(named("Wang^XiaoDong=王^小东")).toBe("Wang, XiaoDong (王, 小东)");
  speak("zh");
  expect(named("Wang^XiaoDong=王^小东")).toBe("王, 小东 (Wang, XiaoDong)");
});
