"""DICOMweb (PS3.18): STOW-RS takes what is sent; QIDO-RS and WADO-RS give what was made here.

What came in is its archive's to give out; found and fetched here are structure sets, registrations
and whatever else a propagation or a signature has written.
"""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import pydicom
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from sqlalchemy import Connection, select

from contourcast.imaging.errors import InputError
from contourcast.imaging.source import Patient
from contourcast.service.access.guard import note
from contourcast.service.api.asked import caller_of, remember_sent
from contourcast.service.api.context import PRIVATE, Context, also, in_thread
from contourcast.service.api.paging import LARGEST, MOST
from contourcast.service.api.related import DICOM, RELATED, take_related
from contourcast.service.archive import Archive, Sent, instance_key, patient_key
from contourcast.service.index.tables import instance, propagation, series
from contourcast.service.ingest import Answer
from contourcast.service.intake.withdrawn import WITHDRAWN
from contourcast.service.jobs.derived import result_key
from contourcast.service.problems import NotFoundError, document_for

JSON: Final = "application/dicom+json"
PIECE: Final = 2**20
BATCH: Final = 100
REMEMBERED: Final = 8192

# PS3.6: what a search may ask for, and what it is answered with
STUDY: Final = "0020000D"
SERIES: Final = "0020000E"
SOP: Final = "00080018"
SOP_CLASS: Final = "00080016"
MODALITY: Final = "00080060"
PATIENT_ID: Final = "00100020"
KEYWORDS: Final = {
    "StudyInstanceUID": STUDY,
    "SeriesInstanceUID": SERIES,
    "SOPInstanceUID": SOP,
    "SOPClassUID": SOP_CLASS,
    "Modality": MODALITY,
    "PatientID": PATIENT_ID,
}
NO_MATCHING: Final = frozenset({"limit", "offset", "includefield", "fuzzymatching"})

# PS3.18 table I.2-2 and PS3.7 annex C: why an instance was not stored
FAILURES: Final = {
    "/problems/conflict": 0x0110,
    "/problems/too-large": 0x0213,
    "/problems/unsupported-media": 0xC000,
}
BY_TAG: Final = {"(0008,0016)": 0x0122, "(0002,0010)": 0xC122, "(0020,000D)": 0xC409}
CANNOT_UNDERSTAND: Final = 0xC000

Offset = Annotated[int, Query(ge=0, lt=LARGEST)]
Most = Annotated[int, Query(ge=1, le=MOST)]


