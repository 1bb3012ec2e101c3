"""Who works: a row for each worker, with the time that the database last saw it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from sqlalchemy import select, text, update

from contourcast.service.index import cursors
from contourcast.service.index.database import DATABASE_CLOCK, Index
from contourcast.service.index.tables import worker

# Begins the name of a cursor: what a worker last said of its GPU.
GPU_OF: Final = "gpu:"


@dataclass(frozen=True, kw_only=True)
class GpuMemory:
    """Of the device that a worker computes on, whoever uses it."""

    used_bytes: int
    total_bytes: int


class Workers:
    """The table of workers; all times are of the database's clock, in seconds."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def seen(self, executor: str, queues: str) -> None:
        """A worker is alive."""
        with self.index.write() as at:
            clock_s = at.execute(text(DATABASE_CLOCK[at.dialect.name])).scalar_one()
            row = {"executor": executor, "queues": queues, "seen_s": clock_s}
            at.execute(self.index.insert_new(worker, row))
            at.execute(update(worker).where(worker.c.executor == executor).values(**row))

    def left(self, executor: str) -> None:
        """A worker ended in good order: what it had begun is for others, at once."""
        with self.index.write() as at:
            at.execute(update(worker).where(worker.c.executor == executor).values(seen_s=0.0))

    def listening(self, queue: str, *, within_s: float) -> bool:
        """Whether a worker that was seen lately does the work of a queue."""
        clock_s = self.index.clock_s()
        with self.index.read() as at:
            rows = at.execute(select(worker).where(worker.c.seen_s > clock_s - within_s)).all()
        return any(queue in row.queues.split(",") for row in rows)

    def has_gpu(self, executor: str, memory: GpuMemory) -> None:
        """A worker says how full its GPU is."""
        with self.index.write() as at:
            cursors.write(self.index, at, f"{GPU_OF}{executor}", asdict(memory))

    def gpus(self, *, within_s: float) -> dict[str, GpuMemory]:
        """What the workers that were seen lately last said of their GPUs."""
        seen = [name for name, silent_s in self.silent_s().items() if silent_s < within_s]
        with self.index.read() as at:
            said = {name: cursors.note(at, f"{GPU_OF}{name}") for name in seen}
        return {name: GpuMemory(**memory) for name, memory in said.items() if memory is not None}

    def silent_s(self) -> dict[str, float]:
        """Of each worker that was ever seen: seconds since then."""
        clock_s = self.index.clock_s()
        with self.index.read() as at:
            return {
                row.executor: clock_s - row.seen_s
                for row in at.execute(select(worker).order_by(worker.c.executor))
            }
