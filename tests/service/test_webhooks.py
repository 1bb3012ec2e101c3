"""Notices over HTTP: signed, repeated until they are taken, and led nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from contourcast.service.pacs.destinations import WebhookDestination
from contourcast.service.pacs.notices import Kind
from contourcast.service.pacs.outbox import GIVE_UP_AFTER_S, LONGEST_WAIT_S, DeliveryState
from contourcast.service.pacs.webhooks import EVENT, SIGNATURE, TOLERANCE_S, sign, verify
from support.data import REPOSITORY
from support.outgoing import START, House, make_results, outgoing
from support.stub import Asked, Says, Stub, stub

SECRET = "a-secret-of-tests"
NOW_S = int(START.timestamp())


@dataclass
class Receiver:
    """Answers as it is told to; by default it takes everything."""

    says: Says = field(default_factory=lambda: Says(status=204))

    def __call__(self, _: Asked) -> Says:
        return self.says


@pytest.fixture
def receiver() -> Iterator[tuple[Stub, Receiver]]:
    answers = Receiver()
    with stub(answers) as running:
        yield running, answers


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)


def hook(url: str, **more: Any) -> WebhookDestination:
    how = {"name": "hook", "url": f"{url}/hooks/contourcast", "secret_env": "HOOK_SECRET"}
    return WebhookDestination(**(how | {"timeout_s": 5} | more))


def tell(house: House, kind: Kind = Kind.REVISION, subject: str = "2.25.1", **body: Any) -> None:
    with house.records.index.write() as at:
        house.records.notices.tell(at, kind, subject, **body)


def test_a_notice_arrives_signed_with_its_number_and_nothing_of_a_patient(
    tmp_path: Path, receiver: tuple[Stub, Receiver]
) -> None:
    running, _ = receiver
    with outgoing(tmp_path, [hook(running.url)]) as house:
        house.finish(results=make_results(tmp_path / "made"))
        house.run_due()
        (asked,) = running.seen()
        assert (asked.method, asked.path) == ("POST", "/hooks/contourcast")
        assert asked.headers["content-type"] == "application/json"
        signature = asked.headers[SIGNATURE.lower()]
        assert verify(SECRET, signature, asked.body, now_s=NOW_S)
        said = json.loads(asked.body)
        assert said["event"] == asked.headers[EVENT.lower()] == house.one("hook").id
        assert (said["number"], said["kind"], said["subject"]) == (1, "propagation.done", "p1")
        assert said["body"]["verdict"] == "look"
        assert b"Contourcast^Phantom" not in asked.body
        assert b"CONTOURCAST-001" not in asked.body
        sent = house.one("hook")
        assert (sent.state, sent.confirm_at) == (DeliveryState.DELIVERED, None)
        house.clock.turn(LONGEST_WAIT_S)
        assert house.run_due() == 0


def test_it_is_sent_again_as_the_same_event_until_it_is_taken(
    tmp_path: Path, receiver: tuple[Stub, Receiver]
) -> None:
    running, answers = receiver
    answers.says = Says(status=500)
    with outgoing(tmp_path, [hook(running.url)]) as house:
        tell(house)
        house.run_due()
        house.clock.turn(LONGEST_WAIT_S)
        answers.says = Says(status=200, body=b"thanks")
        house.run_due()
        first, second = running.seen()
        assert first.body == second.body
        assert first.headers[SIGNATURE.lower()] != second.headers[SIGNATURE.lower()]
        assert verify(
            SECRET,
            second.headers[SIGNATURE.lower()],
            second.body,
            now_s=NOW_S + LONGEST_WAIT_S,
        )
        assert house.one("hook").state is DeliveryState.DELIVERED


def test_a_redirect_is_not_followed(tmp_path: Path, receiver: tuple[Stub, Receiver]) -> None:
    running, answers = receiver
    with stub(Receiver()) as inside:
        answers.says = Says(status=307, headers={"Location": f"{inside.url}/secrets"})
        with outgoing(tmp_path, [hook(running.url)]) as house:
            tell(house)
            house.run_due()
            assert house.one("hook").state is DeliveryState.WAITING
            assert "status 307" in house.one("hook").problem["cause"]
        assert inside.seen() == []


def test_a_dead_webhook_is_told_to_others_and_not_to_itself(
    tmp_path: Path, receiver: tuple[Stub, Receiver]
) -> None:
    running, _ = receiver
    dead = hook("http://127.0.0.1:1", name="dead")
    with outgoing(tmp_path, [dead, hook(running.url, kinds=("delivery.dead",))]) as house:
        tell(house)
        began = house.clock.moment
        while house.one("dead").state is DeliveryState.WAITING:
            house.run_due()
            house.clock.turn(LONGEST_WAIT_S)
            assert (house.clock.moment - began).total_seconds() < 2 * GIVE_UP_AFTER_S
        house.run_due()
        assert house.one("dead").state is DeliveryState.DEAD
        (asked,) = running.seen()
        said = json.loads(asked.body)
        assert said["body"]["destination"] == "dead"
        assert said["subject"] == house.one("dead").id


# ------------------------------------------------------------------------------------ signatures

BODY = b'{"kind":"revision"}'


def test_what_was_signed_lately_with_the_secret_is_verified() -> None:
    header = sign([SECRET], BODY, at_s=NOW_S)
    assert verify(SECRET, header, BODY, now_s=NOW_S + TOLERANCE_S)
    assert not verify(SECRET, header, BODY, now_s=NOW_S + TOLERANCE_S + 1)
    assert not verify(SECRET, header, BODY, now_s=NOW_S - TOLERANCE_S - 1)
    assert not verify("another", header, BODY, now_s=NOW_S)
    assert not verify(SECRET, header, BODY + b" ", now_s=NOW_S)
    later = header.replace(str(NOW_S), str(NOW_S + 1))
    assert not verify(SECRET, later, BODY, now_s=NOW_S), "the time is signed, too"


def test_while_a_secret_is_exchanged_both_count(
    tmp_path: Path, receiver: tuple[Stub, Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "old new")
    running, _ = receiver
    with outgoing(tmp_path, [hook(running.url)]) as house:
        tell(house)
        house.run_due()
    (asked,) = running.seen()
    header = asked.headers[SIGNATURE.lower()]
    for secret, counts in (("old", True), ("new", True), ("old new", False)):
        assert verify(secret, header, asked.body, now_s=NOW_S) is counts


@pytest.mark.parametrize(
    "header",
    [
        "",
        "t=,v1=",
        "v1=00",
        f"t={NOW_S}",
        f"t={NOW_S},v1=",
        f"t={NOW_S},t={NOW_S},v1=00",
        "t=²,v1=0",
    ],
)
def test_a_header_that_is_none_is_not_verified(header: str) -> None:
    assert not verify(SECRET, header, BODY, now_s=NOW_S)


def test_the_page_s_own_check_agrees_with_ours() -> None:
    """Receivers copy it, whatever they run."""
    page = (REPOSITORY / "docs" / "destinations.md").read_text()
    source = page.split("```python\n")[1].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(source, "destinations.md", "exec"), names)
    header = sign(["old", SECRET], BODY, at_s=NOW_S)
    for secret, body, now_s in (
        (SECRET, BODY, NOW_S),
        ("wrong", BODY, NOW_S),
        (SECRET, b"", NOW_S),
        (SECRET, BODY, NOW_S + 301),
    ):
        ours = verify(secret, header, body, now_s=now_s)
        assert names["is_genuine"](secret, header, body, now_s) is ours
