/** The images and contours of a propagation: how they come, and which of them may be shown together. */

import { bySlice, contoursOn, ForeignFrameError } from "./contours";
import type { Contours, Http, Loop, Slices, Triple, View, ViewImage } from "./contract";
import { Grid } from "./grid";
import { load, Volume } from "./volume";

/** A planning CT that does not lie on the CBCT's grid cannot be laid over it. */
export class ForeignGridError extends Error {
  constructor() {
    super("the planning CT was not resampled on the grid of the CBCT");
    this.name = "ForeignGridError";
  }
}

export type What = "cbct" | "planning" | "contours";

/** Who is told what came. */
export interface Receiver {
  /** Slices of an image, or the contours, are there. */
  arrived(what: What, volume: Volume | null): void;
  failed(what: What, error: Error): void;
}

/** A planning CT with its name. */
export interface Named {
  readonly volume: Volume | null;
  readonly label: string;
}

/** Why an image must not be laid over the CBCT; null where it may. */
export function foreignness(image: ViewImage, cbct: ViewImage): ForeignFrameError | ForeignGridError | null {
  if (image.frame_of_reference !== cbct.frame_of_reference) {
    return new ForeignFrameError(image.frame_of_reference, cbct.frame_of_reference);
  }
  return new Grid(image).equals(new Grid(cbct)) ? null : new ForeignGridError();
}

export class Material {
  readonly grid: Grid;
  readonly cbct: Volume;
  /** As the service drew them, of one frame of reference with the CBCT; null where they are not there. */
  contours: ReadonlyMap<string, Slices> | null = null;
  private planning: Named = { volume: null, label: "" };
  private previewed: { volume: Volume; label: string; stop: AbortController; contours: ReadonlyMap<string, Slices> } | null = null;
  private readonly stop = new AbortController();

  constructor(
    private readonly view: View,
    private readonly http: Http,
    private readonly receiver: Receiver,
  ) {
    this.grid = new Grid(view.images.cbct);
    this.cbct = new Volume(view.images.cbct);
  }

  /** Asks for all there is; resolves when the first slices of the CBCT and the contours are there, or will not come. */
  async begin(): Promise<void> {
    const { cbct, planning } = this.view.images;
    const first = this.bring("cbct", this.cbct, this.stop.signal);
    const foreign = planning && foreignness(planning, cbct);
    if (foreign) {
      this.receiver.failed("planning", foreign);
    } else if (planning) {
      const volume = new Volume(planning);
      this.planning = { volume, label: planning.label };
      void this.bring("planning", volume, this.stop.signal);
    }
    await Promise.all([first, this.bringContours()]);
  }

  /** Shows another planning CT, and other contours in the place of those of their names; null: as it was. */
  preview(image: ViewImage | null, contours: Readonly<Record<string, readonly Loop[]>>): void {
    this.previewed?.stop.abort();
    this.previewed = null;
    if (!image) return;
    const foreign = foreignness(image, this.view.images.cbct);
    if (foreign) return this.receiver.failed("planning", foreign);
    const stop = new AbortController();
    const volume = new Volume(image);
    const drawn = new Map(Object.entries(contours).map(([name, loops]) => [name, bySlice(loops)]));
    this.previewed = { volume, label: image.label, stop, contours: drawn };
    void this.bring("planning", volume, stop.signal);
  }

  get previewing(): boolean {
    return this.previewed !== null;
  }

  /** The planning CT to show at a slice. */
  planningAt(slice: number): Named {
    // A previewed image that is not there yet would be a black flash.
    return this.previewed?.volume.has(slice) ? this.previewed : this.planning;
  }

  /** The lines of a method or ghost, or what is previewed in their place. */
  lines(name: string): Slices | undefined {
    return this.previewed?.contours.get(name) ?? this.contours?.get(name);
  }

  /** Where one looks first: the voxel at the centre of the target, or of the volume. */
  start(): Triple {
    const { target } = this.view;
    const [i, j, k] = this.grid.shape_ijk;
    return this.grid.nearest(target ? this.grid.index(target.center_xyz_mm) : [(i - 1) / 2, (j - 1) / 2, (k - 1) / 2]);
  }

  /** Whether the contours and every slice of the target are there; where there is no target, the slice that one looks at first. */
  get whole(): boolean {
    const { target } = this.view;
    const last = this.cbct.slices - 1;
    const [, , middle] = this.start();
    const from = Math.max(0, target?.first_slice ?? middle);
    const to = Math.min(last, target?.last_slice ?? middle);
    for (let slice = from; slice <= to; slice++) if (!this.cbct.has(slice)) return false;
    return this.contours !== null;
  }

  /** Ends all requests. */
  close(): void {
    this.stop.abort();
    this.previewed?.stop.abort();
  }

  /** Resolves when the first slices are there, or will not come. */
  private bring(what: "cbct" | "planning", volume: Volume, signal: AbortSignal): Promise<void> {
    const { target } = this.view;
    return new Promise((resolve) => {
      load(volume, {
        http: this.http,
        target: target && { from: target.first_slice, to: target.last_slice },
        signal,
        arrived: () => {
          this.receiver.arrived(what, volume);
          resolve();
        },
      }).catch((error: unknown) => {
        if (!signal.aborted) this.receiver.failed(what, error as Error);
        resolve();
      });
    });
  }

  private async bringContours(): Promise<void> {
    try {
      const answer = await this.http(`/v1/propagations/${this.view.propagation}/contours`, { signal: this.stop.signal });
      const body = (await answer.json()) as Contours & { title?: string };
      if (!answer.ok) throw new Error(body.title ?? answer.statusText);
      this.contours = contoursOn(this.view.images.cbct.frame_of_reference, body);
      this.receiver.arrived("contours", null);
    } catch (error) {
      if (!this.stop.signal.aborted) this.receiver.failed("contours", error as Error);
    }
  }
}
