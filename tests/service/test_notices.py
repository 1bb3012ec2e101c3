"""What somebody should know, in the transaction that brings it about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contourcast.service.intake.states import State
from contourcast.service.jobs.propagations import Origin
from contourcast.service.pacs.destinations import WebhookDestination
from contourcast.service.pacs.notices import Kind
from contourcast.service.pacs.outbox import DeliveryState
from contourcast.service.problems import NotFoundError
from support.outgoing import ORDER, House, make_results, outgoing

HOOK = WebhookDestination(name="hook", url="http://127.0.0.1:1/", secret_env="HOOK_SECRET")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("made") / "results")


def tell(house: House, kind: Kind, subject: str, **body: Any) -> int:
    with house.records.index.write() as at:
        return house.records.notices.tell(at, kind, subject, **body)


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        ("accept", "propagation.done"),
        ("look", "propagation.done"),
        ("reject", "propagation.rejected"),
    ],
)
def test_the_end_of_a_propagation_is_told_once(
    tmp_path: Path, results: Path, verdict: str, kind: str
) -> None:
    with outgoing(tmp_path, []) as house:
        job, files = house.begin(results=results, verdict=verdict)
        house.end(job, files)
        house.end(job, files)
        (told,) = house.records.notices.list()
        assert (told.kind, told.subject, told.number) == (kind, "p1", 1)
        assert told.body == {
            "state": "awaiting_review",
            "verdict": verdict,
            "cbct": "2.25.77",
            "problem": "",
        }


def test_failing_and_asking_are_told_working_and_cancelling_are_not(tmp_path: Path) -> None:
    with outgoing(tmp_path, []) as house:
        propagations = house.records.propagations
        for name in ("p1", "p2", "p3"):
            propagations.open(name, ORDER, Origin())
        propagations.tell("p1", State.REGISTERING, "at it", 0.1)
        propagations.end("p1", problem={"type": "/problems/input", "detail": "ZZQQ-LEAK"})
        propagations.cancel("p2", by="somebody")
        with house.records.index.write() as at:
            propagations.move(at, "p3", State.NEEDS_PERSON, "which plan?")
        told = house.records.notices.list()
        assert [(one.kind.value, one.subject) for one in told] == [
            ("propagation.failed", "p1"),
            ("needs_person", "p3"),
        ]
        assert told[0].body["problem"] == "/problems/input"
        assert "ZZQQ" not in str(told)


def test_a_reader_goes_on_from_the_number_that_it_knows(tmp_path: Path) -> None:
    with outgoing(tmp_path, []) as house:
        numbers = [tell(house, Kind.REVISION, f"2.25.{n}", slices=n) for n in range(5)]
        assert numbers == [1, 2, 3, 4, 5]
        notices = house.records.notices
        assert [one.number for one in notices.list(after=2, limit=2)] == [3, 4]
        assert notices.list(after=5) == []
        assert notices.get(4).body == {"slices": 3}
        for number in (0, 6):
            with pytest.raises(NotFoundError):
                notices.get(number)


def test_what_did_not_happen_is_not_told(tmp_path: Path) -> None:
    with outgoing(tmp_path, [HOOK]) as house:

        def fails_after_telling() -> None:
            with house.records.index.write() as at:
                house.records.notices.tell(at, Kind.CONFLICT, "2.25.1")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fails_after_telling()
        assert house.records.notices.list() == []
        assert house.deliveries.list() == []


def test_a_webhook_gets_the_kinds_that_it_wants_and_nothing_of_itself(tmp_path: Path) -> None:
    some = HOOK.model_copy(update={"name": "some", "kinds": ("conflict",)})
    with outgoing(tmp_path, [HOOK, some]) as house:
        tell(house, Kind.REVISION, "2.25.1")
        tell(house, Kind.CONFLICT, "2.25.2")
        with house.records.index.write() as at:
            house.records.notices.tell(at, Kind.DELIVERY_DEAD, "d", not_to="hook")
        wanted = [(one.destination, one.objects) for one in house.deliveries.list()[::-1]]
        assert wanted == [
            ("hook", [{"notice": 1}]),
            ("hook", [{"notice": 2}]),
            ("some", [{"notice": 2}]),
        ]
        assert {one.state for one in house.deliveries.list()} == {DeliveryState.WAITING}


def test_no_propagation_waits_for_a_webhook(tmp_path: Path, results: Path) -> None:
    with outgoing(tmp_path, [HOOK]) as house:
        house.finish(results=results)
        assert house.state() is State.AWAITING_REVIEW
        assert len(house.deliveries.list(destination="hook")) == 1
