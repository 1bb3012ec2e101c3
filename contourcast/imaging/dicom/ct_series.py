"""A CT series, planning CT or CBCT, as a volume.

Slices lie where Image Position and Image Orientation (Patient) say, and nowhere else: file order,
Instance Number, Slice Location, Slice Thickness and Patient Position are never asked. What does
not fit is refused with the slice named; what was left out or set right is said in the notes.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float

from contourcast.imaging.dicom.codec import Codec
from contourcast.imaging.dicom.elements import LIMITS, Limits, tag_name
from contourcast.imaging.dicom.instance import (
    CT_IMAGE,
    ENHANCED_CT,
    Header,
    ImagePlane,
    read_header,
)
from contourcast.imaging.dicom.pixels import Stored, digest_of, read_stored
from contourcast.imaging.errors import (
    DicomError,
    FrameMismatchError,
    IncompleteSeriesError,
    NotDicomError,
)
from contourcast.imaging.grid import Grid
from contourcast.imaging.source import SeriesSource, SliceSource
from contourcast.imaging.volume import Volume

IMAGE_TYPE: Final = tag_name(0x00080008)
# Reading, hashing and converting a slice release the interpreter: two threads keep two cores busy.
READERS: Final = 2
POSITION: Final = tag_name(0x00200032)
ORIENTATION: Final = tag_name(0x00200037)
SPACING: Final = tag_name(0x00280030)
FRAME: Final = tag_name(0x00200052)


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """What still counts as the same, and where a series is refused.

    Attributes:
        missing_gap: A gap above this many medians is a missing slice (CLINICAL_SERVICE §1.3).
        same_place_mm: Two slices closer than this are at one position: half of the last digit of
            positions written with two decimals.
        axis: How far axes written with three decimals are off unit length and right angle
            (two components of 0.0005 each, rounded up). Beyond: refused; within: set right.
        axis_noted: Axes written with six decimals; more is said in a note.
        orientation: Between two slices of one series, per component: three decimals again.
        drift_mm, drift_fraction: How far a slice may lie off the normal through the first one,
            and the fraction of the way that is added: 0.06 degrees, of axes with three decimals.
            A tilted gantry is half a degree or more.
        spacing_mm: Between the pixel spacings of two slices.
        farthest_mm: No patient lies ten metres from the origin.
        largest_pixel_mm: No CT has pixels of ten centimetres.
        highest_hu: 16 bits signed, the most that CT scanners write; beyond it the sign is wrong.
        air_hu: The lowest value of the Hounsfield scale that scanners write; below is padding.
        tissue_from_hu: Padding above it would be confused with lung: aerated lung begins here.
    """

    missing_gap: float = 1.5
    same_place_mm: float = 0.005
    axis: float = 0.0015
    axis_noted: float = 1e-5
    orientation: float = 0.001
    drift_mm: float = 0.1
    drift_fraction: float = 0.001
    spacing_mm: float = 1e-4
    farthest_mm: float = 10_000.0
    largest_pixel_mm: float = 100.0
    highest_hu: float = 32_767.0
    air_hu: float = -1024.0
    tissue_from_hu: float = -900.0


TOLERANCES: Final = Tolerances()


class Slice(NamedTuple):
    """A file and what it says."""

    path: Path
    header: Header

    @property
    def uid(self) -> str:
        """Its SOP Instance UID."""
        return self.header.sop_instance_uid


@dataclass(frozen=True, kw_only=True)
class SeriesSummary:
    """One series found in a folder.

    Attributes:
        files: Sorted by name.
        is_ct: Whether it holds slices that can be read as a volume (no scouts alone).
    """

    series_instance_uid: str
    study_instance_uid: str
    sop_class_uid: str
    modality: str
    frame_of_reference: str
    is_ct: bool
    files: tuple[Path, ...]
    description: str = field(default="", repr=False)


def find_series(folder: Path) -> list[SeriesSummary]:
    """All DICOM series below a folder, in the order of their UIDs; other files are passed over.

    Raises:
        DicomError: A file is DICOM and broken.
    """
    slices, _ = _read_headers(_files(folder))
    return [_summary(uid, of_it) for uid, of_it in _by_series(slices).items()]


def read_ct_series(
    source: Path | Sequence[Path],
    *,
    series_uid: str | None = None,
    role: str = "CT series",
    allow_single: bool = False,
    limits: Limits = LIMITS,
    tolerances: Tolerances = TOLERANCES,
) -> Volume:
    """Reads a CT series as a volume in Hounsfield units, slices in order along their normal.

    Args:
        source: A folder (searched to the bottom), a file, or files; other files are passed over.
        series_uid: Which series; needed when there are several of CT.
        role: What errors call it, such as ``planning CT``.
        allow_single: Whether one slice alone may pass; it has no third spacing.
        limits: What a file and a series may cost.
        tolerances: What still counts as the same.

    Raises:
        IncompleteSeriesError: Slices are missing; names the two that enclose each gap.
        FrameMismatchError: The slices state more than one frame of reference.
        DicomError: No such series, or slices that do not make one volume, each with its reason.
    """
    slices, notes = _read_headers(_files(source))
    slices = _choose(slices, series_uid, role)
    reader = _SeriesReader(role=role, limits=limits, tolerances=tolerances, notes=notes)
    return reader.read(slices, allow_single=allow_single)


def _files(source: Path | Sequence[Path]) -> list[Path]:
    if not isinstance(source, Path):
        return sorted(source)
    if source.is_dir():
        found = (p for p in source.rglob("*") if p.is_file() and p.name != "DICOMDIR")
        return sorted(p for p in found if not p.name.startswith("."))
    return [source]


def _read_headers(paths: Iterable[Path]) -> tuple[list[Slice], list[str]]:
    """Headers of all DICOM files, and a note on those that are none."""
    slices, foreign = [], []
    for path in paths:
        try:
            slices.append(Slice(path, read_header(path)))
        except NotDicomError:
            foreign.append(path.name)
    notes = [f"{len(foreign)} files are not DICOM and were passed over"] if foreign else []
    return slices, notes


def _by_series(slices: Sequence[Slice]) -> dict[str, list[Slice]]:
    series = defaultdict(list)
    for s in slices:
        series[s.header.series_instance_uid].append(s)
    return {uid: series[uid] for uid in sorted(series)}


def _summary(uid: str, slices: Sequence[Slice]) -> SeriesSummary:
    first = slices[0].header
    return SeriesSummary(
        series_instance_uid=uid,
        study_instance_uid=first.study_instance_uid,
        sop_class_uid=first.sop_class_uid,
        modality=first.modality,
        frame_of_reference=first.frame_of_reference,
        is_ct=any(_is_ct(s.header) and not s.header.is_localizer for s in slices),
        files=tuple(s.path for s in slices),
        description=first.series_description,
    )


def _is_ct(header: Header) -> bool:
    return header.sop_class_uid in (CT_IMAGE, ENHANCED_CT)


def _choose(slices: Sequence[Slice], series_uid: str | None, role: str) -> list[Slice]:
    """The slices of the one series that is meant."""
    series = _by_series(slices)
    if series_uid is not None:
        if series_uid not in series:
            raise DicomError(
                f"the {role} is not here",
                tag=tag_name(0x0020000E),
                uid=series_uid,
                remedy=f"there is {', '.join(series) or 'no DICOM file at all'}",
            )
        return series[series_uid]
    volumes = [uid for uid, of_it in series.items() if _summary(uid, of_it).is_ct]
    if len(volumes) != 1:
        raise DicomError(
            f"{len(volumes)} series could be the {role}" if volumes else f"there is no {role}",
            tag=tag_name(0x0020000E),
            uid=", ".join(volumes),
            remedy="name one by its Series Instance UID"
            if volumes
            else "give a folder with CT Image Storage files",
        )
    return series[volumes[0]]


@dataclass(kw_only=True)
class _SeriesReader:
    """Turns the files of one series into a volume, step by step, collecting notes."""

    role: str
    limits: Limits
    tolerances: Tolerances
    notes: list[str]

    def read(self, slices: list[Slice], *, allow_single: bool) -> Volume:
        self._require_ct(slices)
        slices = self._without_localizers(slices)
        with Codec() as codec:
            slices = self._without_repeated_instances(slices, codec)
            self._require_one_kind(slices)
            slices, direction, offsets = self._in_order(slices, codec)
            if len(slices) == 1 and not allow_single:
                self._refuse(
                    "the {role} is one slice alone: the distance to the next is unknown",
                    slices[:1],
                    remedy="send all slices of the series",
                )
            self._require_no_gap(slices, offsets)
            grid = self._grid(slices, direction, offsets)
            values, observed, digest = self._hounsfield(slices, grid, codec)
        first = slices[0].header
        if not first.frame_of_reference:
            self.notes.append("no frame of reference is stated: nothing can be drawn on it")
        for note, count in Counter(n for s in slices for n in s.header.notes).items():
            self.notes.append(f"{note} ({count} files)")
        return Volume(
            values=values,
            grid=grid,
            frame_of_reference=first.frame_of_reference,
            observed=observed,
            source=SeriesSource(
                patient=first.patient,
                study=first.study,
                series_instance_uid=first.series_instance_uid,
                sop_class_uid=first.sop_class_uid,
                slices=tuple(
                    SliceSource(sop_instance_uid=s.uid, position_xyz_mm=_position(s))
                    for s in slices
                ),
                digest=digest,
                series_number=first.series_number,
                series_description=first.series_description,
                series_date=first.series_date,
                series_time=first.series_time,
                manufacturer=first.manufacturer,
                model=first.model,
                patient_position=first.patient_position,
                body_part=first.body_part,
                notes=tuple(self.notes),
            ),
        )

    def _refuse(
        self,
        cause: str,
        slices: Sequence[Slice],
        *,
        tag: str = "",
        remedy: str = "export the series again",
        kind: type[DicomError | IncompleteSeriesError | FrameMismatchError] = DicomError,
    ) -> NoReturn:
        raise kind(
            cause.format(role=self.role),
            tag=tag,
            uid=", ".join(f"SOP {s.uid}" for s in slices[:3]),
            file=slices[0].path.name if len(slices) == 1 else "",
            remedy=remedy,
        )

    def _require_ct(self, slices: Sequence[Slice]) -> None:
        for s in slices:
            if s.header.sop_class_uid == ENHANCED_CT:
                self._refuse(
                    "the {role} is a multi-frame Enhanced CT, which is not read",
                    [s],
                    tag=tag_name(0x00080016),
                    remedy="export it as single-frame CT Image Storage",
                )
            if s.header.sop_class_uid != CT_IMAGE or s.header.modality != "CT":
                self._refuse(
                    "the {role} holds an image that is not CT",
                    [s],
                    tag=f"{tag_name(0x00080016)}, {tag_name(0x00080060)}",
                    remedy="choose a series of CT Image Storage with Modality CT",
                )
            if s.header.pixels is None:
                self._refuse("a slice of the {role} has no pixels", [s])

    def _without_localizers(self, slices: list[Slice]) -> list[Slice]:
        kept = [s for s in slices if not s.header.is_localizer]
        if not kept:
            self._refuse("the {role} holds scout views alone", slices, tag=IMAGE_TYPE)
        if len(kept) < len(slices):
            self.notes.append(f"{len(slices) - len(kept)} scout views were left out")
        return kept

    def _without_repeated_instances(self, slices: list[Slice], codec: Codec) -> list[Slice]:
        kept: dict[str, Slice] = {}
        for s in slices:
            first = kept.setdefault(s.uid, s)
            if first is s:
                continue
            if not self._same_picture(first, s, codec) or first.header.plane != s.header.plane:
                self._refuse(
                    "two different images of the {role} carry one SOP Instance UID",
                    [first],
                    tag=tag_name(0x00080018),
                    remedy="ask the sender which of them is right",
                )
        if len(kept) < len(slices):
            self.notes.append(
                f"{len(slices) - len(kept)} files repeat an instance and were left out"
            )
        return list(kept.values())

    def _same_picture(self, first: Slice, second: Slice, codec: Codec) -> bool:
        one, other = (
            digest_of(read_stored(s.path, s.header, limits=self.limits, codec=codec))
            for s in (first, second)
        )
        return one == other

    def _require_one_kind(self, slices: Sequence[Slice]) -> None:
        """One patient, frame, size and spacing for all, and a plausible place for each."""
        self._require_shared(
            slices, "patient", tag_name(0x00100020), lambda h: h.patient.patient_id
        )
        studies = {s.header.study_instance_uid for s in slices}
        if len(studies) > 1:  # met in exports that make a study of each file
            self.notes.append(f"the slices name {len(studies)} studies; that of the first is kept")
        self._require_shared(
            slices, "frame of reference", FRAME, lambda h: h.frame_of_reference,
            kind=FrameMismatchError,
        )  # fmt: skip
        self._require_shared(
            slices,
            "image size",
            f"{tag_name(0x00280010)}, {tag_name(0x00280011)}",
            lambda h: (h.pixels.columns, h.pixels.rows) if h.pixels else None,
        )
        self._require_shared(
            slices,
            "rescale to Hounsfield units",
            f"{tag_name(0x00281052)}, {tag_name(0x00281053)}",
            lambda h: (h.plane.intercept is None, h.plane.slope is None),
        )
        for s in slices:
            self._require_place(s)
        self._require_alike(
            slices, "pixel spacing", SPACING, lambda p: p.spacing_yx_mm, self.tolerances.spacing_mm
        )
        self._require_alike(
            slices, "orientation", ORIENTATION, lambda p: p.orientation, self.tolerances.orientation
        )

    def _require_alike(
        self,
        slices: Sequence[Slice],
        what: str,
        tag: str,
        value: Callable[[ImagePlane], object],
        tolerance: float,
    ) -> None:
        """The same numbers for all slices, within a tolerance of the first one's."""
        numbers = np.array([value(s.header.plane) for s in slices], float)
        odd = np.flatnonzero((np.abs(numbers - numbers[0]) > tolerance).any(axis=1))
        if len(odd):
            self._refuse(
                f"the slices of the {{role}} have more than one {what}",
                [slices[int(k)] for k in odd],
                tag=tag,
            )

    def _require_shared(
        self,
        slices: Sequence[Slice],
        what: str,
        tag: str,
        value: Callable[[Header], object],
        *,
        kind: type[DicomError | FrameMismatchError] = DicomError,
    ) -> None:
        values = Counter(value(s.header) for s in slices)
        if len(values) > 1:
            rarest = min(values, key=lambda v: (values[v], str(v)))
            odd = [s for s in slices if value(s.header) == rarest]
            self._refuse(
                f"the slices of the {{role}} have more than one {what}: {len(odd)} of "
                f"{len(slices)} differ from the others",
                odd,
                tag=tag,
                kind=kind,
            )

    def _require_place(self, s: Slice) -> None:
        plane, limit = s.header.plane, self.tolerances
        for value, tag in (
            (plane.position_xyz_mm, POSITION),
            (plane.orientation, ORIENTATION),
            (plane.spacing_yx_mm, SPACING),
        ):
            if value is None:
                self._refuse("a slice of the {role} does not say where it lies", [s], tag=tag)
        if max(map(abs, plane.position_xyz_mm or ())) > limit.farthest_mm:
            self._refuse("a slice of the {role} lies beyond any patient", [s], tag=POSITION)
        spacing = plane.spacing_yx_mm or (0.0, 0.0)
        if min(spacing) <= 0 or max(spacing) > limit.largest_pixel_mm:
            self._refuse(
                f"pixels of {spacing[0]:g} x {spacing[1]:g} mm are impossible", [s], tag=SPACING
            )

    def _in_order(
        self, slices: list[Slice], codec: Codec
    ) -> tuple[list[Slice], Float[np.ndarray, "3 3"], Float[np.ndarray, " slices"]]:
        """Slices by position along the normal, without doubles; axes; positions along it."""
        direction = self._axes(slices[0])
        along = {id(s): float(_position(s) @ direction[:, 2]) for s in slices}
        ordered = sorted(slices, key=lambda s: (along[id(s)], s.uid))
        kept = ordered[:1]
        for s in ordered[1:]:
            if along[id(s)] - along[id(kept[-1])] > self.tolerances.same_place_mm:
                kept.append(s)
            elif not self._same_picture(kept[-1], s, codec):
                pair = {kept[-1].header.acquisition_number, s.header.acquisition_number}
                self._refuse(
                    "two different slices of the {role} lie at one position"
                    + (": it holds two acquisitions" if len(pair) > 1 else ""),
                    [kept[-1], s],
                    tag=f"{POSITION}, {tag_name(0x00200012)}",
                    remedy="export each acquisition as a series of its own",
                )
        if len(kept) < len(ordered):
            self.notes.append(
                f"{len(ordered) - len(kept)} slices repeat the one at their position and were "
                "left out"
            )
        offsets = np.array([along[id(s)] for s in kept])
        self._require_upright(kept, direction, offsets)
        return kept, direction, offsets - offsets[0]

    def _axes(self, s: Slice) -> Float[np.ndarray, "3 3"]:
        """Row axis, column axis and their cross product as columns, exactly orthonormal."""
        row, column = np.reshape(s.header.plane.orientation or (), (2, 3))
        error = float(np.abs([row @ row - 1, column @ column - 1, 2 * (row @ column)]).max()) / 2
        if not error <= self.tolerances.axis:
            self._refuse("the axes of the {role} are not orthonormal", [s], tag=ORIENTATION)
        if error > self.tolerances.axis_noted:
            self.notes.append(f"axes that were off unit length by {error:.1g} were set right")
        # The nearest orthonormal pair: neither axis is trusted more than the other.
        left, _, right = np.linalg.svd(np.column_stack((row, column)), full_matrices=False)
        row, column = (left @ right).T
        direction: np.ndarray = np.column_stack((row, column, np.cross(row, column)))
        return direction

    def _require_upright(
        self, slices: Sequence[Slice], direction: np.ndarray, offsets: np.ndarray
    ) -> None:
        """Refuses slices that are shifted against each other within their planes."""
        positions = np.array([_position(s) for s in slices])
        aside = (positions - positions[0]) @ direction[:, :2]
        drift = np.linalg.norm(aside, axis=1)
        way = offsets - offsets[0]
        limit = self.tolerances.drift_mm + self.tolerances.drift_fraction * way
        if (drift > limit).any():
            worst = int(np.argmax(drift - limit))
            angle = np.degrees(np.arctan2(drift[worst], way[worst]))
            self._refuse(
                f"the slices of the {{role}} are shifted sideways by {drift[worst]:.1f} mm over "
                f"{way[worst]:.0f} mm, as by a gantry tilt of {angle:.1f} degrees",
                [slices[worst]],
                tag=f"{POSITION}, {ORIENTATION}",
                remedy="export an untilted reconstruction",
            )

    def _require_no_gap(self, slices: Sequence[Slice], offsets: np.ndarray) -> None:
        gaps = np.diff(offsets)
        if not len(gaps):
            return
        median = float(np.median(gaps))
        wide = np.flatnonzero(gaps > self.tolerances.missing_gap * median).tolist()
        if not wide:
            return
        others = "all others" if np.ptp(np.delete(gaps, wide)) < 0.05 else "most others"
        named = " and ".join(
            f"slices {k + 1} and {k + 2} are {gaps[k]:.1f} mm apart" for k in wide[:2]
        )
        more = f" ({len(wide)} such gaps)" if len(wide) > 2 else ""
        self._refuse(
            f"{{role}}: {named}{more}, {others} {median:.1f} mm",
            [s for k in wide[:1] for s in (slices[k], slices[k + 1])],
            tag=POSITION,
            remedy="send the missing slice again or re-export the series",
            kind=IncompleteSeriesError,
        )

    def _grid(self, slices: Sequence[Slice], direction: np.ndarray, offsets: np.ndarray) -> Grid:
        first = slices[0].header
        assert first.pixels is not None
        assert first.plane.spacing_yx_mm is not None
        shape = (len(slices), first.pixels.rows, first.pixels.columns)
        size = shape[0] * max(s.header.pixels.native_bytes for s in slices if s.header.pixels)
        if len(slices) > self.limits.slices or size > self.limits.pixel_bytes:
            self._refuse(
                f"the {{role}} has {len(slices)} slices of {shape[2]} x {shape[1]}, more than "
                f"{self.limits.slices} slices or {self.limits.pixel_bytes >> 20} MiB",
                slices[:1],
                remedy="choose a smaller series",
            )
        grid = Grid(
            shape_zyx=shape,
            spacing_xy_mm=first.plane.spacing_yx_mm[::-1],
            origin_xyz_mm=_position(slices[0]),
            direction=direction,
            offsets_z_mm=offsets,
        )
        if not grid.is_even:
            self.notes.append(
                f"the slices are not evenly spaced: {grid.gaps_mm.min():.2f} to "
                f"{grid.gaps_mm.max():.2f} mm"
            )
        return grid

    def _hounsfield(
        self, slices: Sequence[Slice], grid: Grid, codec: Codec
    ) -> tuple[np.ndarray, np.ndarray | None, str]:
        """Values ``[z, y, x]`` in HU, where padding is not declared, and the series' digest."""
        values = np.empty(grid.shape_zyx, np.float32)
        padded = None
        if any(s.header.plane.padding for s in slices):
            padded = np.zeros(grid.shape_zyx, bool)

        def read(k: int) -> _Read:
            s = slices[k]
            stored = read_stored(s.path, s.header, limits=self.limits, codec=codec)
            slope, intercept = self._rescale(s)
            _rescaled(stored, slope, intercept, out=values[k])
            padding = self._padding(s.header.plane, slope, intercept)
            if padding is not None and padded is not None:
                _mark(stored, padding, out=padded[k])
            return _Read(
                digest=digest_of(stored),
                lowest_hu=float(stored.min()) * slope + intercept,
                highest_hu=float(stored.max()) * slope + intercept,
            )

        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(read, range(len(slices))))
        if any(s.header.plane.rescale_type not in ("", "HU") for s in slices):
            self.notes.append(f"{tag_name(0x00281054)} says that values are not HU")
        if slices[0].header.plane.slope is None:
            self.notes.append("no rescale to Hounsfield units: values are the stored ones")
        self._clamp(values, padded, slices, found)
        values.setflags(write=False)
        lines = (f"{s.uid} {r.digest}\n" for s, r in zip(slices, found, strict=True))
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        return values, None if padded is None else ~padded, digest

    def _rescale(self, s: Slice) -> tuple[float, float]:
        plane = s.header.plane
        if plane.slope is None and plane.intercept is None:
            return 1.0, 0.0
        slope, intercept = plane.slope, plane.intercept
        if slope is None or intercept is None or not 0 < slope < 1e3 or abs(intercept) > 1e5:
            self._refuse(
                "a slice of the {role} has an impossible rescale to Hounsfield units",
                [s],
                tag=f"{tag_name(0x00281052)}, {tag_name(0x00281053)}",
            )
        return slope, intercept

    def _padding(self, plane: ImagePlane, slope: float, intercept: float) -> tuple[int, int] | None:
        """The stored values that mean "no sample", unless tissue has them too."""
        if plane.padding is None:
            return None
        if slope * plane.padding[1] + intercept > self.tolerances.tissue_from_hu:
            note = "the declared padding value is one that tissue has: taken as tissue"
            if note not in self.notes:
                self.notes.append(note)
            return None
        return plane.padding

    def _clamp(
        self,
        values: np.ndarray,
        padded: np.ndarray | None,
        slices: Sequence[Slice],
        found: Sequence[_Read],
    ) -> None:
        """Padding becomes air, in place; what lies below air without being declared is noted."""
        highest = max(r.highest_hu for r in found)
        if not highest <= self.tolerances.highest_hu:
            self._refuse(
                f"values of the {{role}} reach {highest:.0f} HU: their sign is stored wrong",
                slices[:1],
                tag=tag_name(0x00280103),
            )
        air = np.float32(self.tolerances.air_hu)
        if padded is not None:
            values[padded] = air
        if min(r.lowest_hu for r in found) < air:
            below = values < air
            if below.any():
                self.notes.append(
                    f"{100 * below.mean():.1f} % of the values lay below {air:g} HU (down to "
                    f"{values.min():.0f}) and were set to it"
                )
                values[below] = air


class _Read(NamedTuple):
    """What reading one slice's pixels told."""

    digest: str
    lowest_hu: float
    highest_hu: float


def _rescaled(stored: Stored, slope: float, intercept: float, *, out: np.ndarray) -> None:
    """``slope * stored + intercept`` as float32, in place."""
    out[...] = stored
    if slope != 1.0:
        out *= np.float32(slope)
    if intercept != 0.0:
        out += np.float32(intercept)


def _position(s: Slice) -> Float[np.ndarray, " 3"]:
    return np.array(s.header.plane.position_xyz_mm, float)


def _mark(stored: Stored, padding: tuple[int, int], *, out: np.ndarray) -> None:
    """Sets ``out`` where a stored value is padding."""
    lowest, highest = padding
    if lowest == highest:
        np.equal(stored, lowest, out=out)
    else:
        np.logical_and(stored >= lowest, stored <= highest, out=out)
