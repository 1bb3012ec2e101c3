/** Which slice a key leads to. */

export interface Disagreement {
  readonly slice: number;
  readonly mm: number;
}

/** Slices by disagreement, the worst first; equal ones from the feet up. */
export function worstFirst(disagreement: readonly Disagreement[]): number[] {
  return [...disagreement].sort((a, b) => b.mm - a.mm || a.slice - b.slice).map(({ slice }) => slice);
}

/**
 * The next in order of disagreement, or the one before.
 *
 * From a slice that is none of them the first step is to the worst; at the ends it stays.
 */
export function nextWorst(order: readonly number[], slice: number, step: 1 | -1): number | null {
  if (order.length === 0) return null;
  const place = order.indexOf(slice);
  if (place < 0) return order[0]!;
  return order[Math.min(order.length - 1, Math.max(0, place + step))]!;
}

/** The nearest slice in one direction that holds a contour; null where there is none further. */
export function nextHolding(holding: readonly number[], slice: number, step: 1 | -1): number | null {
  const further = holding.filter((candidate) => (candidate - slice) * step > 0);
  if (further.length === 0) return null;
  return step > 0 ? Math.min(...further) : Math.max(...further);
}
