"""PS3.3 as tables, for a judge that asks one question: is everything there that must be?

The tables are highdicom's own (``highdicom/_standard``, a private place: the version is pinned).
Conditions (types 1C and 2C) and values that are enumerated are not judged; dciodvfy does that.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword

from support.data import require


def missing(file: Path) -> list[str]:
    """Type 1 attributes without a value and type 2 attributes that are absent, at every depth.

    Of each module that is mandatory for the object, and of each optional or conditional one of
    which something is present that no mandatory module explains. Each finding reads
    ``type 1: structure-set: StructureSetROISequence > ROINumber``.
    """
    dataset = dcmread(file)
    modules = _table("iod_module_map")[_table("sop_class_iod_map")[dataset.SOPClassUID]]
    mandatory = [m["key"] for m in modules if m["usage"] == "M"]
    explained = {keyword for module in mandatory for keyword in _keywords(module)}
    asked = mandatory + [
        m["key"]
        for m in modules
        if m["usage"] != "M" and any(k in dataset for k in _keywords(m["key"]) - explained)
    ]
    return sorted({finding for module in asked for finding in _missing_of(module, dataset)})


def _missing_of(module: str, dataset: Dataset) -> Iterator[str]:
    for attribute in _attributes(module):
        kind, keyword, path = attribute["type"], attribute["keyword"], attribute["path"]
        if kind not in ("1", "2"):
            continue
        for item in _items_at(dataset, path):
            if keyword not in item or (kind == "1" and _is_empty(item, keyword)):
                yield f"type {kind}: {module}: {' > '.join([*path, keyword])}"


def _items_at(dataset: Dataset, path: Sequence[str]) -> Iterator[Dataset]:
    if not path:
        yield dataset
        return
    for item in dataset.get(path[0]) or []:
        yield from _items_at(item, path[1:])


def _is_empty(item: Dataset, keyword: str) -> bool:
    element = item[keyword]
    return not element.value if element.VR == "SQ" else element.is_empty


def _keywords(module: str) -> set[str]:
    """The attributes of a module that stand at the root of an object."""
    return {a["keyword"] for a in _attributes(module) if not a["path"]}


def _attributes(module: str) -> list[dict[str, Any]]:
    """Those with one tag: overlays have many, and we write none."""
    table = _table("module_attribute_map")[module]
    return [a for a in table if tag_for_keyword(a["keyword"]) is not None]


@cache
def _table(name: str) -> dict[str, Any]:
    found = importlib.util.find_spec("highdicom")
    require(
        "peer", found is not None, "highdicom is not installed: pip install contourcast[compare]"
    )
    assert found is not None
    assert found.origin is not None
    table: dict[str, Any] = json.loads(
        Path(found.origin).with_name("_standard").joinpath(f"{name}.json").read_bytes()
    )
    return table
