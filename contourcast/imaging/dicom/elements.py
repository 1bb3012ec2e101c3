"""The structure of a DICOM file, read within limits: bytes to elements, nothing yet interpreted.

Written for files that nobody has checked: every length is compared with what is there before it
is believed, nesting and numbers of elements are counted, and pixels are located, never read.
A general DICOM library parses first and asks later, which a hostile or damaged file turns into
hundreds of megabytes or a half-read object (CLINICAL_SERVICE §5.2).
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TypeAlias

from pydicom._dicom_dict import DicomDictionary
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_description
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import PersonName

from contourcast.imaging.errors import DicomError, NotDicomError

Source: TypeAlias = "Path | bytes | BinaryIO"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one file may cost (CLINICAL_SERVICE §5.2, unless said).

    Attributes:
        header_bytes: All that stands before the pixels.
        object_bytes: A whole object without pixels: the largest structure set of the test data
            has 3.3 MB; 40 ROIs on 300 slices at 200 points a contour make 60 MB.
        elements: Counted through all nesting; objects without pixels may have five times as many
            (those 40 ROIs: 7 elements for each of 24 000 contours).
        inflated_bytes: What a deflated file may become.
        inflate_ratio: The most it may grow by, above `harmless_bytes`.
        harmless_bytes: A blank slice of 1024 x 1024 deflates a thousandfold and hurts nobody.
        rows_columns: The longer side of an image.
        pixel_bytes: Of an image or of a series, once decoded.
        slices: Of a series.
    """

    header_bytes: int = 8 << 20
    object_bytes: int = 128 << 20
    elements: int = 200_000
    nesting: int = 8
    inflated_bytes: int = 64 << 20
    inflate_ratio: int = 50
    harmless_bytes: int = 4 << 20
    rows_columns: int = 2048
    pixel_bytes: int = 1 << 30
    slices: int = 2000


LIMITS: Final = Limits()

# A CT header of the test data has 2 to 12 kB; one read of this size holds nearly all of them.
FIRST_READ_BYTES: Final = 64 << 10
PREAMBLE_BYTES: Final = 132  # PS3.10 §7.1
UNDEFINED: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
TRAILING_PADDING: Final = 0xFFFCFFFC  # PS3.10 §7.2
TRANSFER_SYNTAX: Final = 0x00020010
CHARACTER_SET: Final = 0x00080005
# Pixel Data, Float Pixel Data, Double Float Pixel Data: reading ends where one of them begins.
PIXEL_DATA: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
# PS3.5 Table 7.1-1 and 7.1-2: value representations with a length of four bytes and of two.
LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT_VRS: Final = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)
SEQUENCES: Final = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")
# Objects that are all attributes and no pixels: RT Structure Set, RT Plan, (Deformable) Spatial
# Registration.
LARGE_OBJECTS: Final = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.481.3",
        "1.2.840.10008.5.1.4.1.1.481.5",
        "1.2.840.10008.5.1.4.1.1.66.1",
        "1.2.840.10008.5.1.4.1.1.66.3",
    }
)
UID_FORM: Final = re.compile(r"[0-9][0-9.]{0,63}")
# Of each of several names: component groups that hold nothing, and padding.
NULL_GROUPS: Final = re.compile(r"[= ]+(?=\\|\Z)")


class Element(NamedTuple):
    """One attribute: its value representation (empty when implicit) and its bytes or items."""

    vr: str
    value: bytes | tuple[Elements, ...]


Elements: TypeAlias = "dict[int, Element]"


