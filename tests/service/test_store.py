"""What every store promises, whatever it lies on."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contourcast.imaging.errors import InputError
from contourcast.service.problems import DamagedError, NotFoundError, SettingsError, StoreError
from contourcast.service.store import files
from contourcast.service.store.blobs import digest_in, fetch_all
from contourcast.service.store.files import FolderStore
from contourcast.service.store.open import open_store
from support.ceph import Ceph, ceph
from support.moto import moto
from support.stores import Place, bucket_place, folder_place, pacs_place

MIB = 1024 * 1024
KINDS = [
    "folder",
    "pacs",
    "moto",
    pytest.param("ceph", marks=pytest.mark.peer),
]


@pytest.fixture(scope="module")
def real_server() -> Iterator[Ceph]:
    with ceph() as server:
        yield server


@pytest.fixture(scope="module")
def mock_server() -> Iterator[Any]:
    with moto() as server:
        yield server


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return folder_place(tmp_path)
    if request.param == "pacs":
        return pacs_place(tmp_path)
    server = request.getfixturevalue("real_server" if request.param == "ceph" else "mock_server")
    return bucket_place(
        tmp_path,
        endpoint=server.endpoint,
        client=server.client(),
        user=server.access_key,
        password=server.secret_key,
    )


def named(content: bytes, folder: str = "instances/0123456789abcdef") -> str:
    """A key that holds the digest of what lies under it."""
    return f"{folder}/{hashlib.sha256(content).hexdigest()}.dcm"


def file_of(folder: Path, content: bytes) -> Path:
    path = folder / f"incoming-{len(list(folder.iterdir()))}"
    path.write_bytes(content)
    return path


def test_what_was_put_is_there_for_every_machine(place: Place, tmp_path: Path) -> None:
    key = named(b"some bytes")
    store = place.open()
    assert not store.has(key)
    store.put({key: file_of(tmp_path, b"some bytes"), "results/a/b": file_of(tmp_path, b"others")})
    assert store.has(key)
    assert store.get(key).read_bytes() == b"some bytes"
    assert store.get("results/a/b").read_bytes() == b"others"
    if "dicomweb" not in place.url:  # what was not released lies on the machine that took it in
        assert place.open(machine="two").get(key).read_bytes() == b"some bytes"


def test_a_second_file_under_a_key_is_left_where_it_is(place: Place, tmp_path: Path) -> None:
    store, second = place.open(), file_of(tmp_path, b"second")
    store.put({"results/a/RS.dcm": file_of(tmp_path, b"first")})
    store.put({"results/a/RS.dcm": second})
    assert store.get("results/a/RS.dcm").read_bytes() == b"first"
    assert second.read_bytes() == b"second"


def test_what_is_not_there_is_not_found(place: Place) -> None:
    store = place.open()
    with pytest.raises(NotFoundError, match="no such file"):
        store.get(named(b"never sent"))
    with pytest.raises(NotFoundError, match="no such file"):
        store.get("results/never/sent")


def test_what_was_deleted_is_gone_and_may_come_again(place: Place, tmp_path: Path) -> None:
    store, key = place.open(), named(b"bytes")
    store.put({key: file_of(tmp_path, b"bytes")})
    store.delete(key)
    store.delete(key)
    store.delete("results/never/there")
    assert not store.has(key)
    assert list(store.list("")) == []
    with pytest.raises(NotFoundError):
        store.get(key)
    store.put({key: file_of(tmp_path, b"bytes")})
    assert store.get(key).read_bytes() == b"bytes"


def test_an_empty_file_is_a_file(place: Place, tmp_path: Path) -> None:
    store = place.open()
    store.put({"results/a/empty": file_of(tmp_path, b"")})
    assert store.has("results/a/empty")
    assert store.get("results/a/empty").read_bytes() == b""


def test_a_list_has_every_key_that_begins_so_in_order(place: Place, tmp_path: Path) -> None:
    keys = ["a", "b.c", "b/c", "b/c.d", "b-c", "bb/a/a", "bb/a-", "derived/x", "derived/x.y"]
    store = place.open()
    store.put({key: file_of(tmp_path, key.encode()) for key in keys if key not in ("b/c.d",)})
    here = sorted(set(keys) - {"b/c.d"})
    assert list(store.list("")) == here
    for prefix in ("b", "b/", "bb/a", "derived/x", "derived/x.", "nothing", "a/"):
        assert list(store.list(prefix)) == [key for key in here if key.startswith(prefix)]


def test_a_store_knows_sizes_and_ages(place: Place, tmp_path: Path) -> None:
    store = place.open()
    before = datetime.now(UTC) - timedelta(seconds=2)  # servers round to seconds
    store.put({"a/one": file_of(tmp_path, b"1"), "a/three": file_of(tmp_path, b"123")})
    after = datetime.now(UTC) + timedelta(seconds=2)
    found = list(store.details("a/"))
    assert [(one.key, one.size_bytes) for one in found] == [("a/one", 1), ("a/three", 3)]
    assert all(before <= one.put_at <= after for one in found)


def test_a_big_file_comes_back_whole(place: Place, tmp_path: Path) -> None:
    content = os.urandom(MIB) * 40 + b"the end"
    key = named(content)
    place.open().put({key: file_of(tmp_path, content)})
    machine = "one" if "dicomweb" in place.url else "two"
    assert place.open(machine=machine).get(key).read_bytes() == content


@pytest.mark.parametrize(
    "key",
    [
        "", "/", "/etc/passwd", "../up", "a/../b", "a//b", "a/", "a\\b", "a b", ".hidden", "a/.b",
        "a\n", "ä", "a\0b", "x" * 201, "/".join(["x" * 100] * 6), "٣",
    ],
)  # fmt: skip
def test_odd_keys_are_refused(place: Place, tmp_path: Path, key: str) -> None:
    store, file = place.open(), file_of(tmp_path, b"bytes")
    for use in (store.get, store.has, store.delete, lambda key: store.put({key: file})):
        with pytest.raises(InputError, match="no key of the store"):
            use(key)
    assert file.read_bytes() == b"bytes"


@pytest.mark.parametrize("prefix", ["../", "/", "a//", ".", "a/../", "ä"])
def test_odd_prefixes_are_refused(place: Place, prefix: str) -> None:
    with pytest.raises(InputError, match="begins so"):
        list(place.open().list(prefix))


def test_a_folder_that_another_one_made_and_removed_in_between_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, make = FolderStore(tmp_path / "store"), os.mkdir
    met: list[Any] = []

    def mkdir(path: Any, *more: Any) -> None:
        if "instances" in str(path) and not met:
            met.append(path)
            raise FileExistsError(path)
        make(path, *more)

    monkeypatch.setattr(os, "mkdir", mkdir)
    key = named(b"content", folder="instances/0")
    store.put({key: file_of(tmp_path, b"content")})
    assert len(met) == 1
    assert store.get(key).read_bytes() == b"content"


def test_many_threads_put_get_and_delete_the_same_keys(place: Place, tmp_path: Path) -> None:
    contents = [b"content %d" % n * 1000 for n in range(4)]
    store = place.open()

    def work(number: int) -> int:
        content, seen = contents[number % len(contents)], 0
        key = named(content, folder=f"instances/{number % 2:016x}")
        folder = tmp_path / f"thread-{number}"
        folder.mkdir()
        for turn in range(12):
            store.put({key: file_of(folder, content)})
            with suppress(NotFoundError, FileNotFoundError):  # another thread deleted it just then
                seen += store.get(key).read_bytes() == content
            if turn % 4 == number % 4:
                store.delete(key)
            for listed in store.list("instances/"):
                assert digest_in(listed) in {hashlib.sha256(c).hexdigest() for c in contents}
        return seen

    with ThreadPoolExecutor(8) as pool:
        assert all(seen > 0 for seen in pool.map(work, range(8)))


def test_many_are_fetched_at_once_in_the_order_asked_for(place: Place, tmp_path: Path) -> None:
    contents = [b"slice %d" % n for n in range(30)]
    store = place.open()
    store.put({named(c): file_of(tmp_path, c) for c in contents})
    assert [p.read_bytes() for p in fetch_all(store, map(named, contents))] == contents
    with pytest.raises(NotFoundError):
        fetch_all(store, [named(contents[0]), named(b"never sent")])


def test_damage_is_found_by_the_digest_in_the_key_and_can_be_mended(
    place: Place, tmp_path: Path
) -> None:
    key = named(b"sound bytes")
    place.open().put({key: file_of(tmp_path, b"sound bytes")})
    place.overwrite(key, b"sound bytfs")
    machine = "one" if "dicomweb" in place.url else "two"  # whose cache does not know it
    store = place.open(machine=machine)
    with pytest.raises(DamagedError, match="set aside"):
        store.get(key)
    assert not store.has(key)
    assert list(store.list("")) == []
    store.put({key: file_of(tmp_path, b"sound bytes")})
    assert store.get(key).read_bytes() == b"sound bytes"


@pytest.mark.parametrize("fault", [errno.EIO, errno.EACCES])
def test_one_file_that_cannot_be_read_is_damaged_and_can_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    store, key = FolderStore(tmp_path / "store"), named(b"sound bytes")
    store.put({key: file_of(tmp_path, b"sound bytes")})

    def unreadable(path: Path) -> str:
        raise OSError(fault, "of this file")

    with monkeypatch.context() as patch:
        patch.setattr(files, "digest_of", unreadable)
        with pytest.raises(DamagedError):
            store.get(key)
    assert not store.has(key)
    store.put({key: file_of(tmp_path, b"sound bytes")})
    assert store.get(key).read_bytes() == b"sound bytes"


def test_a_put_that_is_killed_leaves_nothing_or_all_of_it(place: Place, tmp_path: Path) -> None:
    content = os.urandom(MIB) * 96
    key, store = named(content), place.open()
    with tempfile.TemporaryDirectory(dir=other_disk()) as elsewhere:  # so that it is copied
        for _ in range(20):
            source = Path(elsewhere) / "source"
            source.write_bytes(content)
            child = place.put_in_child(key, source)
            while child.poll() is None and not place.writing():
                pass
            child.kill()
            child.wait()
            if not place.open(machine="child").has(key):
                break
            assert place.open(machine="child").get(key).read_bytes() == content
            place.open(machine="child").delete(key)
        else:
            pytest.fail("it was never caught in the middle")
        assert list(store.list("")) == []
        place.open(machine="child").put({key: source})
        assert place.open(machine="child").get(key).read_bytes() == content


def other_disk() -> Path:
    """A folder on another disk than the temporary one, where renaming across does not work."""
    for folder in (Path("/dev/shm"), Path.cwd(), Path.home()):
        if folder.is_dir() and folder.stat().st_dev != Path(tempfile.gettempdir()).stat().st_dev:
            return folder
    pytest.skip("this machine has one disk")


# Folders alone


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sets(
        st.lists(st.text("ab.-_0Z", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join),
        max_size=6,
    ),
    st.text("ab.-/", max_size=4),
)
def test_a_folder_is_listed_as_a_sorted_set(tmp_path: Path, wanted: set[str], prefix: str) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        store, here = FolderStore(Path(folder) / "store"), set()
        for key in sorted(wanted):
            source = Path(folder) / "source"
            source.write_bytes(b"x")
            try:
                store.put({key: source})
            except InputError:  # odd, or below a key that is a file
                continue
            here.add(key)
        try:
            listed = list(store.list(prefix))
        except InputError:
            return
        assert listed == sorted(key for key in here if key.startswith(prefix))


def test_a_key_below_another_key_is_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put({"a/b": file_of(tmp_path, b"x")})
    for key in ("a/b/c", "a"):
        with pytest.raises(InputError, match="stands in the way"):
            store.put({key: file_of(tmp_path, b"y")})
        assert not store.has(key)
        store.delete(key)
    assert store.get("a/b").read_bytes() == b"x"


def test_a_folder_that_is_no_longer_mounted_is_no_empty_store(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put({"a/b": file_of(tmp_path, b"x")})
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    (tmp_path / "store").mkdir()
    for use in (store.get, store.has, store.delete, lambda key: list(store.list(key))):
        with pytest.raises(StoreError, match="cannot be reached"):
            use("a/b")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((StoreError, InputError)):
        FolderStore(tmp_path / "file" / "store")


def test_old_drafts_are_cleared_at_the_start_and_young_ones_stay(tmp_path: Path) -> None:
    drafts = FolderStore(tmp_path).folder / ".drafts"
    for name, age_s in (("old", 25 * 3600), ("young", 3600)):
        (drafts / name).write_bytes(b"half")
        at = (drafts / name).stat().st_mtime - age_s
        os.utime(drafts / name, (at, at))
    FolderStore(tmp_path)
    assert [one.name for one in drafts.iterdir()] == ["young"]


def test_from_another_disk_a_file_is_copied(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=other_disk()) as elsewhere:
        source = Path(elsewhere) / "source"
        source.write_bytes(b"bytes")
        store = FolderStore(tmp_path)
        store.put({"a/b": source})
        assert store.get("a/b").read_bytes() == b"bytes"
        assert not source.exists()
        assert list((tmp_path / ".drafts").iterdir()) == []


def test_a_source_that_is_gone_is_told(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    with pytest.raises(StoreError):
        store.put({"a/b": tmp_path / "never"})
    assert not store.has("a/b")


def test_folders_that_are_empty_go(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put({"a/b/c": file_of(tmp_path, b"x"), "a/d": file_of(tmp_path, b"y")})
    store.delete("a/b/c")
    assert not (tmp_path / "store" / "a" / "b").exists()
    store.delete("a/d")
    assert not (tmp_path / "store" / "a").exists()
    assert (tmp_path / "store").is_dir()


# One setting


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("", "no kind of store"),
        ("/data/store", "no kind of store"),
        ("gopher://host", "'gopher' is no kind"),
        ("file://server/share", "from the root"),
        ("file:store", "from the root"),
        ("file:///a?b=c", "from the root"),
        ("s3:///prefix", "bucket's name"),
        ("s3://bucket/../up?endpoint=https://h", "bucket's name"),
        ("s3://bucket?endpoint=https://h&secret=x", "no option but"),
        ("s3://bucket?endpoint=ftp://h", "no https:// address"),
        ("s3://bucket?endpoint=http://minio:9000", "without TLS"),
        ("s3://key:secret@bucket?endpoint=https://h", "holds a password"),
        ("dicomweb+http://pacs/dicom-web", "without TLS"),
        ("dicomweb+https://user:word@pacs/dicom-web", "holds a password"),
        ("dicomweb+https://pacs/dicom-web?x=y", "no option but"),
        ("dicomweb+https:///dicom-web", "no https:// address"),
        ("s3://bucket?endpoint=https://h:port", "cannot be read"),
        ("s3://[half", "cannot be read"),
    ],
)
def test_an_address_of_no_store_is_refused(tmp_path: Path, url: str, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault) as told:
        open_store(url, folder=tmp_path)
    assert told.value.remedy


def test_a_network_that_is_trusted_needs_no_tls(tmp_path: Path) -> None:
    open_store("s3://bucket?endpoint=http://minio:9000&insecure=yes", folder=tmp_path)
    open_store("dicomweb+http://pacs/dicom-web?insecure=yes", folder=tmp_path)
    open_store("s3://bucket?endpoint=http://[::1]:9000", folder=tmp_path)


def test_a_folder_with_blanks_in_its_name(tmp_path: Path) -> None:
    store = open_store((tmp_path / "a b").as_uri(), folder=tmp_path)
    assert isinstance(store, FolderStore)
    assert store.folder == tmp_path / "a b"


def test_digests_are_found_in_keys_that_hold_one() -> None:
    digest = hashlib.sha256(b"").hexdigest()
    assert digest_in(f"instances/x/{digest}.dcm") == digest
    assert digest_in(digest) == digest
    for key in (f"a/{digest[1:]}.dcm", f"a/{digest}0.dcm", f"{digest}/a", f"a/{digest}-note.json"):
        assert digest_in(key) is None
