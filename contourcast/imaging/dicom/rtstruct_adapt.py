"""A structure set that we wrote, written anew as another system imports it; the same geometry.

Coordinates are carried over as text, digit for digit. What may change is how long names are,
whether a hole is cut open or a loop of its own, and how numbers and letters are encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pydicom import Dataset, dcmread
from pydicom.charset import default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from contourcast.imaging.dicom.modules import DS_BYTES, SH_BYTES, cut, save
from contourcast.imaging.dicom.rtstruct_out import CONTOUR_DATA, NAME_BYTES, Holes, written_names
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.errors import GeometryError

LATIN_1: Final = "ISO_IR 100"
# Of an element whose length is told in 16 bits (PS3.5 §7.1.2); more cannot be DS in Explicit VR.
EXPLICIT_BYTES: Final = 0xFFFE
TEXT_VRS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})

Point = tuple[bytes, ...]


def adapt_structure_set(
    path: Path,
    into: Path,
    *,
    name_bytes: int = NAME_BYTES,
    holes: Holes = "keyhole",
    points_at_most: int | None = None,
    explicit: bool = False,
    charset: str = "ISO_IR 192",
) -> str:
    """Writes one of our structure sets, whose holes are cut open, in another manner.

    One whose names or loops differ is another instance, with a UID that follows from the first's
    and from what was asked for; one that differs in its encoding alone is the same instance.

    Args:
        path: As `write_structure_set` wrote it, with ``holes="keyhole"``.
        into: The new file; the same input gives the same bytes.
        name_bytes: Length of ROI names.
        holes: ``xor``: each loop that is cut open falls into its outline and its holes.
        points_at_most: Of a loop.
        explicit: Explicit VR Little Endian instead of Implicit.
        charset: ISO_IR 100 is used where all text can be written in it.

    Returns:
        The SOP Instance UID of the new file.

    Raises:
        GeometryError: A loop has more points than are allowed, or than Explicit VR can hold.
    """
    dataset = dcmread(path)
    renamed = _rename(dataset, name_bytes)
    opened = _split_holes(dataset) if holes == "xor" else False
    _require_short(dataset, points_at_most, EXPLICIT_BYTES if explicit else None)
    if charset == LATIN_1:
        _as_latin_1(dataset)
    if renamed or opened:
        manner = f"structure set of {name_bytes} bytes, {holes}"
        uid = UID(derived_uid(str(dataset.SOPInstanceUID), manner))
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.file_meta.TransferSyntaxUID = (
        ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    )
    save(into, dataset)
    return str(dataset.SOPInstanceUID)


def _rename(dataset: Dataset, name_bytes: int) -> bool:
    """Shortens names where they are longer; whether any was."""
    items = dataset.StructureSetROISequence
    names = written_names([str(item.ROIName) for item in items], bytes_at_most=name_bytes)
    by_number = {int(i.ROINumber): name for i, name in zip(items, names, strict=True)}
    if all(item.ROIName == name for item, name in zip(items, names, strict=True)):
        return False
    for item, name in zip(items, names, strict=True):
        item.ROIName = name
    for item in dataset.RTROIObservationsSequence:
        item.ROIObservationLabel = cut(by_number[int(item.ReferencedROINumber)], SH_BYTES)
    return True


def _split_holes(dataset: Dataset) -> bool:
    """Makes outline and holes of each loop that is cut open; whether there was one."""
    found = False
    for roi in dataset.ROIContourSequence:
        contours: list[Dataset] = []
        for item in roi.get("ContourSequence", ()):
            loops = split(_points(item))
            found = found or len(loops) > 1
            contours += [_with_points(item, loop) for loop in loops] if len(loops) > 1 else [item]
        for number, item in enumerate(contours, 1):
            item.ContourNumber = number
        if contours:
            roi.ContourSequence = contours
    return found


def split(points: Sequence[Point]) -> list[list[Point]]:
    """The loops of which a loop consists that comes to a point twice; the one it begins on first.

    Every edge stays but those of the cuts, which are run through once in each direction and
    enclose nothing.
    """
    loops: list[list[Point]] = []
    way: list[Point] = []
    place: dict[Point, int] = {}
    for point in [*points, points[0]]:
        if point in place:
            start = place[point]
            loop = way[start:]
            for left in loop[1:]:
                del place[left]
            del way[start + 1 :]
            if len(loop) > 2:
                loops.insert(0, loop)
        else:
            place[point] = len(way)
            way.append(point)
    return loops


def _with_points(item: Dataset, points: Sequence[Point]) -> Dataset:
    """The same contour item, of other points."""
    content = _even(b"\\".join(value for point in points for value in point))
    copy = Dataset()
    for tag in ("ContourImageSequence", "ContourGeometricType"):
        copy[tag] = item[tag]
    copy.NumberOfContourPoints = len(points)
    copy[CONTOUR_DATA] = RawDataElement(
        CONTOUR_DATA, "DS", len(content), content, 0, is_implicit_VR=True, is_little_endian=True
    )
    copy.set_original_encoding(True, True, default_encoding)
    return copy


def _even(content: bytes) -> bytes:
    """Of even length by one more digit, where one has room; else by a blank."""
    if len(content) % 2 == 0:
        return content
    values = content.split(b"\\")
    for n, value in enumerate(values):
        if b"." in value and b"e" not in value and len(value) < DS_BYTES:
            values[n] = value + b"0"
            return b"\\".join(values)
    return content + b" "


def _points(item: Dataset) -> list[Point]:
    values = _content(item).rstrip(b" \0").split(b"\\")
    x, y, z = (values[axis::3] for axis in range(3))
    return list(zip(x, y, z, strict=True))


def _content(item: Dataset) -> bytes:
    """The text of a contour's coordinates, as it is in the file."""
    raw = item.get_item(CONTOUR_DATA)
    assert isinstance(raw, RawDataElement), "nothing here parses coordinates"
    return raw.value or b""


def _require_short(dataset: Dataset, points_at_most: int | None, bytes_at_most: int | None) -> None:
    for item in _contours(dataset):
        if points_at_most is not None and int(item.NumberOfContourPoints) > points_at_most:
            why = f"more than the {points_at_most} that its destination takes"
        elif bytes_at_most is not None and len(_content(item)) > bytes_at_most:
            why = "more than Explicit VR Little Endian can hold"
        else:
            continue
        raise GeometryError(
            f"a loop has {int(item.NumberOfContourPoints)} points, {why}",
            tag="(3006,0050) Contour Data",
            uid=str(dataset.SOPInstanceUID),
            remedy="change the profile of the destination: points_at_most, transfer_syntax",
        )


def _contours(dataset: Dataset) -> Iterator[Dataset]:
    for roi in dataset.ROIContourSequence:
        yield from roi.get("ContourSequence", ())


def _as_latin_1(dataset: Dataset) -> None:
    """Declares Latin-1, if all text can be written so."""
    try:
        for text in _texts(dataset):
            text.encode("latin-1")
    except UnicodeEncodeError:
        return
    dataset.SpecificCharacterSet = LATIN_1


def _texts(dataset: Dataset) -> Iterator[str]:
    """Every text, decoded, so that it is encoded anew; contours hold none."""
    for element in dataset:
        if element.VR == "SQ" and element.keyword != "ROIContourSequence":
            for item in element.value:
                yield from _texts(item)
        elif element.VR in TEXT_VRS:
            values = element.value if isinstance(element.value, MultiValue) else [element.value]
            yield from map(str, values)
