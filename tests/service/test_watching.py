"""Looking into an archive when it gave a hint, whatever any clock says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self

import pytest

from contourcast.service.index import database
from contourcast.service.pacs.destinations import OrthancDestination
from contourcast.service.pacs.watching import hint, watching
from contourcast.service.settings import ServiceSettings
from support.records import looking_into
from support.stub import Asked, Says, Stub, stub

HOUR = timedelta(hours=1)


def empty(asked: Asked) -> Says:
    """An Orthanc without anything, which keeps no connection."""
    page = {"Changes": [], "Done": True, "Last": 0}
    body = json.dumps(page if asked.path.startswith("/changes") else []).encode()
    return Says(body=body, headers={"Connection": "close"})


@pytest.fixture
def archive() -> Iterator[Stub]:
    with stub(empty) as server:
        yield server


@pytest.mark.parametrize("by", [-HOUR, HOUR], ids=["an hour late", "an hour early"])
def test_a_hint_is_followed_though_it_came_from_a_machine_with_another_clock(
    archive: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: timedelta
) -> None:
    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp((datetime.now(tz) + by).timestamp(), tz)

    destination = OrthancDestination(kind="orthanc", name="pacs", url=archive.url, watch=True)
    settings = ServiceSettings(data_folder=tmp_path, destinations=(destination,))
    with looking_into(tmp_path) as records:
        (duty,) = watching(settings, records)
        duty.run()
        assert archive.seen(), "at first it is looked at"
        duty.run()
        assert not archive.seen(), "then every 20 s"
        with monkeypatch.context() as patch:
            patch.setattr(database, "datetime", Wrong)
            hint(records.index, "pacs")
        duty.run()
        assert archive.seen(), "or when it gave a hint"
        duty.run()
        assert not archive.seen(), "once for each"
        hint(records.index, "pacs")
        duty.run()
        assert archive.seen()