@dataclass(frozen=True, kw_only=True)
class Object:
    """An object that was made here."""

    study: str
    series: str
    sop: str
    sop_class: str
    modality: str
    patient: str
    key: str
    digest: str

    def element(self, tag: str) -> str:
        """What it has under a tag that a search may ask for."""
        return {
            STUDY: self.study,
            SERIES: self.series,
            SOP: self.sop,
            SOP_CLASS: self.sop_class,
            MODALITY: self.modality,
        }[tag]


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["DICOMweb"])
    archive, settings = context.records.archive, context.settings
    ours = _Ours(archive)

    async def store(request: Request, study: str | None) -> Response:
        with context.uploads.one():
            taken = await take_related(
                request, archive, settings, sent=Sent(door="stow"), study_uid=study
            )
        by = caller_of(request).name
        uids = await in_thread(remember_sent, archive.index, taken, by)
        patient = await in_thread(archive.patient_of, uids[0]) if uids else ""
        note(request, patient=patient, objects=uids)
        return await in_thread(_stored, archive, taken)

    @router.post("/dicom-web/studies", **_stow())
    async def post_studies(request: Request) -> Response:
        """Store instances (STOW-RS)."""
        return await store(request, None)

    @router.post("/dicom-web/studies/{study}", **_stow())
    async def post_study(study: str, request: Request) -> Response:
        """Store instances of one study (STOW-RS)."""
        return await store(request, study)

    def search(path: str, level: str) -> None:
        async def find(request: Request, limit: Most = 100, offset: Offset = 0) -> Response:
            wanted, ignored = _wanted(request)
            found = await in_thread(
                lambda: list(islice(ours.level(level, wanted), offset, offset + limit))
            )
            headers = {"Warning": '299 contourcast "some attributes do not match"'}
            return _dicom_json(found, headers if ignored else {})

        find.__doc__ = f"Search for {level} that were made here (QIDO-RS)."
        name = f"search_{path.strip('/').replace('/', '_')}".replace("{", "").replace("}", "")
        router.add_api_route(
            f"/dicom-web{path}",
            find,
            methods=["GET"],
            name=name,
            response_class=Response,
            responses=also(200, _content(JSON)),
            openapi_extra={"parameters": [*map(_parameter, _names(path)), *_MATCHING]},
        )

    search("/studies", "studies")
    search("/series", "series")
    search("/instances", "instances")
    search("/studies/{study}/series", "series")
    search("/studies/{study}/instances", "instances")
    search("/studies/{study}/series/{series}/instances", "instances")

    def retrieve(path: str) -> None:
        names = _names(path)

        async def fetch(request: Request) -> Response:
            found = await in_thread(_found, ours, request.path_params)
            note(request, patient=found[0].patient, objects=[o.sop for o in found])
            files = [await in_thread(archive.blobs.get, o.key) for o in found]
            accepted = request.headers.get("accept", "")
            if len(found) == 1 and "instance" in names and RELATED not in accepted:
                headers = {"ETag": f'"{found[0].digest}"', **PRIVATE}
                return FileResponse(files[0], media_type=DICOM, headers=headers)
            boundary = uuid.uuid4().hex
            return StreamingResponse(
                _parts(files, boundary),
                headers={
                    "Content-Type": f'{RELATED}; type="{DICOM}"; boundary={boundary}',
                    **PRIVATE,
                },
            )

        async def describe(request: Request) -> Response:
            found = await in_thread(_found, ours, request.path_params)
            note(request, patient=found[0].patient, objects=[o.sop for o in found])
            return _dicom_json(await in_thread(_headers, archive, found), {})

        fetch.__doc__ = "Fetch what was made here (WADO-RS)."
        describe.__doc__ = "Everything but bulk data of what was made here (WADO-RS)."
        for suffix, endpoint, kinds in (
            ("", fetch, (RELATED, DICOM)),
            ("/metadata", describe, (JSON,)),
        ):
            router.add_api_route(
                f"/dicom-web{path}{suffix}",
                endpoint,
                methods=["GET"],
                name=f"{endpoint.__name__}_{names[-1]}",
                response_class=Response,
                responses=also(200, _content(*kinds)) | document_for(404),
                openapi_extra={"parameters": [_parameter(name) for name in names]},
            )

    retrieve("/studies/{study}")
    retrieve("/studies/{study}/series/{series}")
    retrieve("/studies/{study}/series/{series}/instances/{instance}")
    return router


# STOW-RS


def _stored(archive: Archive, answers: list[Answer]) -> Response:
    """The Store Instances Response Module (PS3.18 table I.2-1)."""
    kept = archive.known({a.sop_instance_uid for a in answers if a.sop_instance_uid})
    stored, failed = [], []
    for answer in answers:
        known = kept.get(answer.sop_instance_uid)
        item = {
            "00081150": _element("UI", known.sop_class_uid if known else ""),
            "00081155": _element("UI", answer.sop_instance_uid),
        }
        if answer.problem is None:
            stored.append(item | {"00081190": {"vr": "UR"}})
        else:
            failed.append(item | {"00081197": {"vr": "US", "Value": [_failure(answer)]}})
    body: dict[str, Any] = {"00081190": {"vr": "UR"}}
    if stored:
        body["00081199"] = {"vr": "SQ", "Value": stored}
    if failed:
        body["00081198"] = {"vr": "SQ", "Value": failed}
    status = 200 if not failed else 202 if stored else 409
    return Response(json.dumps(body), status_code=status, media_type=JSON, headers=PRIVATE)


def _failure(answer: Answer) -> int:
    problem = answer.problem
    assert problem is not None
    by_kind = FAILURES.get(problem.type)
    by_tag = (code for tag, code in BY_TAG.items() if tag in problem.where)
    return by_kind if by_kind is not None else next(by_tag, CANNOT_UNDERSTAND)


