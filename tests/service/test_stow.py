"""STOW-RS and multipart/related: what is taken, what is refused, and nothing that is left over."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, SecondaryCaptureImageStorage

from contourcast.service.api.app import create_app
from contourcast.service.index.tables import review
from contourcast.service.settings import ServiceSettings
from support.course import CourseFiles
from support.dicom_factory import make_ct_series
from support.http import served
from support.records import looking_into, stored_files
from support.rows import add
from support.server import Finished

KIND = 'multipart/related; type="application/dicom"; boundary=sep'
DICOM = b"Content-Type: application/dicom\r\n\r\n"


@pytest.fixture
def http(folder: Path) -> Iterator[Client]:
    limits = ServiceSettings(
        data_folder=folder,
        request_limit_mib=8,
        file_limit_mib=1,
        files_limit=60,
        disk_reserve_mib=0,
    )
    with served(create_app(limits)) as client:
        yield client
    assert not [p for p in (folder / "incoming").rglob("*") if p.is_file()], "left on its way in"


def related(*parts: bytes, head: bytes = DICOM) -> bytes:
    return b"".join(b"--sep\r\n" + head + part + b"\r\n" for part in parts) + b"--sep--\r\n"


def stow(http: Client, body: Any, path: str = "/dicom-web/studies", kind: str = KIND) -> Any:
    return http.post(path, content=body, headers={"Content-Type": kind})


def sequence(answer: Any, tag: str) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/dicom+json"
    return list(answer.json().get(tag, {}).get("Value", []))


def reasons(answer: Any) -> list[int]:
    return [item["00081197"]["Value"][0] for item in sequence(answer, "00081198")]


def test_a_course_is_stored_and_each_instance_is_referenced(
    http: Client, course: CourseFiles
) -> None:
    answer = stow(http, related(*(path.read_bytes() for path in course.paths)))
    assert answer.status_code == 200, answer.text
    stored = sequence(answer, "00081199")
    assert [item["00081155"]["Value"][0] for item in stored] == [
        str(dcmread(path).SOPInstanceUID) for path in course.paths
    ]
    assert stored[0]["00081150"]["Value"] == ["1.2.840.10008.5.1.4.1.1.2"]
    assert "00081198" not in answer.json()
    again = stow(http, related(*(path.read_bytes() for path in course.paths)))
    assert (again.status_code, len(sequence(again, "00081199"))) == (200, len(course.paths))
    listed = {s["series_uid"]: s for s in http.get("/v1/series").json()["series"]}
    assert listed[course.cbct.series_uid]["instances"] == len(course.cbct.paths)
    assert http.get(f"/v1/series/{course.cbct.series_uid}").json()["door"] == "stow"


def test_multipart_related_goes_to_instances_as_well(http: Client, course: CourseFiles) -> None:
    body = related(*(path.read_bytes() for path in course.cbct.paths))
    answer = stow(http, body, "/v1/instances")
    assert {i["outcome"] for i in answer.json()["instances"]} == {"stored"}


def test_what_contradicts_is_failed_with_0110_and_the_rest_is_stored(
    http: Client, tmp_path: Path, course: CourseFiles
) -> None:
    hu = np.zeros((1, 32, 32), np.int16)
    first = make_ct_series(tmp_path / "a", hu).paths[0].read_bytes()
    other = make_ct_series(tmp_path / "b", hu + 1).paths[0].read_bytes()
    assert stow(http, related(first)).status_code == 200
    half = stow(http, related(other, course.structures.read_bytes()))
    assert (half.status_code, reasons(half), len(sequence(half, "00081199"))) == (202, [0x0110], 1)
    none = stow(http, related(other))
    assert (none.status_code, reasons(none)) == (409, [0x0110])


def test_an_instance_of_another_study_is_not_stored(
    http: Client, folder: Path, course: CourseFiles
) -> None:
    study = str(dcmread(course.structures).StudyInstanceUID)
    body = related(course.structures.read_bytes())
    wrong = stow(http, body, "/dicom-web/studies/1.2.3")
    assert (wrong.status_code, reasons(wrong)) == (409, [0xC409])
    assert not stored_files(folder)
    assert stow(http, body, f"/dicom-web/studies/{study}").status_code == 200


def test_other_classes_other_kinds_and_garbage_each_have_their_reason(
    http: Client, course: CourseFiles, tmp_path: Path
) -> None:
    foreign = dcmread(course.structures)
    foreign.SOPClassUID = foreign.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dcmwrite(tmp_path / "sc.dcm", foreign)
    answer = stow(http, related((tmp_path / "sc.dcm").read_bytes(), b"garbage"))
    assert (answer.status_code, reasons(answer)) == (409, [0x0122, 0xC000])
    text = stow(http, related(b"hello", head=b"Content-Type: text/plain\r\n\r\n"))
    assert (text.status_code, reasons(text)) == (409, [0xC000])


def test_a_part_that_is_too_large_is_refused_by_itself(http: Client, course: CourseFiles) -> None:
    answer = stow(http, related(bytes(2 * 1024 * 1024), course.structures.read_bytes()))
    assert (answer.status_code, reasons(answer)) == (202, [0x0213])


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/dicom", 415),
        ('multipart/related; type="application/dicom+json"; boundary=sep', 415),
        ("multipart/form-data; boundary=sep", 415),
        ("", 415),
        ('multipart/related; type="application/dicom"', 422),
        (f'multipart/related; type="application/dicom"; boundary={"x" * 2000}', 422),
    ],
)
def test_other_types_and_bodies_without_a_boundary_are_refused(
    http: Client, kind: str, status: int
) -> None:
    answer = stow(http, related(b"x"), kind=kind)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["remedy"]


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda whole: b"",
    "no boundary in it": lambda whole: b"garbage" * 1000,
    "no end": lambda whole: whole[: -len(b"--sep--\r\n")],
    "cut in a part": lambda whole: whole[: len(whole) // 2],
    "only the first line": lambda whole: b"--sep",
    "headers without end": lambda whole: b"--sep\r\nX: " + b"a" * 100_000,
    "thousands of headers": lambda whole: (
        b"--sep\r\n" + b"A: b\r\n" * 5000 + b"\r\nx\r\n--sep--\r\n"
    ),
    "a header that is none": lambda whole: b"--sep\r\n\0\0\0\r\n\r\nx\r\n--sep--\r\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_body_that_is_not_as_it_has_to_be_stores_nothing(
    http: Client, folder: Path, course: CourseFiles, name: str
) -> None:
    answer = stow(http, HOSTILE[name](related(course.structures.read_bytes())))
    assert answer.status_code == 422, answer.text
    assert answer.json()["cause"].startswith("the multipart body")
    assert not stored_files(folder)


def test_more_parts_than_may_be_are_413(http: Client, folder: Path) -> None:
    answer = stow(http, related(*[b"x"] * 61))
    assert answer.status_code == 413
    assert not stored_files(folder)


def test_more_bytes_than_may_be_are_413_whether_it_says_so_or_not(http: Client) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"--sep\r\n" + DICOM
        for _ in range(9):
            yield bytes(1024 * 1024)

    assert stow(http, bytes(9 * 1024 * 1024)).status_code == 413
    assert stow(http, pieces()).status_code == 413


def bomb(dataset: Dataset) -> None:
    """64 MiB and more out of some kilobytes."""
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.add_new(0x00091001, "OB", bytes(100 * 2**20))


def huge(dataset: Dataset) -> None:
    """Claims to be of 4 gigapixels."""
    dataset.Rows = dataset.Columns = 65535


def deep(dataset: Dataset) -> None:
    """Sequences in sequences."""
    inner = Dataset()
    for _ in range(60):
        outer = Dataset()
        outer.ReferencedSeriesSequence = [inner]
        inner = outer
    dataset.ReferencedSeriesSequence = [inner]


@pytest.mark.parametrize("change", [bomb, huge, deep])
def test_a_hostile_file_is_refused_by_itself_in_bounded_memory(
    http: Client, course: CourseFiles, tmp_path: Path, change: Callable[[Dataset], None]
) -> None:
    dataset = dcmread(course.cbct.paths[0])
    change(dataset)
    dcmwrite(tmp_path / "hostile.dcm", dataset)
    hostile = (tmp_path / "hostile.dcm").read_bytes()
    assert len(hostile) < 2**20
    del dataset
    before = resident_mib()
    answer = stow(http, related(hostile, course.structures.read_bytes()))
    assert (answer.status_code, len(reasons(answer))) == (202, 1)
    assert resident_mib() - before < 80


@given(st.data())
@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_damage_is_a_fault_of_ours(
    http: Client, course: CourseFiles, data: st.DataObject
) -> None:
    whole = bytearray(related(course.structures.read_bytes()))
    dice = random.Random(data.draw(st.integers(0, 2**32)))
    for _ in range(data.draw(st.integers(1, 8))):
        at = dice.randrange(len(whole))
        if dice.random() < 0.5:
            whole[at] = dice.randrange(256)
        else:
            del whole[at : at + dice.randrange(1, 400)]
    answer = stow(http, bytes(whole))
    assert answer.status_code in (200, 202, 409, 422), answer.text


def test_memory_does_not_grow_with_the_body(folder: Path) -> None:
    """400 MiB through one request: parts lie on the disk, not in memory."""
    limits = ServiceSettings(data_folder=folder, disk_reserve_mib=0, upload_memory_mib=1)

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b"--sep\r\n" + DICOM
            for _ in range(20):
                yield bytes(1024 * 1024)
            yield b"\r\n"
        yield b"--sep--\r\n"

    with served(create_app(limits)) as client:
        stow(client, related(b"x"))
        before = resident_mib()
        answer = stow(client, pieces())
        grown = resident_mib() - before
    assert (answer.status_code, set(reasons(answer))) == (409, {0xC000})
    assert grown < 120, f"{grown:.0f} MiB"


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_sender_that_stands_still_is_408_and_leaves_nothing(folder: Path) -> None:
    limits = ServiceSettings(data_folder=folder, disk_reserve_mib=0, upload_idle_s=1.0)
    with served(create_app(limits)) as client, socket.socket() as slow:
        slow.connect((client.base_url.host, client.base_url.port))
        slow.sendall(
            b"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
            b"Content-Type: " + KIND.encode() + b"\r\n\r\n--sep\r\n" + DICOM + b"only this"
        )
        assert b"408 Request Timeout" in slow.recv(100)
    assert not [p for p in (folder / "incoming").rglob("*") if p.is_file()]


def test_a_disk_below_its_reserve_takes_nothing(folder: Path, course: CourseFiles) -> None:
    limits = ServiceSettings(data_folder=folder, disk_reserve_mib=1 << 40)
    with served(create_app(limits)) as client:
        assert stow(client, related(course.structures.read_bytes())).status_code == 507


# What was made here


@pytest.fixture
def ours(finished: Finished) -> dict[str, Any]:
    """The structure set of the finished job, as a search finds it."""
    found = finished.server.http.get("/dicom-web/instances?Modality=RTSTRUCT").json()
    assert len(found) == 1
    return {tag: element["Value"][0] for tag, element in found[0].items()}


def test_a_search_finds_what_was_made_here_and_nothing_that_came_in(
    finished: Finished, ours: dict[str, Any]
) -> None:
    http = finished.server.http
    study, series = ours["0020000D"], ours["0020000E"]
    assert study == str(dcmread(finished.course.cbct.paths[0]).StudyInstanceUID)
    (found,) = http.get("/dicom-web/studies").json()
    assert found["0020000D"]["Value"] == [study]
    assert found["00080061"]["Value"] == ["REG", "RTSTRUCT"]
    assert found["00201208"]["Value"] == [2]
    assert len(http.get(f"/dicom-web/studies/{study}/series").json()) == 2
    inside = http.get(f"/dicom-web/studies/{study}/series/{series}/instances").json()
    assert [each["00080018"]["Value"][0] for each in inside] == [ours["00080018"]]
    assert len(http.get(f"/dicom-web/studies/{study}/instances?limit=1").json()) == 1
    assert len(http.get(f"/dicom-web/studies/{study}/instances?offset=1").json()) == 1
    assert http.get("/dicom-web/studies?PatientID=ZZQQ-LEAK-ID").json() == [found]
    assert http.get("/dicom-web/studies?PatientID=nobody").json() == []
    assert http.get(f"/dicom-web/instances?0020000e={series}").json() == inside
    unknown = http.get("/dicom-web/studies?StudyDescription=x")
    assert unknown.headers["warning"].startswith("299")
    assert http.get("/dicom-web/studies?PatientID=ZZ*").status_code == 422


def test_what_was_made_here_is_fetched_byte_for_byte(
    finished: Finished, ours: dict[str, Any]
) -> None:
    http = finished.server.http
    study, series, sop = (ours[tag] for tag in ("0020000D", "0020000E", "00080018"))
    path = f"/dicom-web/studies/{study}/series/{series}/instances/{sop}"
    one = http.get(path, headers={"Accept": "application/dicom"})
    written = http.get(f"/v1/propagations/{finished.id}/structure-set").content
    assert (one.content, one.headers["content-type"]) == (written, "application/dicom")
    half = http.get(path, headers={"Accept": "application/dicom", "Range": "bytes=0-99"})
    assert (half.status_code, half.content) == (206, written[:100])
    parts = http.get(path, headers={"Accept": 'multipart/related; type="application/dicom"'})
    boundary = parts.headers["content-type"].partition("boundary=")[2].encode()
    assert parts.content.count(b"--" + boundary) == 2
    assert written in parts.content
    whole = http.get(f"/dicom-web/studies/{study}")
    assert written in whole.content
    (described,) = http.get(f"{path}/metadata").json()
    assert described["00080018"]["Value"] == [sop]
    assert len(http.get(f"/dicom-web/studies/{study}/metadata").json()) == 2
    for missing in (f"/dicom-web/studies/{study}1", f"{path}1", f"{path}1/metadata"):
        assert http.get(missing).status_code == 404


def test_what_a_person_signed_is_found_too(folder: Path, course: CourseFiles) -> None:
    from contourcast.service.archive import Sent
    from contourcast.service.ingest import take_files

    settings = ServiceSettings(data_folder=folder, disk_reserve_mib=0)
    with served(create_app(settings)) as client:
        with looking_into(folder) as records:
            signed = [("signed", course.structures.open("rb"))]
            take_files(signed, records.archive, settings, sent=Sent(door="ours"))
        (found,) = client.get("/dicom-web/instances").json()
        assert found["00080018"]["Value"] == [course.structures_uid]
        path = "/dicom-web/studies/{}/series/{}/instances/{}".format(
            *(found[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018"))
        )
        assert client.get(path).content == course.structures.read_bytes()
        with looking_into(folder) as records:
            signed_as = {"propagation": "p1", "structures_uid": course.structures_uid}
            add(records.index, review, decision="approved", **signed_as)
            assert len(client.get("/dicom-web/instances").json()) == 1
            add(records.index, review, decision="rejected", propagation="p1")
        assert client.get("/dicom-web/instances").json() == []
        assert client.get(path).status_code == 404, "it was withdrawn"
