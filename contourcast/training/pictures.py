"""Quiet figures: the same file for the same numbers, one look for all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by all common kinds of colour vision (Okabe & Ito 2008).
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
DPI: Final = 72  # SVG's own unit


def picture(
    *, columns: int = 1, rows: int = 1, width: float = 4.0, height: float = 3.0
) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row.

    Args:
        columns: Panels side by side.
        rows: Panels below each other.
        width: Of one panel, inches.
        height: Of one panel, inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained", dpi=DPI)
    panels = figure.subplots(rows, columns, squeeze=False)
    return figure, list(panels.ravel())


def quiet(axes: Axes, *, grid: Literal["x", "y", "both"] = "y") -> None:
    """No frame where none is needed, a pale grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="0.92")
    axes.set_axisbelow(True)
    axes.title.set_fontsize(10)
    axes.tick_params(labelsize=9)


def save_svg(figure: Figure, path: Path) -> None:
    """The same bytes for the same figure."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "contourcast"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