# QIDO-RS


class _Ours:
    """Everything that was made here and was not withdrawn, newest first."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._read = functools.lru_cache(maxsize=REMEMBERED)(self._read_header)

    def level(self, level: str, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
        """What a search finds, each once."""
        seen: set[str] = set()
        for each in self.objects(wanted):
            key = {"studies": each.study, "series": each.series, "instances": each.sop}[level]
            if key not in seen:
                seen.add(key)
                yield self._answer(level, each, wanted)

    def objects(self, wanted: dict[str, str]) -> Iterator[Object]:
        """Those that have all that is wanted."""
        who = wanted.get(PATIENT_ID)
        keys = None if who is None else _patient(who)
        for each in self._all(wanted.get(STUDY), keys):
            if all(each.element(t) == value for t, value in wanted.items() if t != PATIENT_ID):
                yield each

    def _all(self, study: str | None, patient: str | None) -> Iterator[Object]:
        yield from self._signed(study, patient)
        before: int | None = None
        while True:
            query = (
                select(
                    propagation.c.id,
                    propagation.c.number,
                    propagation.c.files_json,
                    propagation.c.patient_key,
                )
                .join(series, series.c.uid == propagation.c.cbct_series_uid)
                .where(propagation.c.ended == 1)
                .order_by(propagation.c.number.desc())
                .limit(BATCH)
            )
            if study is not None:
                query = query.where(series.c.study_uid == study)
            if patient is not None:
                query = query.where(propagation.c.patient_key == patient)
            if before is not None:
                query = query.where(propagation.c.number < before)
            with self._archive.index.read() as at:
                rows = at.execute(query).all()
            for row in rows:
                for name, digest in sorted(row.files_json.items()):
                    if name.endswith(".dcm"):
                        yield self._read(result_key(row.id, name), digest, row.patient_key)
            if len(rows) < BATCH:
                return
            before = rows[-1].number

    def _signed(self, study: str | None, patient: str | None) -> list[Object]:
        query = (
            select(instance, series.c.patient_key)
            .join(series, series.c.uid == instance.c.series_uid)
            .where(series.c.door == "ours", instance.c.sop_uid.not_in(WITHDRAWN))
            .order_by(instance.c.sop_uid)
        )
        if study is not None:
            query = query.where(series.c.study_uid == study)
        if patient is not None:
            query = query.where(series.c.patient_key == patient)
        with self._archive.index.read() as at:
            rows = at.execute(query).all()
        return [
            Object(
                study=row.study_uid,
                series=row.series_uid,
                sop=row.sop_uid,
                sop_class=row.sop_class_uid,
                modality=row.modality,
                patient=row.patient_key,
                key=instance_key(row.series_uid, row.file_digest),
                digest=row.file_digest,
            )
            for row in rows
        ]

    def _read_header(self, key: str, digest: str, patient: str) -> Object:
        tags = [STUDY, SERIES, SOP, SOP_CLASS, MODALITY]
        found = pydicom.dcmread(
            self._archive.blobs.get(key), specific_tags=list(tags), stop_before_pixels=True
        )
        return Object(
            study=str(found.StudyInstanceUID),
            series=str(found.SeriesInstanceUID),
            sop=str(found.SOPInstanceUID),
            sop_class=str(found.SOPClassUID),
            modality=str(found.Modality),
            patient=patient,
            key=key,
            digest=digest,
        )

    def _answer(self, level: str, each: Object, wanted: dict[str, str]) -> dict[str, Any]:
        answer = {STUDY: _element("UI", each.study)}
        if level == "studies":
            with self._archive.index.read() as at:
                answer |= _who(at, each)
            inside = list(self.objects({STUDY: each.study}))
            answer["00080061"] = {"vr": "CS", "Value": sorted({o.modality for o in inside})}
            answer["00201206"] = _number(len({o.series for o in inside}))
            answer["00201208"] = _number(len({o.sop for o in inside}))
            return answer
        answer |= {SERIES: _element("UI", each.series), MODALITY: _element("CS", each.modality)}
        if level == "series":
            inside = list(self.objects({STUDY: each.study, SERIES: each.series}))
            answer["00201209"] = _number(len({o.sop for o in inside}))
            return answer
        return answer | {SOP: _element("UI", each.sop), SOP_CLASS: _element("UI", each.sop_class)}


def _wanted(request: Request) -> tuple[dict[str, str], bool]:
    """What has to match, by tag; whether something was asked that nothing is matched by."""
    wanted: dict[str, str] = {}
    ignored = False
    for name, value in request.query_params.multi_items():
        if name in NO_MATCHING:
            continue
        tag = KEYWORDS.get(name, name.upper())
        if tag not in KEYWORDS.values():
            ignored = True
        elif "*" in value or "?" in value:
            raise InputError("only whole values match here", remedy="ask without wildcards")
        elif value:
            wanted[tag] = value
    for name, tag in (("study", STUDY), ("series", SERIES)):
        if name in request.path_params:
            wanted[tag] = request.path_params[name]
    return wanted, ignored


def _who(at: Connection, each: Object) -> dict[str, Any]:
    """As a scan of that study says: another issuer's patient may have the same number."""
    facts = select(series.c.facts_json).where(
        series.c.study_uid == each.study, series.c.patient_key == each.patient
    )
    known = (at.execute(facts.order_by(series.c.uid).limit(1)).scalar() or {}).get("patient")
    if not each.patient or known is None:
        return {}
    name = [{"Alphabetic": known["name"]}] if known["name"] else []
    return {
        "00100010": {"vr": "PN", "Value": name} if name else {"vr": "PN"},
        PATIENT_ID: _element("LO", known["patient_id"]),
        "00100030": _element("DA", known["birth_date"]),
    }


