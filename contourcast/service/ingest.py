"""What comes in: one file, many files, or a zip of files, each answered by itself.

Files are copied to disk in pieces, never held whole; a zip is read member by member and its names
are never used as paths. What is refused leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, BinaryIO, Final, TypeVar

import structlog

from contourcast.imaging.dicom.instance import (
    CT_IMAGE,
    DEFORMABLE_REGISTRATION,
    SPATIAL_REGISTRATION,
    STRUCTURE_SET,
    Header,
    read_header,
)
from contourcast.imaging.dicom.pixels import pixel_digest
from contourcast.imaging.dicom.registration_in import read_registration
from contourcast.imaging.dicom.rtplan_in import RT_PLAN, read_plan
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.errors import ContourcastError, DicomError, InputError
from contourcast.imaging.source import Patient
from contourcast.service.archive import Archive, Outcome, Sent, Staged
from contourcast.service.intake.facts import plan_facts
from contourcast.service.jobs.results import dump
from contourcast.service.problems import ConflictError, Problem, TooLargeError, problem_of
from contourcast.service.settings import ServiceSettings
from contourcast.service.store.disk import writing

MIB: Final = 1024 * 1024
PIECE: Final = MIB
# Files that are flushed and written into the index together.
BATCH: Final = 64
ENCRYPTED_FLAG: Final = 0x1  # APPNOTE.TXT 4.4.4, bit 0
ZIP_MAGIC: Final = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
# What is taken, and the modality that goes with it (PS3.3 C.7.3.1.1.1); the file's own word for it
# may be anything.
TAKEN: Final = {
    CT_IMAGE: "CT",
    STRUCTURE_SET: "RTSTRUCT",
    SPATIAL_REGISTRATION: "REG",
    DEFORMABLE_REGISTRATION: "REG",
    RT_PLAN: "RTPLAN",
}
# Words of approval (300E,0002), and which of them come after them.
LATER: Final = {
    "": ("APPROVED", "REJECTED"),
    "UNAPPROVED": ("APPROVED", "REJECTED"),
    "APPROVED": ("REJECTED",),
}
LOCAL_HEADER_BYTES: Final = 30  # APPNOTE.TXT 4.3.7

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one file."""

    name: str
    outcome: Outcome
    sop_instance_uid: str = ""
    series_instance_uid: str = ""
    problem: Problem | None = None


@dataclass(frozen=True, kw_only=True)
class _Landed:
    """A file that is on our disk, unread."""

    name: str
    path: Path
    digest: str
    size_bytes: int


def take_files(
    files: Iterable[tuple[str, BinaryIO]],
    archive: Archive,
    settings: ServiceSettings,
    *,
    sent: Sent,
) -> list[Answer]:
    """Takes files in, as many at a time as are flushed together.

    Of each file comes its name, which is shown to the sender alone, and its content, which is
    closed once it is read.
    """
    archive.require_space()
    answers: list[Answer] = []
    for batch in _batches(files):
        landed: list[_Landed | Answer] = []
        try:
            for name, content in batch:
                with content:
                    landed.append(_land(name, content, archive, settings.file_limit_mib * MIB))
            answers += _admit(landed, archive, sent)
        finally:
            for _, content in batch:  # those that were not come to
                content.close()
            _clear(landed)
    log.info("instances_taken", **_counts(answers))
    return answers


def take_zip(
    packed: Path, archive: Archive, settings: ServiceSettings, *, sent: Sent
) -> list[Answer]:
    """Takes the files of a zip; one fault of the archive and nothing of it is stored.

    Raises:
        InputError: It is no zip, damaged, encrypted, nested, or has names that lead elsewhere.
        TooLargeError: It unpacks to more than the limits allow.
    """
    archive.require_space()
    landed: list[_Landed | Answer] = []
    answers: list[Answer] = []
    limit_bytes = settings.file_limit_mib * MIB
    try:
        try:
            with zipfile.ZipFile(packed) as unpacking:
                for member in _checked(unpacking, settings):
                    with unpacking.open(member) as content:
                        landed.append(_land(member.filename, content, archive, limit_bytes))
                    _require_no_zip(landed[-1])
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise InputError(
                "the zip is damaged, or packed in a way that is not supported",
                remedy="pack it again, stored or deflated, and send it again",
            ) from error
        for batch in _batches(landed):
            answers += _admit(batch, archive, sent)
    finally:
        _clear(landed)
    log.info("instances_taken", **_counts(answers))
    return answers


