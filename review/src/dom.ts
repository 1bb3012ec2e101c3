/** Elements without markup: nothing that a header of a scan says is ever read as HTML. */

export type Child = Node | string | number | null | undefined | false | readonly Child[];
type Value = string | number | boolean | null | undefined | ((event: never) => void);
export type Props = Readonly<Record<string, Value>>;

/** An HTML element. `onclick` and the like are listeners; `true` is an empty attribute; `false`, null and undefined are none. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  dress(made, props);
  fill(made, children);
  return made;
}

/** An SVG element, by the same rules. */
export function s<K extends keyof SVGElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: Child[]
): SVGElementTagNameMap[K] {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  dress(made, props);
  fill(made, children);
  return made;
}

/** The children of an element are these now. */
export function show(element: Element, ...children: Child[]): void {
  element.replaceChildren();
  fill(element, children);
}

/** Draws only where what it is called with has changed: the viewer tells its state at every frame. */
export function onChange<A extends readonly unknown[]>(draw: (...told: A) => void): (...told: A) => void {
  let last = "";
  return (...told) => {
    const now = JSON.stringify(told);
    if (now === last) return;
    last = now;
    draw(...told);
  };
}

/** Sets an attribute of toggles: `aria-pressed` of a button that stays down. */
export function press(button: Element, down: boolean): void {
  button.setAttribute("aria-pressed", String(down));
}

function dress(element: Element, props: Props): void {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value as EventListener);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
}

function fill(element: Element, children: readonly Child[]): void {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (isList(child)) fill(element, child);
    else element.append(child instanceof Node ? child : String(child));
  }
}

function isList(child: Child): child is readonly Child[] {
  return Array.isArray(child);
}
