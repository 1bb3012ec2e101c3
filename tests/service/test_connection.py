"""A connection that breaks off: what is asked again, and what never is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from contourcast.service.pacs.connection import Connection, Peer
from contourcast.service.problems import PeerUnreachableError
from support.stub import Asked, Says, stub


def dropping(*which: int) -> Callable[[Asked], Says]:
    """Hangs up on these requests instead of an answer, counted from 1."""
    came: list[Asked] = []

    def answer(asked: Asked) -> Says:
        came.append(asked)
        if len(came) in which:
            raise ConnectionAbortedError
        return Says(body=b"here")

    return answer


def test_a_kept_connection_that_was_closed_costs_a_reader_nothing() -> None:
    with (
        stub(dropping(2)) as server,
        Connection(Peer(name="pacs", url=server.url)) as to,
    ):
        assert to.request("GET", "first") == (200, b"here")
        assert to.request("GET", "second", params={"a": 1}) == (200, b"here")
        assert [each.path for each in server.seen()] == ["/first", "/second?a=1", "/second?a=1"]


def test_whoever_hangs_up_twice_is_told_as_not_answering() -> None:
    with (
        stub(dropping(1, 2, 3)) as server,
        Connection(Peer(name="pacs", url=server.url)) as to,
    ):
        with pytest.raises(PeerUnreachableError):
            to.request("GET", "first")
        assert len(server.seen()) == 2


def test_what_may_have_done_something_is_not_sent_again() -> None:
    with (
        stub(dropping(2)) as server,
        Connection(Peer(name="pacs", url=server.url)) as to,
    ):
        to.request("GET", "first")
        with pytest.raises(PeerUnreachableError):
            to.request("POST", "store", content=b"a file")
        assert [each.method for each in server.seen()] == ["GET", "POST"]


def test_an_answer_that_stops_in_the_middle_is_not_asked_for_again() -> None:
    with (
        stub(lambda _: Says(body=b"half", length=8)) as server,
        Connection(Peer(name="pacs", url=server.url)) as to,
    ):
        with pytest.raises(PeerUnreachableError):
            to.request("GET", "first")
        assert len(server.seen()) == 1
