"""One CBCT carried as ``contourcast propagate`` does it, and read back from what that wrote.

So what is measured is what a planning system would import, on the way from file to file.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from contourcast.imaging.dicom.registration_in import read_registration
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.structures import Roi
from contourcast.imaging.transform import RigidTransform
from contourcast.propagate import Case, Network, Settings, methods_with, propagate
from contourcast.service.jobs.inputs import read_case
from contourcast.service.outputs.report import Report, write_results

BY_ELASTIX: Final = ("dir-t", "dir-l")


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a propagation is asked with: folders, or the files of one series."""

    planning_ct: Path | Sequence[Path]
    structures: Path
    cbct: Path | Sequence[Path]
    roi: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Carried:
    """One CBCT's result.

    Attributes:
        case: As it was read.
        contours: Each method's, from RS.dcm; those that drew nothing are left out.
        cbct_from_planning: From REG.dcm; None: the registration was rejected.
        picture: overlay.png.
        seconds: From the first file read to the last written.
    """

    case: Case
    report: Report
    contours: Mapping[str, Roi]
    cbct_from_planning: RigidTransform | None
    picture: bytes
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Machine:
    """What draws here: a network, a device, and the methods that this installation has."""

    network: Network
    device: str

    @property
    def methods(self) -> tuple[str, ...]:
        """All that can be asked for, the network among them."""
        here = methods_with(self.network)
        return here if _has_elastix() else tuple(m for m in here if m not in BY_ELASTIX)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What cannot be asked for, and why, a sentence each."""
        if _has_elastix():
            return ()
        return (
            f"{' and '.join(BY_ELASTIX)} were not run: itk-elastix is not installed "
            "(pip install contourcast[baselines])",
        )

    def carry(self, files: Files, *, methods: Sequence[str] = ()) -> Carried:
        """Reads, propagates, writes, and reads back what was written.

        Args:
            files: Of one CBCT.
            methods: What to draw by; none: all that are here.

        Raises:
            ContourcastError: Something cannot be read, does not belong together, or what was
                written does not pass our own check.
        """
        start = time.perf_counter()
        case = read_case(
            planning_ct=files.planning_ct,
            structures=files.structures,
            cbct=files.cbct,
            roi=files.roi,
        )
        done = propagate(
            case,
            settings=Settings(methods=tuple(methods or self.methods), device=self.device),
            network=self.network,
            clock=time.perf_counter,
        )
        with tempfile.TemporaryDirectory(prefix="contourcast-accept-") as name:
            out = Path(name) / "run"
            report = write_results(done, out, made_at=datetime.now(UTC).astimezone())
            seconds = time.perf_counter() - start
            return Carried(
                case=case,
                report=report,
                contours=_contours(out / "RS.dcm", report),
                cbct_from_planning=_registered(out / "REG.dcm", case),
                picture=(out / "overlay.png").read_bytes(),
                seconds=seconds,
            )


def _contours(path: Path, report: Report) -> dict[str, Roi]:
    written = read_structure_set(path)
    # By number, a method's place: names are cut to what DICOM has room for.
    found = {method.method: written.roi(f"#{n}") for n, method in enumerate(report.methods, 1)}
    return {method: roi for method, roi in found.items() if roi.loops}


def _registered(path: Path, case: Case) -> RigidTransform | None:
    if not path.exists():
        return None
    return read_registration(path).between(
        target_frame=case.cbct.frame_of_reference,
        source_frame=case.planning_ct.frame_of_reference,
    )


def _has_elastix() -> bool:
    try:
        return bool(version("itk-elastix"))
    except PackageNotFoundError:
        return False
