"""The queues, and what may run at the same time on each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

CPU: Final = "cpu"
GPU: Final = "gpu"
COURSE: Final = "course"
COHORT: Final = "cohort"
DELIVER: Final = "deliver"
ALL: Final = (CPU, GPU, COURSE, COHORT, DELIVER)

# How often an idle worker asks each for work, s. Steps follow on one another and are asked for
# often; what only begins, or goes out, may wait a moment, and the processor rests.
ASKED_EVERY_S: Final = {CPU: 0.2, GPU: 0.5, COURSE: 0.5, COHORT: 1.0, DELIVER: 1.0}
# Propagations that wait for their steps cost a thread each, and nothing else.
WAITING_AT_ONCE: Final = 16
# Of a cohort: so many are under way that the processors are never idle, and no more.
COHORT_AT_ONCE: Final = 4
DELIVERIES_AT_ONCE: Final = 4


def limits(jobs_at_once: int) -> dict[str, dict[str, int]]:
    """Of each queue: what the engine is told of it.

    Args:
        jobs_at_once: Steps that compute side by side in one worker; 0: half of the processors.
    """
    compute = jobs_at_once or max(1, (os.cpu_count() or 2) // 2)
    return {
        CPU: {"worker_concurrency": compute},
        GPU: {"worker_concurrency": 1},
        # one fraction of a course after another: no prior is overtaken (CLINICAL_SERVICE §1.1)
        COURSE: {"worker_concurrency": WAITING_AT_ONCE, "partition_concurrency": 1},
        COHORT: {"global_concurrency": COHORT_AT_ONCE},
        # one delivery after another to each destination
        DELIVER: {"worker_concurrency": DELIVERIES_AT_ONCE, "partition_concurrency": 1},
    }


def chosen(names: str | Sequence[str]) -> tuple[str, ...]:
    """Queues by name, in a fixed order; none named: all.

    Raises:
        ValueError: One has no such name.
    """
    wanted = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
    wanted = [n for n in wanted if n]
    unknown = sorted(set(wanted) - set(ALL))
    if unknown:
        raise ValueError(f"no queue is named {', '.join(unknown)}; there are {', '.join(ALL)}")
    return tuple(q for q in ALL if not wanted or q in wanted)
