/** Tells listeners what happened, by name and type. */
export class Emitter<Events extends object> {
  private readonly listeners = new Map<keyof Events, Set<(value: never) => void>>();

  /** Listens; returns what ends it. */
  on<Name extends keyof Events>(name: Name, listener: (value: Events[Name]) => void): () => void {
    const found = this.listeners.get(name) ?? new Set();
    this.listeners.set(name, found);
    found.add(listener as (value: never) => void);
    return () => void found.delete(listener as (value: never) => void);
  }

  emit<Name extends keyof Events>(name: Name, value: Events[Name]): void {
    for (const listener of this.listeners.get(name) ?? []) (listener as (value: Events[Name]) => void)(value);
  }

  clear(): void {
    this.listeners.clear();
  }
}