def _land(name: str, content: IO[bytes], archive: Archive, limit_bytes: int) -> _Landed | Answer:
    """Copies one file to our disk, with its digest."""
    digest, size = hashlib.sha256(), 0
    path = archive.incoming()
    try:
        with writing(), path.open("xb") as file:
            while size <= limit_bytes and (piece := content.read(PIECE)):
                size += len(piece)
                digest.update(piece)
                file.write(piece)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if size <= limit_bytes:
        return _Landed(name=name, path=path, digest=digest.hexdigest(), size_bytes=size)
    path.unlink()
    error = TooLargeError(
        f"a file has more than {limit_bytes // MIB} MiB",
        remedy="send single-frame CT images, structure sets and registrations",
    )
    return Answer(name=name, outcome="refused", problem=problem_of(error))


def _admit(landed: Sequence[_Landed | Answer], archive: Archive, sent: Sent) -> list[Answer]:
    """Reads the headers and takes in what is sound; answers in the order given."""
    answers: list[Answer | None] = []
    staged: list[Staged] = []
    for file in landed:
        if isinstance(file, Answer):
            answers.append(file)
            continue
        try:
            header = _sound_header(file)
        except ContourcastError as error:
            answers.append(Answer(name=file.name, outcome="refused", problem=problem_of(error)))
            continue
        answers.append(None)
        staged.append(
            Staged(
                path=file.path,
                file_digest=file.digest,
                size_bytes=file.size_bytes,
                header=header,
                modality=TAKEN[header.sop_class_uid],
            )
        )
    outcomes = archive.admit(staged, say_the_same, sent=sent)
    taken = iter(zip(staged, outcomes, strict=True))
    return [
        answer if answer is not None else _taken(file.name, *next(taken))
        for file, answer in zip(landed, answers, strict=True)
    ]


def _sound_header(file: _Landed) -> Header:
    header = read_header(file.path, file=file.name)
    if header.sop_class_uid not in TAKEN:
        raise DicomError(
            "objects of this kind are not taken",
            tag="(0008,0016) SOP Class UID",
            uid=header.sop_class_uid,
            remedy="send CT images, RT Structure Sets, RT Plans and Spatial Registrations",
        )
    return header


def say_the_same(first: Path, second: Path) -> bool:
    """Whether two files of one SOP Instance UID differ in nothing that a result depends on.

    An archive may have compressed an image again, or corrected a name: that is the same instance.
    Another patient ID, other pixels, another place or other contours are not; nor is what was
    approved or rejected meanwhile, for that decides what is carried. What cannot be read says
    nothing.
    """
    try:
        return _say_the_same(first, second)
    except InputError:
        return False


def later_approval(first: Path, second: Path, *, status: str) -> str:
    """The approval status of the second, where that alone differs and it is the later word.

    A plan is drawn up, approved, perhaps rejected after all, and keeps its UID all the while. An
    approval that was taken away is no such word: it cannot be told from an older copy.

    Args:
        first: What is here.
        second: What came under the same UID.
        status: The last word so far.

    Returns:
        Empty where it is none.
    """
    try:
        if not _say_the_same(first, second, but_for_approval=True):
            return ""
        said = _status(second)
    except InputError:
        return ""
    return said if said in LATER.get(status, ()) else ""


def _status(path: Path) -> str:
    header = read_header(path)
    if header.sop_class_uid == STRUCTURE_SET:
        return read_structure_set(path).approval_status
    return read_plan(path).approval_status if header.sop_class_uid == RT_PLAN else ""


def _say_the_same(first: Path, second: Path, *, but_for_approval: bool = False) -> bool:
    one, two = read_header(first), read_header(second)
    if not _of_one_patient(one.patient, two.patient):
        return False
    if (one.sop_class_uid, one.frame_of_reference) != (two.sop_class_uid, two.frame_of_reference):
        return False
    if one.sop_class_uid == CT_IMAGE:
        return one.plane == two.plane and pixel_digest(first) == pixel_digest(second)
    if one.sop_class_uid == STRUCTURE_SET:
        return _draws(first, but_for_approval) == _draws(second, but_for_approval)
    if one.sop_class_uid == RT_PLAN:
        here, there = plan_facts(read_plan(first)), plan_facts(read_plan(second))
        status = here.approval_status if but_for_approval else there.approval_status
        return here == replace(there, patient=here.patient, approval_status=status)
    if one.sop_class_uid == SPATIAL_REGISTRATION:
        return _ties(first) == _ties(second)
    return False


