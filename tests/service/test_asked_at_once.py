"""Two people, or two front doors, ask for the same at the same moment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from contourcast.service.index.database import Index
from contourcast.service.jobs.propagations import Propagations
from support.postgres import postgres


@pytest.mark.peer
def test_the_same_asked_for_at_the_same_moment_is_one_propagation() -> None:
    order = {"cbct": {"series": "2.25.77", "files": []}, "methods": ["rigid"]}
    together = Barrier(4)
    with postgres() as cluster:
        index = Index(cluster.database("at_once"))
        asked = Propagations(index)

        def ask(name: str) -> bool:
            together.wait()
            return asked.open(name, order)[1]

        with ThreadPoolExecutor(4) as people:
            for name in map(str, range(25)):
                assert sorted(people.map(ask, [name] * 4)) == [False, False, False, True]
        assert sorted(job.number for job in asked.jobs()) == list(range(1, 26))
        index.close()
