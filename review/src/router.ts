/** Where in the page we are: the part of the address behind the hash, so that every place has a link. */

export type Place =
  | { screen: "worklist" }
  | { screen: "review"; id: string }
  | { screen: "course"; id: string }
  | { screen: "settings" }
  | { screen: "sign-in"; from?: string };

const ID = /^[\w.:-]{1,128}$/;

/** The place of an address; the worklist, where it names none. */
export function placeOf(hash: string): Place {
  const [name = "", id = ""] = hash.replace(/^#\/?/, "").split("/");
  if (name === "propagations" && ID.test(id)) return { screen: "review", id };
  if (name === "courses" && ID.test(id)) return { screen: "course", id };
  if (name === "settings") return { screen: "settings" };
  if (name === "sign-in") return { screen: "sign-in" };
  return { screen: "worklist" };
}

export function hashOf(place: Place): string {
  switch (place.screen) {
    case "review":
      return `#/propagations/${place.id}`;
    case "course":
      return `#/courses/${place.id}`;
    default:
      return `#/${place.screen}`;
  }
}
