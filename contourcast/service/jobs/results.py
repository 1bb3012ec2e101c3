"""What a step of a job hands to the next: domain objects as bytes, exact, and never a pickle.

One `.npz` file: arrays as arrays, everything else as a JSON document beside them. Reading it makes
objects of the classes in `KINDS` and of no other. The same objects give the same bytes, so the
digest of the bytes is their name.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np

from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import Agreement
from contourcast.imaging.structures import Contour, Roi
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.verdict import Figure, Quality, Verdict
from contourcast.imaging.volume import Probability
from contourcast.propagate import Drawn
from contourcast.registration.result import LevelLog, Registration, Registrations

KINDS: Final[dict[str, type]] = {
    kind.__name__: kind
    for kind in (
        Agreement,
        Contour,
        Drawn,
        Figure,
        Grid,
        LevelLog,
        Probability,
        Quality,
        Registration,
        Registrations,
        RigidTransform,
        Roi,
    )
}
ENUMS: Final[dict[str, type[StrEnum]]] = {"Verdict": Verdict}
DOCUMENT: Final = "document"
DAMAGE: Final = (zipfile.BadZipFile, zlib.error)


def dump(thing: object) -> bytes:
    """Domain objects, or tuples and dictionaries of them, as the bytes of an ``.npz`` file.

    Raises:
        TypeError: It holds something that is neither plain nor one of `KINDS`.
    """
    arrays: dict[str, np.ndarray] = {}
    document = json.dumps(_encode(thing, arrays), sort_keys=True, separators=(",", ":"))
    arrays[DOCUMENT] = np.frombuffer(document.encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def load(data: bytes) -> Any:
    """The objects that `dump` was given; sequences come back as tuples.

    Raises:
        InputError: The bytes are not what `dump` wrote.
    """
    try:
        if not data.startswith(b"PK"):  # NumPy would take it for something else
            raise ValueError("this is no .npz")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return _decode(json.loads(bytes(arrays[DOCUMENT])), arrays)
    except (KeyError, ValueError, TypeError, OSError, EOFError, *DAMAGE) as error:
        raise InputError(
            "a stored result cannot be read",
            remedy="send the request again: it is made anew",
        ) from error


def _encode(thing: object, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(thing, StrEnum):
        return {"enum": type(thing).__name__, "value": thing.value}
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, np.generic):
        return _encode(thing.item(), arrays)
    if isinstance(thing, np.ndarray):
        return _keep(thing, arrays)
    if isinstance(thing, tuple | list):
        return [_encode(item, arrays) for item in thing]
    if isinstance(thing, dict):
        return {
            "pairs": [[_encode(k, arrays), _encode(v, arrays)] for k, v in thing.items()],
        }
    if isinstance(thing, Probability):  # mostly zeros: only the box that holds the others
        start_zyx, inside = _box(thing.values)
        place = {
            f.name: _encode(getattr(thing, f.name), arrays)
            for f in fields(thing)
            if f.name != "values"
        }
        return {
            "region": place,
            "start_zyx": start_zyx,
            "values": _keep(inside, arrays),
        }
    if is_dataclass(thing) and KINDS.get(type(thing).__name__) is type(thing):
        parts = {f.name: _encode(getattr(thing, f.name), arrays) for f in fields(thing)}
        return {"kind": type(thing).__name__, "parts": parts}
    raise TypeError(f"a {type(thing).__name__} is not among the results of a step")


def _decode(code: Any, arrays: Any) -> Any:
    if isinstance(code, list):
        return tuple(_decode(item, arrays) for item in code)
    if not isinstance(code, dict):
        return code
    if "array" in code:
        return arrays[code["array"]]
    if "enum" in code:
        return ENUMS[code["enum"]](code["value"])
    if "pairs" in code:
        return {_decode(k, arrays): _decode(v, arrays) for k, v in code["pairs"]}
    if "region" in code:
        place = {name: _decode(part, arrays) for name, part in code["region"].items()}
        inside = _decode(code["values"], arrays)
        values = np.zeros(place["grid"].shape_zyx, np.float32)
        z, y, x = code["start_zyx"]
        values[z : z + inside.shape[0], y : y + inside.shape[1], x : x + inside.shape[2]] = inside
        return Probability(values=values, **place)
    parts = {name: _decode(part, arrays) for name, part in code["parts"].items()}
    return KINDS[code["kind"]](**parts)


def _keep(array: np.ndarray, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    name = f"array_{len(arrays)}"
    arrays[name] = array
    return {"array": name}


def _box(values: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Start and content of the smallest box that holds all that is not zero."""
    start, cut = [], []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        filled = np.flatnonzero(values.any(axis=others))
        first, stop = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
        start.append(first)
        cut.append(slice(first, stop))
    return start, values[tuple(cut)]