def _of_one_patient(one: Patient, two: Patient) -> bool:
    """Whether the ID is the same; the issuer counts where both state one."""
    first, second = (each.patient_id.strip(" \0") for each in (one, two))
    issuers = {each.issuer.strip(" \0") for each in (one, two)} - {""}
    return first == second and len(issuers) < 2


def _draws(structures: Path, but_for_approval: bool) -> bytes:
    """What a structure set says, of where, and whether a person stands for it."""
    found = read_structure_set(structures)
    return dump(
        (
            found.rois,
            None if but_for_approval else found.approval_status,
            found.frame_of_reference,
            sorted(found.referenced_series_uids),
            sorted(found.referenced_sop_uids),
        )
    )


def _ties(registration: Path) -> bytes:
    """What a registration says, and nothing of whom."""
    results = read_registration(registration).results
    return dump([(r.number, r.comment, r.transform, r.images) for r in results])


def _taken(name: str, file: Staged, outcome: Outcome) -> Answer:
    return Answer(
        name=name,
        outcome=outcome,
        sop_instance_uid=file.header.sop_instance_uid,
        series_instance_uid=file.header.series_instance_uid,
        problem=_conflict(file) if outcome == "conflict" else None,
    )


def _conflict(file: Staged) -> Problem:
    return problem_of(
        ConflictError(
            "an instance of this UID is here already and says something else",
            tag="(0008,0018) SOP Instance UID",
            uid=file.header.sop_instance_uid,
            remedy="the first stays; if this one is right, export it under a UID of its own",
        )
    )


def _checked(archive: zipfile.ZipFile, settings: ServiceSettings) -> Iterator[zipfile.ZipInfo]:
    """The members to unpack, once the whole directory has been found harmless."""
    members = [m for m in archive.infolist() if not m.is_dir()]
    if len(archive.infolist()) > settings.files_limit:
        raise TooLargeError(
            f"the zip has more than {settings.files_limit} members",
            remedy="send the series in several requests",
        )
    for member in members:
        _require_harmless(member)
    unpacked = sum(m.file_size for m in members)
    if unpacked > settings.unpacked_limit_mib * MIB:
        raise TooLargeError(
            f"the zip unpacks to more than {settings.unpacked_limit_mib} MiB",
            remedy="send the series in several requests",
        )
    for size, packed in [
        *((m.file_size, m.compress_size) for m in members),
        (unpacked, sum(m.compress_size for m in members)),
    ]:
        if size > MIB and size > settings.zip_ratio_limit * packed:
            raise TooLargeError(
                f"the zip unpacks to more than {settings.zip_ratio_limit} times its size",
                remedy="send the files themselves, in one multipart request",
            )
    _require_apart(archive, members)
    yield from members


def _require_harmless(member: zipfile.ZipInfo) -> None:
    name = member.filename
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
        fault = "a member of the zip has a name that leads out of it"
    elif member.flag_bits & ENCRYPTED_FLAG:
        fault = "the zip is encrypted"
    elif stat.S_ISLNK(member.external_attr >> 16):
        fault = "a member of the zip is a link"
    elif name.lower().endswith(".zip"):
        fault = "the zip holds another zip"
    else:
        return
    raise InputError(fault, remedy="pack the DICOM files alone, without password, and send again")


def _require_apart(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> None:
    """Members that share bytes are how a small zip unpacks to petabytes."""
    end = 0
    for member in sorted(members, key=lambda m: m.header_offset):
        if member.header_offset < end:
            raise InputError("members of the zip overlap", remedy="pack it again")
        end = member.header_offset + LOCAL_HEADER_BYTES + member.compress_size


def _require_no_zip(member: _Landed | Answer) -> None:
    if isinstance(member, Answer):
        assert member.problem is not None
        raise TooLargeError(member.problem.cause, remedy=member.problem.remedy)
    with member.path.open("rb") as file:
        if file.read(4) in ZIP_MAGIC:
            raise InputError(
                "the zip holds another zip", remedy="pack the DICOM files alone and send again"
            )


def _clear(landed: Iterable[_Landed | Answer]) -> None:
    """Deletes what was not taken in (what was taken in lies elsewhere by now)."""
    for file in landed:
        if isinstance(file, _Landed):
            file.path.unlink(missing_ok=True)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    source = iter(items)
    while batch := list(islice(source, BATCH)):
        yield batch


def _counts(answers: list[Answer]) -> dict[str, int]:
    outcomes = [answer.outcome for answer in answers]
    return {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
