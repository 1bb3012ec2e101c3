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
 * @param reached The slice that this led to last. Who has left it since then begins again with the worst; at the ends it stays.
 */
export function nextWorst(order: readonly number[], slice: number, reached: number | null, step: 1 | -1): number | null {
  const place = slice === reached ? order.indexOf(slice) : -1;
  return order[Math.min(order.length - 1, place < 0 ? 0 : Math.max(0, place + step))] ?? null;
}

/** The nearest slice in one direction that holds a contour; null where there is none further. */
export function nextHolding(holding: readonly number[], slice: number, step: 1 | -1): number | null {
  const further = holding.filter((candidate) => (candidate - slice) * step > 0);
  if (further.length === 0) return null;
  return step > 0 ? Math.min(...further) : Math.max(...further);
}
