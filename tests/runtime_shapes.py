"""Shapes and dtypes of annotations, checked at run time while tests run.

    pytest --jaxtyping-packages=contourcast.imaging,runtime_shapes.checked tests/unit

beartype sees a method without its class, so it cannot know what ``Self`` is, and it cannot look
into a protocol: what is annotated so is let pass, everything beside it is checked. Constructors
are let pass, too: ours refuse wrong shapes with errors of their own, and tests ask for these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

F = TypeVar("F", bound=Callable[..., Any])
TOWER = BeartypeConf(is_pep484_tower=True)  # an int will do for a float, as mypy has it


def checked(function: F) -> F:
    """beartype's check, but for ``Self``, constructors, and functions that take a protocol."""
    if getattr(function, "__name__", "") == "__init__":
        return function
    annotations = getattr(function, "__annotations__", {})
    for name, annotation in annotations.items():
        if "Self" in str(annotation):
            annotations[name] = object
    try:
        return beartype(conf=TOWER)(function)
    except BeartypeDecorHintPep3119Exception:
        return function
