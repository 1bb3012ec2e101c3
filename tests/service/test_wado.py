"""Images that lie in the PACS alone: given up once it gave them back, compared each time."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import RLELossless

from contourcast.imaging.dicom.instance import read_header
from contourcast.service.archive import instance_key
from contourcast.service.pacs.connection import Peer
from contourcast.service.pacs.dicomweb import DicomWeb
from contourcast.service.problems import (
    DamagedError,
    NotFoundError,
    PeerUnreachableError,
    StoreError,
)
from contourcast.service.store.cache import LruCache
from contourcast.service.store.files import FolderStore
from contourcast.service.store.wado import PacsStore
from support.dicom_factory import CtFiles, disc, make_ct_series, make_structure_set
from support.orthanc import PASSWORD, USER, RealOrthanc, orthanc
from support.stub import Says, stub


class FolderPacs:
    """A PACS that is a folder; what is in it may be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.away = False
        folder.mkdir()

    def take(self, path: Path) -> Path:
        return Path(shutil.copy(path, self.folder / read_header(path).sop_instance_uid))

    def fetch(self, study: str, series: str, instance: str, into: Path) -> Path:
        self.asked.append(instance)
        if self.away or not (self.folder / instance).exists():
            raise PeerUnreachableError("'pacs' does not answer")
        shutil.copy(self.folder / instance, into)
        return into


@pytest.fixture
def ct(tmp_path: Path) -> CtFiles:
    return make_ct_series(tmp_path / "ct")


@pytest.fixture
def pacs(tmp_path: Path, ct: CtFiles) -> FolderPacs:
    pacs = FolderPacs(tmp_path / "pacs")
    for path in ct.paths:
        pacs.take(path)
    return pacs


@pytest.fixture
def store(tmp_path: Path, pacs: FolderPacs) -> PacsStore:
    return PacsStore(
        FolderStore(tmp_path / "own"), pacs, cache=LruCache(tmp_path / "cache", limit_bytes=10**9)
    )


def put(store: PacsStore, path: Path, folder: Path) -> str:
    """Puts a copy of a file; its key."""
    copy = Path(shutil.copy(path, folder / "copy"))
    header = read_header(copy)
    key = instance_key(header.series_instance_uid, hashlib.sha256(copy.read_bytes()).hexdigest())
    store.put({key: copy})
    return key


def test_what_is_new_lies_here_and_the_pacs_is_not_asked(
    store: PacsStore, pacs: FolderPacs, ct: CtFiles, tmp_path: Path
) -> None:
    key = put(store, ct.paths[0], tmp_path)
    assert store.get(key).read_bytes() == ct.paths[0].read_bytes()
    assert pacs.asked == []


def test_a_released_image_comes_from_the_pacs_once_and_then_from_the_cache(
    store: PacsStore, pacs: FolderPacs, ct: CtFiles, tmp_path: Path
) -> None:
    key, other = (put(store, path, tmp_path) for path in ct.paths[:2])
    assert store.release(key)
    assert not store.own.has(key)
    assert store.has(key)
    assert list(store.list("instances/")) == sorted([key, other]) == list(store.list(""))
    assert list(store.list("at-pacs/")) == []
    assert list(store.list("results/")) == []
    pacs.asked.clear()
    assert store.get(key).read_bytes() == ct.paths[0].read_bytes()
    assert store.get(key).read_bytes() == ct.paths[0].read_bytes()
    assert pacs.asked == [ct.sop_uids[0]]
    assert store.release(key)  # again: it is done
    store.delete(key)
    assert not store.has(key)
    assert list(store.list("")) == [other]
    assert (pacs.folder / ct.sop_uids[0]).exists()


def test_what_the_pacs_does_not_hold_stays_here(
    store: PacsStore, pacs: FolderPacs, ct: CtFiles, tmp_path: Path
) -> None:
    key = put(store, ct.paths[0], tmp_path)
    (pacs.folder / ct.sop_uids[0]).unlink()
    with pytest.raises(StoreError, match="does not give out"):
        store.release(key)
    assert store.own.has(key)


def test_what_the_pacs_holds_otherwise_stays_here(
    store: PacsStore, pacs: FolderPacs, ct: CtFiles, tmp_path: Path
) -> None:
    key = put(store, ct.paths[0], tmp_path)
    change(pacs.folder / ct.sop_uids[0], PixelData=b"\1" * 160)
    assert not store.release(key)
    assert store.own.has(key)


