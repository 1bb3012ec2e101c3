import { expect, test } from "vitest";
import { hashOf, placeOf, type Place } from "./router";

test.each<Place>([
  { screen: "worklist" },
  { screen: "settings" },
  { screen: "sign-in" },
  { screen: "review", id: "0f".repeat(32) },
  { screen: "course", id: "1.2.840.1" },
])("$screen has an address that leads back to it", (place) => {
  expect(placeOf(hashOf(place))).toEqual(place);
});

test("an address that names nothing leads to the worklist", () => {
  for (const hash of ["", "#", "#/elsewhere", "#/propagations/", "#/propagations/<img>", "#/courses/%2e%2e"]) {
    expect(placeOf(hash)).toEqual({ screen: "worklist" });
  }
});