# WADO-RS


def _found(ours: _Ours, named: dict[str, str]) -> list[Object]:
    tags = {"study": STUDY, "series": SERIES, "instance": SOP}
    found = list(ours.objects({tags[name]: value for name, value in named.items()}))
    if not found:
        raise NotFoundError(
            "nothing of that was made here",
            remedy="images and plans are their archive's to give; search /dicom-web/instances",
        )
    return list({each.sop: each for each in found}.values())


def _headers(archive: Archive, found: Iterable[Object]) -> list[dict[str, Any]]:
    return [dict(pydicom.dcmread(archive.blobs.get(each.key)).to_json_dict()) for each in found]


async def _parts(files: list[Path], boundary: str) -> AsyncIterator[bytes]:
    for path in files:
        yield f"--{boundary}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
        with path.open("rb") as file:
            while piece := await in_thread(file.read, PIECE):
                yield piece
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


# Documents


def _dicom_json(found: list[dict[str, Any]], headers: dict[str, str]) -> Response:
    return Response(json.dumps(found), media_type=JSON, headers={**PRIVATE, **headers})


def _element(vr: str, value: str) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]} if value else {"vr": vr}


def _number(value: int) -> dict[str, Any]:
    return {"vr": "IS", "Value": [value]}


def _patient(patient_id: str) -> str:
    return patient_key(Patient(patient_id=patient_id))


def _content(*kinds: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "format": "binary"}
    if kinds == (JSON,):
        schema = {"type": "array", "items": {"type": "object"}}
    return {"content": {kind: {"schema": schema} for kind in kinds}, "description": "As PS3.18."}


def _stow() -> dict[str, Any]:
    schema = {"type": "object", "description": "Store Instances Response Module."}
    said = {"content": {JSON: {"schema": schema}}}
    return {
        "response_class": Response,
        "responses": {
            200: said | {"description": "All were stored."},
            202: said | {"description": "Some were stored."},
            409: said | {"description": "None was stored."},
        }
        | document_for(408, 413, 415, 503, 507),
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {RELATED: {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    }


def _names(path: str) -> list[str]:
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


_MATCHING: Final = [
    {"name": keyword, "in": "query", "required": False, "schema": {"type": "string"}}
    for keyword in KEYWORDS
]
