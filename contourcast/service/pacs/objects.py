"""The files that go out: results as they are, and what is made of them for a destination.

What is made is made once and kept beside the results, under a name that follows from what it was
made of and how; so each attempt, on whatever machine, sends the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from contourcast.imaging.dicom.instance import read_header
from contourcast.imaging.dicom.pdf_out import write_pdf
from contourcast.imaging.dicom.rtstruct_adapt import adapt_structure_set
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.dicom.secondary_capture_out import write_secondary_capture
from contourcast.imaging.dicom.segmentation_out import write_segmentation
from contourcast.service.index.database import as_json
from contourcast.service.jobs.derived import result_key
from contourcast.service.jobs.scans import cbct_of
from contourcast.service.outputs.report import Report
from contourcast.service.outputs.segments import segments_of
from contourcast.service.pacs.destinations import Archive
from contourcast.service.pacs.outbox import Delivery
from contourcast.service.pacs.profiles import DEFAULT, Profile
from contourcast.service.problems import DamagedError
from contourcast.service.records import Records

STRUCTURES: Final = "RS.dcm"
REGISTRATION: Final = "REG.dcm"
OVERLAY: Final = "overlay.png"
REPORT: Final = "report.json"
# What is made of results when it is asked for, and of which.
MADE_FROM: Final = {
    "secondary_capture": (STRUCTURES, OVERLAY, REPORT),
    "pdf": (STRUCTURES, OVERLAY, REPORT),
    "segmentation": (STRUCTURES, REPORT),
}


def wanted(archive: Archive, verdict: str, files: Mapping[str, str]) -> list[dict[str, Any]]:
    """What an archive gets of a propagation's results.

    A registration that nobody should use goes nowhere (CLINICAL_SERVICE §1.5).

    Args:
        archive: With what it asks for.
        verdict: ``accept``, ``look``, ``reject``.
        files: Name to SHA-256 of the results.
    """
    if verdict not in archive.verdicts:
        return []
    found = []
    if archive.structure_set and STRUCTURES in files:
        found.append(structure_set(archive, "structure_set", STRUCTURES, files[STRUCTURES]))
    if archive.registration and REGISTRATION in files and verdict != "reject":
        registration = {REGISTRATION: files[REGISTRATION]}
        found.append({"role": "registration", "files": registration})
    for role, sources in MADE_FROM.items():
        if role == "segmentation" and verdict == "reject":
            continue
        if getattr(archive, role) and files.keys() >= set(sources):
            found.append({"role": role, "files": {name: files[name] for name in sources}})
    return found


def structure_set(archive: Archive, role: str, name: str, digest: str) -> dict[str, Any]:
    """A structure set in the manner of an archive."""
    profile = archive.written_as.model_dump()
    return {"role": role, "files": {name: digest}, "profile": profile}


class Objects:
    """The files of deliveries, in the store."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def files(self, delivery: Delivery) -> list[Path]:
        """The files that a delivery sends, on this machine, in its order.

        Raises:
            DamagedError: A result is not what it was when the delivery was planned.
            NotFoundError: A result is gone.
            GeometryError: The profile does not allow what the structure set holds.
        """
        return [self._file(delivery.propagation, one) for one in delivery.objects]

    def named(self, delivery: Delivery) -> list[dict[str, Any]]:
        """The objects with what the destination knows them by, and where the file lies."""
        named = []
        for one, path in zip(delivery.objects, self.files(delivery), strict=True):
            header = read_header(path)
            named.append(
                one
                | {
                    "key": self._key(delivery.propagation, one),
                    "sop_class_uid": header.sop_class_uid,
                    "sop_uid": header.sop_instance_uid,
                    "series_uid": header.series_instance_uid,
                    "digest": _digest(path),
                }
            )
        return named

    def _key(self, propagation: str, one: Mapping[str, Any]) -> str:
        return result_key(propagation, _name(one))

    def _file(self, propagation: str, one: Mapping[str, Any]) -> Path:
        key = self._key(propagation, one)
        blobs = self._records.archive.blobs
        name = _name(one)
        if name in one["files"]:
            return self._source(propagation, name, one["files"][name])
        if not blobs.has(key):
            sources = {n: self._source(propagation, n, d) for n, d in one["files"].items()}
            draft = self._records.archive.incoming()
            try:
                self._make(propagation, one, sources, draft)
                self._records.derived.put_results(propagation, {name: draft})
            finally:
                draft.unlink(missing_ok=True)
        return blobs.get(key)

    def _source(self, propagation: str, name: str, digest: str) -> Path:
        path = self._records.derived.result(propagation, name)
        if _digest(path) != digest:
            raise DamagedError(
                f"'{name}' is not what it was when its delivery was planned",
                file=name,
                remedy="look at the disk of the store; what is damaged is never sent",
            )
        return path

    def _make(
        self,
        propagation: str,
        one: Mapping[str, Any],
        sources: Mapping[str, Path],
        draft: Path,
    ) -> None:
        if "profile" in one:
            profile = Profile.model_validate(one["profile"])
            (source,) = sources.values()
            adapt_structure_set(
                source,
                draft,
                name_bytes=profile.name_bytes,
                holes=profile.holes,
                points_at_most=profile.points_at_most,
                explicit=profile.transfer_syntax == "explicit",
                charset=profile.charset,
            )
        else:
            self._make_of_report(propagation, one, sources, draft)

    def _make_of_report(
        self,
        propagation: str,
        one: Mapping[str, Any],
        sources: Mapping[str, Path],
        draft: Path,
    ) -> None:
        from contourcast.service.outputs.pdf import report_pdf
        from contourcast.service.outputs.secondary_capture import picture_rgb

        report = Report.model_validate_json(sources[REPORT].read_bytes())
        about = read_header(sources[STRUCTURES])  # patient and study are the scan's
        job, site = self._records.propagations.job(propagation), self._records.site
        digest = hashlib.sha256(as_json(dict(one["files"])).encode()).hexdigest()
        made_at = site.clock(job.made_at)
        if one["role"] == "segmentation":
            cbct = cbct_of(self._records.archive, job)
            write_segmentation(
                draft,
                segments=segments_of(read_structure_set(sources[STRUCTURES]), report, cbct.grid),
                reference_scan=cbct,
                digest=digest,
                made_at=made_at,
                description="Contourcast proposals",
                series_number=site.series_number,
            )
        elif one["role"] == "pdf":
            write_pdf(
                draft,
                document=report_pdf(report, about.patient, sources[OVERLAY].read_bytes()),
                title=f"{report.prior.roi_name}: {report.verdict.value}",
                patient=about.patient,
                study=about.study,
                made_of=[(about.sop_class_uid, about.sop_instance_uid)],
                digest=digest,
                made_at=made_at,
                series_number=site.series_number,
            )
        else:
            picture = picture_rgb(
                sources[OVERLAY].read_bytes(),
                verdict=report.verdict.value,
                reasons=report.reasons,
            )
            write_secondary_capture(
                draft,
                picture_rgb=picture,
                patient=about.patient,
                study=about.study,
                body_part="",
                digest=digest,
                made_at=made_at,
                series_number=site.series_number,
                description="three planes with contours; CBCT and registered planning CT in turn",
            )


def _name(one: Mapping[str, Any]) -> str:
    """The name of the file that is sent, among the results of its propagation."""
    if one["role"] == "registration" or one.get("profile") == DEFAULT.model_dump():
        (name,) = one["files"]
        return str(name)
    content = as_json([one["role"], one["files"], one.get("profile")])
    return f"{one['role']}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.dcm"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
