"""Identifiers that are the same each time the same thing is made."""

from __future__ import annotations

import hashlib
import uuid

from contourcast.imaging.errors import InputError


def derived_uid(digest: str, role: str) -> str:
    """A UID that follows from what the object is made of, so that making it twice is harmless.

    ``2.25.`` and the decimal of a version-8 UUID (RFC 9562 §5.8) of the first 128 bits of
    SHA-256 over digest and role: at most 44 characters (PS3.5 annex B.2).

    >>> derived_uid("abc", "structure set")
    '2.25.97892665697609688167329336932611065784'

    Args:
        digest: What the object is made of: a digest over all its inputs, never empty.
        role: Which of the objects made of them, such as ``series`` or ``slice 17``.

    Raises:
        InputError: The digest is empty, so that unlike things would get one UID.
    """
    if not digest:
        raise InputError("a UID cannot be derived from nothing", remedy="pass the inputs' digest")
    number = int.from_bytes(hashlib.sha256(f"{digest}\0{role}".encode()).digest()[:16], "big")
    number = number & ~(0xF << 76) | 8 << 76  # version 8: free-form
    number = number & ~(0b11 << 62) | 0b10 << 62  # variant of RFC 9562
    return f"2.25.{uuid.UUID(int=number).int}"