def test_a_corrected_name_and_another_coding_are_the_same_image(
    store: PacsStore, pacs: FolderPacs, ct: CtFiles, tmp_path: Path
) -> None:
    key = put(store, ct.paths[0], tmp_path)
    there = pacs.folder / ct.sop_uids[0]
    change(there, PatientName="Corrected^Name", AccessionNumber="7")
    dataset = pydicom.dcmread(there)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(there)
    assert store.release(key)
    assert read_header(store.get(key)).patient.name == "Corrected^Name"


@pytest.mark.parametrize(
    "changes",
    [
        {"PixelData": b"\1" * 160},
        {"ImagePositionPatient": [0, 0, 0]},
        {"RescaleIntercept": "-1024"},
        {"FrameOfReferenceUID": "1.2.3"},
        {"PixelSpacing": [1, 1]},
    ],
)
def test_what_the_pacs_changed_after_the_release_is_never_handed_out(
    store: PacsStore, pacs: FolderPacs, ct: CtFiles, tmp_path: Path, changes: dict[str, object]
) -> None:
    key = put(store, ct.paths[0], tmp_path)
    assert store.release(key)
    change(pacs.folder / ct.sop_uids[0], **changes)
    with pytest.raises(DamagedError, match="something else"):
        store.get(key)
    assert not list((tmp_path / "cache").glob("??/*/*"))


def test_what_is_no_dicom_is_never_handed_out(
    store: PacsStore, pacs: FolderPacs, ct: CtFiles, tmp_path: Path
) -> None:
    key = put(store, ct.paths[0], tmp_path)
    assert store.release(key)
    (pacs.folder / ct.sop_uids[0]).write_bytes(b"an error page")
    with pytest.raises(DamagedError):
        store.get(key)


def test_a_pacs_that_is_away_is_told(
    store: PacsStore, pacs: FolderPacs, ct: CtFiles, tmp_path: Path
) -> None:
    key = put(store, ct.paths[0], tmp_path)
    assert store.release(key)
    pacs.away = True
    with pytest.raises(StoreError, match="does not give out"):
        store.get(key)
    pacs.away = False
    assert store.get(key).exists()


@pytest.mark.parametrize("status", [404, 410, 503])
def test_one_image_that_the_pacs_lost_is_no_pacs_that_is_away(
    store: PacsStore, ct: CtFiles, tmp_path: Path, status: int
) -> None:
    key, other = (put(store, path, tmp_path) for path in ct.paths[:2])
    assert store.release(key)
    with (
        stub(lambda asked: Says(status=status)) as server,
        DicomWeb(Peer(name="pacs", url=server.url, user=USER, password=PASSWORD)) as web,
    ):
        cut_off = PacsStore(store.own, web, cache=LruCache(tmp_path / "c", limit_bytes=10**9))
        fault = StoreError if status == 503 else NotFoundError
        with pytest.raises(fault, match="the PACS"):
            cut_off.get(key)
        if fault is NotFoundError:
            assert not cut_off.release(other)
        assert cut_off.own.has(other)
    assert store.get(key).exists()


def test_only_images_are_released(store: PacsStore, ct: CtFiles, tmp_path: Path) -> None:
    structures = make_structure_set(
        tmp_path / "rs.dcm", {"GTV": [disc((0, -10, -24), 4)]}, reference=ct
    )
    key = put(store, structures, tmp_path)
    assert not store.release(key)
    assert not store.release("results/a/b")
    assert store.own.has(key)
    with pytest.raises(NotFoundError):
        store.release(instance_key("1.2.3", "0" * 64))


def change(path: Path, **values: object) -> None:
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[RealOrthanc]:
    with orthanc(tmp_path / "orthanc") as running:
        yield running


@pytest.mark.peer
def test_with_a_real_archive(archive: RealOrthanc, ct: CtFiles, tmp_path: Path) -> None:
    with DicomWeb(
        Peer(name="pacs", url=f"{archive.url}/dicom-web", user=USER, password=PASSWORD)
    ) as web:
        store = PacsStore(
            FolderStore(tmp_path / "own"), web, cache=LruCache(tmp_path / "c", limit_bytes=10**9)
        )
        keys = [put(store, path, tmp_path) for path in ct.paths]
        assert not store.release(keys[0])
        archive.upload(ct.paths)
        assert all(store.release(key) for key in keys)
        assert not list(store.own.list("instances/"))
        for key, path in zip(keys, ct.paths, strict=True):
            theirs, ours = pydicom.dcmread(store.get(key)), pydicom.dcmread(path)
            assert theirs.pixel_array.tolist() == ours.pixel_array.tolist()
        archive.kill()
        assert all(store.get(key).exists() for key in keys)
        store.cache.discard(keys[0])
        with pytest.raises(StoreError):
            store.get(keys[0])
        archive.start()
        assert store.get(keys[0]).exists()
