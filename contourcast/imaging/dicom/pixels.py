"""Decoded pixels of one image, bounded; and their digest.

Native pixels are a view of the file's bytes. Compressed ones are decoded by other people's C
code, so in a child process with limits of memory and time: a stream that crashes a codec costs
one error, not the service (CLINICAL_SERVICE §5.2).
"""

from __future__ import annotations

import hashlib
import io
from contextlib import nullcontext
from typing import Final

import numpy as np
from jaxtyping import Integer
from pydicom.uid import ExplicitVRBigEndian

from contourcast.imaging.dicom.codec import Codec
from contourcast.imaging.dicom.elements import LIMITS, Limits, Source, inflate, opened, tag_name
from contourcast.imaging.dicom.instance import Header, PixelFormat, read_header
from contourcast.imaging.errors import DicomError

PIXEL_DATA: Final = "(7FE0,0010) Pixel Data"
# A lossless codec never doubles an image; the rest is for offset tables and fragment headers.
MOST_ENCODED_PER_NATIVE: Final = 2
ENCODED_OVERHEAD_BYTES: Final = 64 << 10
DTYPES: Final = {8: "u1", 16: "u2", 32: "u4"}

Stored = Integer[np.ndarray, "y x"]


def pixel_digest(
    source: Source, *, file: str = "", limits: Limits = LIMITS, codec: Codec | None = None
) -> str:
    """SHA-256 (hex) of the decoded pixels: equal for the same image in any transfer syntax.

    Args:
        source: A path, bytes, or a seekable binary stream.
        file: The name for errors where the source has none.
        limits: What it may cost.
        codec: A decoder to use again; without one, each compressed image starts its own.

    Raises:
        DicomError: There are no pixels, they are cut short or cannot be decoded.
    """
    header = read_header(source, file=file, limits=limits)
    return digest_of(read_stored(source, header, limits=limits, codec=codec))


def digest_of(stored: Stored) -> str:
    """SHA-256 (hex) over shape and little-endian samples."""
    digest = hashlib.sha256(f"{stored.shape} {8 * stored.itemsize} bits".encode())
    digest.update(np.ascontiguousarray(stored, stored.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def read_stored(
    source: Source, header: Header, *, limits: Limits = LIMITS, codec: Codec | None = None
) -> Stored:
    """The stored values of a single-frame grey image, shape (rows, columns), integer.

    Bits outside of the stored ones (old overlays) are cleared, the sign is extended.

    Raises:
        DicomError: Not such an image, cut short, or not decodable.
    """
    image = header.pixels
    if image is None or image.frames != 1 or image.samples != 1:
        raise DicomError(
            "this is not one grey image", tag=PIXEL_DATA, uid=header.sop_instance_uid,
            file=header.file,
        )  # fmt: skip
    if image.bits_allocated not in DTYPES:
        raise DicomError(
            f"images of {image.bits_allocated} bits are not read",
            tag=tag_name(0x00280100),
            uid=header.sop_instance_uid,
            file=header.file,
        )
    data = _pixel_bytes(source, header, image, limits)
    dtype = np.dtype(DTYPES[image.bits_allocated])
    if image.length is None:
        with Codec() if codec is None else nullcontext(codec) as decoder:
            data = decoder.decode(data, header)
    elif header.transfer_syntax == ExplicitVRBigEndian:
        dtype = dtype.newbyteorder(">")
    stored = np.frombuffer(data, dtype, image.rows * image.columns)
    return _clean(stored.reshape(image.rows, image.columns), image)


def _pixel_bytes(source: Source, header: Header, image: PixelFormat, limits: Limits) -> bytes:
    """The value of the pixel data: all of a native one, an encapsulated one to the file's end."""
    most = MOST_ENCODED_PER_NATIVE * image.native_bytes + ENCODED_OVERHEAD_BYTES
    wanted = image.native_bytes if image.length is not None else most + 1
    if image.length is not None and not 0 <= image.length - wanted <= 1:  # one byte pads
        raise DicomError(
            f"{image.length} bytes of pixels, and {image.columns} x {image.rows} need {wanted}",
            tag=PIXEL_DATA,
            uid=header.sop_instance_uid,
            file=header.file,
            remedy="send the file again",
        )
    with opened(source, header.file) as (stream, name):
        if image.deflated_from is not None:
            stream = io.BytesIO(inflate(stream, image.deflated_from, file=name, limits=limits))
        stream.seek(image.start)
        data = stream.read(wanted)
    if image.length is None and len(data) > most:
        raise DicomError(
            "the compressed pixels are more than twice the decoded ones",
            tag=PIXEL_DATA,
            uid=header.sop_instance_uid,
            file=header.file,
        )
    if image.length is not None and len(data) < wanted:
        raise DicomError(
            "the pixels are cut short", tag=PIXEL_DATA, uid=header.sop_instance_uid,
            file=header.file, remedy="send the file again",
        )  # fmt: skip
    return data


def _clean(stored: Stored, image: PixelFormat) -> Stored:
    """Only the stored bits, with their sign."""
    bits = 8 * stored.itemsize
    if image.signed:
        stored = stored.view(stored.dtype.str.replace("u", "i"))
    above, below = bits - 1 - image.high_bit, bits - image.bits_stored
    cleaned: Stored = stored if below == 0 else (stored << above) >> below
    return cleaned
