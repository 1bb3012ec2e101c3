"""Carries a tumour's contour from the planning CT to each day's cone-beam CT.

The public names are loaded when first asked for, so that ``contourcast --help`` does not pay for
torch. Beside them every network of the table is found by the name of its class, as nnU-Net's plans
name it: ``contourcast.DiffUMamba`` (`contourcast.models.plans`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from contourcast.client import Client
    from contourcast.imaging.errors import ContourcastError
    from contourcast.imaging.grid import Grid
    from contourcast.imaging.structures import Contour, Roi, StructureSet
    from contourcast.imaging.transform import RigidTransform
    from contourcast.imaging.verdict import Verdict
    from contourcast.imaging.volume import Mask, Probability, Volume
    from contourcast.propagate import Case, Propagation, Settings

_HOME: Final = {
    "Case": "contourcast.propagate",
    "Client": "contourcast.client",
    "Contour": "contourcast.imaging.structures",
    "ContourcastError": "contourcast.imaging.errors",
    "Grid": "contourcast.imaging.grid",
    "Mask": "contourcast.imaging.volume",
    "Probability": "contourcast.imaging.volume",
    "Propagation": "contourcast.propagate",
    "RigidTransform": "contourcast.imaging.transform",
    "Roi": "contourcast.imaging.structures",
    "Settings": "contourcast.propagate",
    "StructureSet": "contourcast.imaging.structures",
    "Verdict": "contourcast.imaging.verdict",
    "Volume": "contourcast.imaging.volume",
}

__all__ = [
    "Case",
    "Client",
    "Contour",
    "ContourcastError",
    "Grid",
    "Mask",
    "Probability",
    "Propagation",
    "RigidTransform",
    "Roi",
    "Settings",
    "StructureSet",
    "Verdict",
    "Volume",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name[:1].isupper():
        try:
            return getattr(import_module("contourcast.models.plans"), name)
        except AttributeError:
            pass
    raise AttributeError(f"contourcast has no public name {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
