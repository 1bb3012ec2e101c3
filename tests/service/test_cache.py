"""Copies on this machine: within the limit, never a damaged one, brought once."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contourcast.service.problems import NotFoundError
from contourcast.service.store.cache import LruCache


class Clock:
    """A clock that goes on when it is told to."""

    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def writes(content: bytes) -> Callable[[Path], None]:
    def bring(draft: Path) -> None:
        draft.write_bytes(content)

    return bring


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_copy_is_brought_once_and_then_found(tmp_path: Path) -> None:
    cache, brought = LruCache(tmp_path, limit_bytes=1000), []

    def bring(draft: Path) -> None:
        brought.append(draft)
        draft.write_bytes(b"bytes")

    assert cache.get("a/b") is None
    assert cache.fill("a/b", bring).read_bytes() == b"bytes"
    assert cache.fill("a/b", bring).read_bytes() == b"bytes"
    found = cache.get("a/b")
    assert found is not None
    assert found.name == hashlib.sha256(b"bytes").hexdigest()
    assert len(brought) == 1
    assert LruCache(tmp_path, limit_bytes=1000).get("a/b") == found


def test_the_limit_is_kept_and_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    clock = Clock()
    cache = LruCache(tmp_path, limit_bytes=1000, clock=clock)
    for n in range(8):
        cache.fill(f"k{n}", writes(bytes([n]) * 100))
        clock.now_s += 100
    assert cache.get("k0") is not None  # used again, so it stays
    clock.now_s += 100
    for n in range(8, 11):
        cache.fill(f"k{n}", writes(bytes([n]) * 100))
        clock.now_s += 100
    assert size_of(tmp_path) <= 1000
    here = {n for n in range(11) if cache.get(f"k{n}") is not None}
    assert here == set(range(11)) - {1, 2}


def test_what_was_just_handed_out_stays_even_beyond_the_limit(tmp_path: Path) -> None:
    clock = Clock()
    cache = LruCache(tmp_path, limit_bytes=250, clock=clock)
    paths = [cache.fill(f"k{n}", writes(bytes([n]) * 100)) for n in range(5)]
    assert all(path.exists() for path in paths)
    clock.now_s += 61
    cache.fill("last", writes(b"x" * 100))
    assert size_of(tmp_path) <= 250
    assert cache.get("last") is not None


def test_a_smaller_limit_is_kept_from_the_start(tmp_path: Path) -> None:
    clock = Clock()
    cache = LruCache(tmp_path, limit_bytes=1000, clock=clock)
    for n in range(8):
        cache.fill(f"k{n}", writes(bytes([n]) * 100))
    clock.now_s += 61
    LruCache(tmp_path, limit_bytes=300, clock=clock)
    assert size_of(tmp_path) <= 300


def test_a_damaged_copy_is_thrown_away(tmp_path: Path) -> None:
    cache = LruCache(tmp_path, limit_bytes=1000)
    copy = cache.fill("a", writes(b"sound"))
    copy.write_bytes(b"soumd")
    assert cache.get("a") is None
    assert cache.fill("a", writes(b"sound")).read_bytes() == b"sound"


def test_what_could_not_be_brought_leaves_nothing(tmp_path: Path) -> None:
    cache = LruCache(tmp_path, limit_bytes=1000)

    def fails(draft: Path) -> None:
        draft.write_bytes(b"half")
        raise NotFoundError("gone")

    with pytest.raises(NotFoundError):
        cache.fill("a", fails)
    assert size_of(tmp_path) == 0
    assert cache.fill("a", writes(b"whole")).read_bytes() == b"whole"


def test_many_threads_that_want_one_key_bring_it_once(tmp_path: Path) -> None:
    cache, everybody, brought = LruCache(tmp_path, limit_bytes=1000), threading.Barrier(8), []

    def bring(draft: Path) -> None:
        brought.append(draft)
        draft.write_bytes(b"bytes")

    def want(_: int) -> bytes:
        everybody.wait()
        return cache.fill("a", bring).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(want, range(8))) == [b"bytes"] * 8
    assert len(brought) == 1


def test_two_that_share_a_folder_keep_one_limit(tmp_path: Path) -> None:
    clock = Clock()
    caches = [LruCache(tmp_path, limit_bytes=1000, clock=clock) for _ in range(2)]

    def fill(number: int) -> None:
        clock.now_s += 61
        caches[number % 2].fill(f"k{number}", writes(bytes([number]) * 100))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, range(60)))
    clock.now_s += 61
    for cache in caches:
        cache.fill("last", writes(b"x" * 100))
        cache.fill("one more", writes(b"y" * 100))
    assert size_of(tmp_path) <= 1900  # each knows of its own since it last looked


def test_a_file_that_was_sent_becomes_the_copy(tmp_path: Path) -> None:
    cache = LruCache(tmp_path / "cache", limit_bytes=1000)
    (tmp_path / "sent").write_bytes(b"bytes")
    cache.adopt("a", tmp_path / "sent")
    found = cache.get("a")
    assert found is not None
    assert found.read_bytes() == b"bytes"
    assert not (tmp_path / "sent").exists()
    cache.discard("a")
    cache.discard("a")
    assert cache.get("a") is None


def test_old_drafts_are_cleared_at_the_start(tmp_path: Path) -> None:
    for name, age_s in ((".draft-old", 25 * 3600), (".draft-young", 3600)):
        path = tmp_path / name
        path.write_bytes(b"half")
        at = path.stat().st_mtime - age_s
        os.utime(path, (at, at))
    LruCache(tmp_path, limit_bytes=1000)
    assert [one.name for one in tmp_path.iterdir()] == [".draft-young"]