@dataclass(frozen=True, kw_only=True, eq=False)
class Attributes:
    """Elements of one level, with the reading that each kind of value needs.

    Every reader returns None or an empty text when the attribute is absent or empty, and raises
    DicomError with tag and file when it is there and malformed.
    """

    elements: Elements = field(repr=False)
    file: str
    little_endian: bool = True
    encodings: tuple[str, ...] = field(default=("iso8859",), repr=False)

    def __contains__(self, tag: int) -> bool:
        return tag in self.elements

    def raw(self, tag: int) -> bytes:
        """The value's bytes without padding."""
        element = self.elements.get(tag)
        if element is None:
            return b""
        if not isinstance(element.value, bytes):
            raise self.error("is a sequence where a value is expected", tag)
        return element.value.strip(b" \0")

    def words(self, tag: int) -> tuple[str, ...]:
        """Code strings, dates and the like: ASCII, several values."""
        value = self.raw(tag).decode("ascii", "replace")
        return tuple(word.strip(" \0") for word in value.split("\\")) if value else ()

    def word(self, tag: int) -> str:
        """The first of them."""
        return next(iter(self.words(tag)), "")

    def uid(self, tag: int, *, required: bool = False) -> str:
        """A UID, padding of NUL or (wrong, but met) space removed."""
        uid = self.raw(tag).decode("ascii", "replace")
        if not uid and not required:
            return ""
        if not UID_FORM.fullmatch(uid):
            raise self.error("is missing" if not uid else "is not a UID", tag)
        return uid

    def text(self, tag: int) -> str:
        """Free text in Unicode, decoded as Specific Character Set says."""
        value = self.raw(tag)
        if value.isascii() and b"\x1b" not in value:
            return value.decode("ascii")
        with warnings.catch_warnings():  # a character that cannot be decoded becomes U+FFFD
            warnings.simplefilter("ignore")
            return decode_bytes(value, list(self.encodings), {0x09, 0x0A, 0x0C, 0x0D, 0x5C})

    def person(self, tag: int) -> str:
        """A person's name in Unicode, component groups kept apart by ``=``, no null ones last."""
        value = self.raw(tag)
        if value.isascii() and b"\x1b" not in value:
            return without_null_groups(value.decode("ascii"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return without_null_groups(str(PersonName(value, list(self.encodings))))

    def numbers(self, tag: int, *, count: int = 0) -> tuple[float, ...] | None:
        """Decimal or integer strings as finite numbers, exactly ``count`` of them if given."""
        value = self.raw(tag)
        if not value:
            return None
        try:
            numbers = tuple(map(float, value.split(b"\\")))
        except ValueError as error:
            raise self.error("holds something that is no number", tag) from error
        if b"_" in value or not all(map(math.isfinite, numbers)):
            raise self.error("holds something that is no number", tag)
        if count and len(numbers) != count:
            raise self.error(f"holds {len(numbers)} numbers instead of {count}", tag)
        return numbers

    def number(self, tag: int) -> float | None:
        """One such number."""
        numbers = self.numbers(tag, count=1)
        return None if numbers is None else numbers[0]

    def integer(self, tag: int) -> int | None:
        """One integer string."""
        number = self.number(tag)
        if number is None:
            return None
        if number != int(number):
            raise self.error("is not a whole number", tag)
        return int(number)

    def binary(self, tag: int, *, signed: bool = False) -> int | None:
        """A binary integer of two or four bytes (US, SS, UL, SL)."""
        element = self.elements.get(tag)
        if element is None or not element.value:
            return None
        if not isinstance(element.value, bytes) or len(element.value) not in (2, 4):
            raise self.error("is not one binary integer", tag)
        return int.from_bytes(
            element.value, "little" if self.little_endian else "big", signed=signed
        )

    def items(self, tag: int) -> tuple[Attributes, ...]:
        """The items of a sequence; none when it is absent or empty."""
        element = self.elements.get(tag)
        if element is None or not element.value:
            return ()
        if isinstance(element.value, bytes):
            raise self.error("is a value where a sequence is expected", tag)
        return tuple(
            Attributes(
                elements=item,
                file=self.file,
                little_endian=self.little_endian,
                encodings=_encodings(item) or self.encodings,
            )
            for item in element.value
        )

    def error(self, cause: str, tag: int, **where: str) -> DicomError:
        """A refusal that names attribute and file."""
        return DicomError(f"the attribute {cause}", tag=tag_name(tag), file=self.file, **where)


class Parsed(NamedTuple):
    """A file's attributes and the place of its pixels.

    Attributes:
        pixel_start: Where the value of the pixel data begins, in the data set (after inflation);
            None when there is none.
        pixel_length: Bytes; None when encapsulated.
        deflated_from: Where the deflated data set begins in the file; None when it is not.
    """

    attributes: Attributes
    media_class: str
    transfer_syntax: str
    pixel_start: int | None
    pixel_length: int | None
    deflated_from: int | None
    notes: tuple[str, ...]


def tag_name(tag: int) -> str:
    """``(0028,0030) Pixel Spacing``."""
    number = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
    try:
        return f"{number} {dictionary_description(tag)}"
    except KeyError:
        return number


def read_elements(source: Source, *, file: str = "", limits: Limits = LIMITS) -> Parsed:
    """Reads all attributes of a file, up to its pixels.

    Args:
        source: A path, the bytes themselves, or a seekable binary stream.
        file: Its name, for errors; a path brings its own.
        limits: What it may cost.

    Raises:
        NotDicomError: It is not a DICOM file at all.
        DicomError: It is one, but broken, cut short, or beyond the limits.
    """
    with opened(source, file) as (stream, name):
        size = stream.seek(0, io.SEEK_END)
        most = limits.header_bytes
        for bound in (FIRST_READ_BYTES, limits.header_bytes, limits.object_bytes):
            stream.seek(0)
            data = stream.read(min(size, bound))
            reader = _Reader(data=data, size=size, file=name, limits=limits)
            try:
                return reader.read(stream)
            except _MoreNeededError:
                if reader.media_class in LARGE_OBJECTS:
                    most = limits.object_bytes
                if bound >= most:
                    break
    raise DicomError(
        f"the attributes take more than {most >> 20} MiB",
        file=name,
        remedy="export the object again without private attachments",
    )


@contextmanager
def opened(source: Source, file: str = "") -> Iterator[tuple[BinaryIO, str]]:
    """The source as a stream, and the name by which errors may call it.

    Raises:
        NotDicomError: The path is no file that can be opened.
    """
    if isinstance(source, bytes):
        yield io.BytesIO(source), file
    elif isinstance(source, Path):
        if not source.is_file():  # a pipe or a device would block or never end
            raise NotDicomError("this is not a file", file=source.name)
        try:
            stream = source.open("rb", buffering=0)
        except OSError as error:
            raise NotDicomError(
                f"the file cannot be opened: {error.strerror}", file=source.name
            ) from error
        with stream:
            yield stream, file or source.name
    else:
        yield source, file


def inflate(stream: BinaryIO, start: int, *, file: str, limits: Limits = LIMITS) -> bytes:
    """The deflated data set that begins at ``start``, counted while it grows.

    Raises:
        DicomError: It is damaged, or grows beyond the limits.
    """
    size = stream.seek(0, io.SEEK_END) - start
    most = min(limits.inflated_bytes, max(limits.harmless_bytes, size * limits.inflate_ratio))
    stream.seek(start)
    deflated = stream.read(min(size, limits.inflated_bytes))
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = engine.decompress(deflated, most + 1)
    except zlib.error as error:
        raise DicomError(
            "the deflated data set is damaged", file=file, remedy="send the file again"
        ) from error
    if len(data) > most:
        raise DicomError(
            f"the deflated data set grows beyond {most >> 20} MiB",
            tag=tag_name(TRANSFER_SYNTAX),
            file=file,
            remedy="send it in Explicit VR Little Endian",
        )
    if not engine.eof:
        raise DicomError(
            "the deflated data set is cut short", file=file, remedy="send the file again"
        )
    return data


class _MoreNeededError(Exception):
    """The part of the file that was read ends before the attributes do."""


@dataclass(kw_only=True)
class _Reader:
    """Walks the elements of a file of which ``data`` is the beginning and ``size`` the length."""

    data: bytes
    size: int
    file: str
    limits: Limits
    media_class: str = ""
    count: int = 0
    little: str = "<"

    def read(self, stream: BinaryIO) -> Parsed:
        start, notes = 0, []
        if self.data[PREAMBLE_BYTES - 4 : PREAMBLE_BYTES] == b"DICM":
            start = PREAMBLE_BYTES
        elif _looks_like_a_data_set(self.data):
            notes.append("no preamble: read as a bare data set")
        else:
            raise NotDicomError("this is not a DICOM file", file=self.file)
        if start == self.size:
            raise NotDicomError("this DICOM file holds nothing", file=self.file)
        meta, start = self._meta(start)
        self.media_class = meta.uid(0x00020002)
        syntax = meta.uid(TRANSFER_SYNTAX)
        if not syntax:
            syntax = self._guessed_syntax(start)
            notes.append(f"no transfer syntax stated: read as {syntax}")
        deflated_from = start if syntax == DeflatedExplicitVRLittleEndian else None
        if deflated_from is not None:
            self.data = inflate(stream, start, file=self.file, limits=self.limits)
            start, self.size = 0, len(self.data)
        elif not _is_known(syntax):
            raise DicomError(
                "the transfer syntax is unknown",
                tag=tag_name(TRANSFER_SYNTAX),
                uid=syntax,
                file=self.file,
                remedy="send it in Explicit VR Little Endian",
            )
        self.little = ">" if syntax == ExplicitVRBigEndian else "<"
        self.count = 0
        explicit = syntax != ImplicitVRLittleEndian
        elements, position = self._elements(start, self.size, 0, explicit)
        if not elements:
            raise NotDicomError("this DICOM file holds nothing", file=self.file)
        attributes = Attributes(
            elements=elements,
            file=self.file,
            little_endian=self.little == "<",
            encodings=_encodings(elements) or ("iso8859",),
        )
        pixel_start, pixel_length = self._pixels(position, explicit)
        return Parsed(
            attributes=attributes,
            media_class=self.media_class,
            transfer_syntax=syntax,
            pixel_start=pixel_start,
            pixel_length=pixel_length,
            deflated_from=deflated_from,
            notes=tuple(notes),
        )

    def _meta(self, position: int) -> tuple[Attributes, int]:
        """File meta information (group 0002, always Explicit VR Little Endian)."""
        meta, position = self._elements(position, self.size, 0, True, group_alone=0x0002)
        return Attributes(elements=meta, file=self.file), position

    def _guessed_syntax(self, position: int) -> str:
        explicit = self.data[position + 4 : position + 6] in LONG_VRS | SHORT_VRS
        return str(ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian)

    def _elements(
        self,
        position: int,
        stop: int,
        depth: int,
        explicit: bool,
        *,
        delimited: bool = False,
        group_alone: int | None = None,
    ) -> tuple[Elements, int]:
        """Elements up to ``stop``, to the item's delimiter, to the pixels or to another group.

        One flat loop, since most of the time of reading a series is spent in it.
        """
        elements: Elements = {}
        data = self.data
        have, most = min(stop, len(data)), self._most_elements()
        head = struct.Struct(f"{self.little}HH2sH" if explicit else f"{self.little}HHI").unpack_from
        long_length = struct.Struct(f"{self.little}I").unpack_from
        while position < stop:
            if position + 8 > have:
                raise self._more(position, 8, stop)
            group, number, *rest = head(data, position)
            tag = group << 16 | number
            if tag in PIXEL_DATA and depth == 0:
                return elements, position
            if tag == ITEM_END and delimited:
                return elements, position + 8
            if group_alone is not None and group != group_alone:
                return elements, position
            if tag == TRAILING_PADDING and depth == 0:
                return elements, stop
            value = position + 8
            if explicit:
                vr, length = rest
                if vr in LONG_VRS:
                    if value + 4 > have:
                        raise self._more(position, 12, stop)
                    (length,) = long_length(data, value)
                    value += 4
                elif vr not in SHORT_VRS:
                    raise self._damaged("an element has no known value representation", tag)
            else:
                vr, (length,) = b"", rest
            self.count += 1
            if self.count > most:
                raise self._too_many(tag)
            if tag in elements or group == 0xFFFE:
                raise self._damaged("an element stands twice or at a wrong place", tag)
            if length == UNDEFINED and vr in (b"OB", b"OW"):
                position = self._skip_fragments(value, stop, tag)
                elements[tag] = Element(vr.decode(), b"")
            elif length == UNDEFINED or (vr == b"SQ" or (vr in (b"", b"UN") and tag in SEQUENCES)):
                # UN holds a sequence in Implicit VR (PS3.5 §6.2.2, note on UN)
                inner = explicit and vr == b"SQ"
                items, position = self._sequence(value, stop, length, depth + 1, inner, tag)
                elements[tag] = Element("SQ", items)
            else:
                position = value + length
                if position > stop:
                    raise self._cut(value, tag)
                if position > have:
                    raise _MoreNeededError
                elements[tag] = Element(vr.decode(), data[value:position])
        if delimited:
            raise self._cut(position)
        return elements, position

    def _skip_fragments(self, position: int, stop: int, tag: int) -> int:
        """Over an encapsulated value that is not the image itself, such as an icon's."""
        while True:
            if position + 8 > min(stop, len(self.data)):
                raise self._more(position, 8, stop)
            group, number, length = struct.unpack_from(f"{self.little}HHI", self.data, position)
            position += 8
            if group << 16 | number == SEQUENCE_END:
                return position
            if group << 16 | number != ITEM or position + length > stop:
                raise self._cut(position, tag)
            position += length

    def _sequence(
        self, position: int, stop: int, length: int, depth: int, explicit: bool, tag: int
    ) -> tuple[tuple[Elements, ...], int]:
        """The items of a sequence, of defined or undefined length."""
        if depth > self.limits.nesting:
            raise self._hostile(f"sequences nest deeper than {self.limits.nesting}", tag)
        end = stop if length == UNDEFINED else position + length
        if end > stop:
            raise self._cut(position, tag)
        items: list[Elements] = []
        head = struct.Struct(f"{self.little}HHI").unpack_from
        while position < end:
            if position + 8 > min(end, len(self.data)):
                raise self._more(position, 8, end)
            group, number, size = head(self.data, position)
            mark = group << 16 | number
            position += 8
            if mark == SEQUENCE_END and length == UNDEFINED:
                return tuple(items), position
            if mark != ITEM:
                raise self._damaged("something other than an item stands in a sequence", tag)
            self.count += 1
            if self.count > self._most_elements():
                raise self._too_many(tag)
            delimited = size == UNDEFINED
            item_end = end if delimited else position + size
            if item_end > end:
                raise self._cut(position, tag)
            item, position = self._elements(
                position, item_end, depth, explicit, delimited=delimited
            )
            items.append(item)
        if length == UNDEFINED:
            raise self._cut(position, tag)
        return tuple(items), position

    def _pixels(self, position: int, explicit: bool) -> tuple[int | None, int | None]:
        """Where the pixels begin and how long they are (None: encapsulated)."""
        if position >= self.size:
            return None, None
        header = 12 if explicit else 8
        if position + header > len(self.data):
            raise self._more(position, header, self.size)
        if position > self.limits.header_bytes:
            raise _MoreNeededError
        (length,) = struct.unpack_from(f"{self.little}I", self.data, position + header - 4)
        if length == UNDEFINED:
            return position + header, None
        if position + header + length > self.size:
            raise self._cut(position, 0x7FE00010)
        return position + header, length

    def _most_elements(self) -> int:
        return self.limits.elements * (5 if self.media_class in LARGE_OBJECTS else 1)

    def _more(self, position: int, needed: int, stop: int) -> Exception:
        """Bytes that are needed and not there: in the file (then more is read), or nowhere."""
        if position + needed > min(stop, self.size):
            return self._cut(position)
        return _MoreNeededError()

    def _cut(self, position: int, tag: int = 0) -> DicomError:
        return self._damaged(f"the file is cut short or broken at byte {position}", tag)

    def _damaged(self, cause: str, tag: int) -> DicomError:
        where = tag_name(tag) if tag else ""
        return DicomError(cause, tag=where, file=self.file, remedy="send the file again")

    def _too_many(self, tag: int) -> DicomError:
        return self._hostile(f"there are more than {self._most_elements()} elements", tag)

    def _hostile(self, cause: str, tag: int) -> DicomError:
        return DicomError(
            cause, tag=tag_name(tag), file=self.file, remedy="export it without private attachments"
        )


def _looks_like_a_data_set(data: bytes) -> bool:
    """Whether a file without preamble begins as a little-endian data set or meta header does."""
    if len(data) < 8 or data[:2] not in (b"\x02\x00", b"\x08\x00") or data[3] != 0:
        return False
    explicit = data[4:6] in LONG_VRS | SHORT_VRS
    return explicit or int.from_bytes(data[4:8], "little") < 256


def _is_known(syntax: str) -> bool:
    native = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian}
    return syntax in native or syntax.startswith(("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5"))


def _encodings(elements: Elements) -> tuple[str, ...]:
    element = elements.get(CHARACTER_SET)
    if element is None or not isinstance(element.value, bytes) or not element.value:
        return ()
    return _python_encodings(element.value)


@lru_cache(maxsize=64)
def _python_encodings(value: bytes) -> tuple[str, ...]:
    names = [name.strip(" \0") for name in value.decode("ascii", "replace").split("\\")]
    with warnings.catch_warnings():  # an unknown name falls back to the default repertoire
        warnings.simplefilter("ignore")
        try:
            return tuple(convert_encodings(names))
        except (LookupError, ValueError):
            return ("iso8859",)


def without_null_groups(name: str) -> str:
    """A person's name without the null component groups at its end.

    They may be left out with their ``=`` (PS3.5 §6.2.1.1), and some writers do so, pydicom too.
    """
    return NULL_GROUPS.sub("", name)
