"""The overlay of a propagation with its verdict above it, as one picture without a patient."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO
from typing import Final

import numpy as np
from jaxtyping import UInt8

DPI: Final = 110
LINE_PX: Final = 26
CHARACTERS: Final = 150  # of a line, at this size of type and the overlay's width
LINES_AT_MOST: Final = 4
COLORS: Final = {"accept": "#3fb950", "look": "#e3b341", "reject": "#ff7b72"}
WHITE: Final = "#ffffff"
SOFT: Final = "#b0b8c0"
NOTICE: Final = "Contourcast: proposal of a machine, not reviewed. Not a medical device."


def picture_rgb(
    overlay_png: bytes, *, verdict: str, reasons: Sequence[str]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Three planes with the contours, and above them what the machine says of it.

    Args:
        overlay_png: As `pictures.overlay_png` draws it.
        verdict: ``accept``, ``look``, ``reject``.
        reasons: Why it is not ``accept``; as many as there is room for.
    """
    from matplotlib import image
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    overlay = np.rint(image.imread(BytesIO(overlay_png), format="png") * 255).astype(np.uint8)
    columns = overlay.shape[1]
    told = textwrap.wrap("; ".join(reasons), CHARACTERS)[:LINES_AT_MOST]
    lines = [
        (f"verdict: {verdict}", COLORS.get(verdict, WHITE), "bold"),
        *((line, WHITE, "normal") for line in told),
        (NOTICE, SOFT, "normal"),
    ]
    height = LINE_PX * len(lines)
    figure = Figure(figsize=(columns / DPI, height / DPI), dpi=DPI, facecolor="black")
    FigureCanvasAgg(figure)
    for n, (line, color, weight) in enumerate(lines):
        y = 1 - (n + 0.5) / len(lines)
        figure.text(0.01, y, line, color=color, weight=weight, fontsize=11, va="center")
    raw = BytesIO()
    figure.savefig(raw, format="rgba", dpi=DPI, facecolor="black")
    band = np.frombuffer(raw.getvalue(), np.uint8).reshape(height, columns, 4)
    return np.concatenate((band[..., :3], overlay[..., :3]))
