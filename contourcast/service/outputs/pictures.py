"""Pictures of a propagation: planes through the tumour, contours on them, bones on bones.

Planes are sampled in patient space (LPS), so that left is right of the viewer whatever the
series' own axes are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float
from scipy.ndimage import map_coordinates

from contourcast.imaging.grid import Grid, Points
from contourcast.imaging.transform import PointMap
from contourcast.imaging.volume import Probability, Volume
from contourcast.propagate import Propagation, color_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLOSE_HALF_MM: Final = 75.0  # half the width of the planes through the tumour
SQUARE_MM: Final = 30.0  # edge of a field of the checkerboard
STEP_MM: Final = 0.75  # sampling of the planes


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """A plane through a point, along two axes of the patient.

    Attributes:
        across, up: Index of the LPS axis to the right and upwards on the page.
        flip_up: Whether up on the page is against the axis (anterior is -y).
        letters: Left, right, bottom, top.
    """

    name: str
    across: int
    up: int
    flip_up: bool
    letters: tuple[str, str, str, str]


PLANES: Final = (
    Plane(name="axial", across=0, up=1, flip_up=True, letters=("R", "L", "P", "A")),
    Plane(name="coronal", across=0, up=2, flip_up=False, letters=("R", "L", "I", "S")),
    Plane(name="sagittal", across=1, up=2, flip_up=False, letters=("A", "P", "I", "S")),
)


def overlay_png(propagation: Propagation) -> bytes:
    """Two rows of three planes: every contour on today's scan, and the planning CT on today's scan.

    The first row is close to the tumour; the second, a checkerboard of the CBCT and of the planning
    CT carried by the registration, shows the whole field, so that a wrong bone match is seen.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    cbct = propagation.case.cbct
    center = _center_xyz_mm(propagation)
    figure = Figure(figsize=(13.2, 9.4), dpi=110, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    low, high = _window(cbct)
    planning_low, planning_high = _window(propagation.case.planning_ct)
    carried = propagation.registrations.chosen.planning_from_cbct

    for plane, close, whole in zip(PLANES, axes[0], axes[1], strict=True):
        extent = _extent(center, plane, CLOSE_HALF_MM)
        scan = _sample(cbct, plane, center, extent)
        close.imshow(scan, cmap="gray", vmin=low, vmax=high, extent=extent, origin="lower")
        for drawn in propagation.drawn:
            if drawn.region is not None:
                _outline(close, drawn.region, plane, center, extent, color_rgb(drawn.method))
        _dress(close, plane, extent, center, f"{plane.name}, today's CBCT and every contour")

        field = _field_extent(cbct.grid, plane)
        today = _unit(_sample(cbct, plane, center, field), low, high)
        planned = _unit(
            _sample(propagation.case.planning_ct, plane, center, field, through=carried),
            planning_low,
            planning_high,
        )
        board = np.where(_checkerboard(today.shape), today, planned)
        whole.imshow(board, cmap="gray", vmin=0, vmax=1, extent=field, origin="lower")
        _dress(
            whole, plane, field, center, f"{plane.name}, CBCT and registered planning CT in turn"
        )

    handles = [
        Line2D([], [], color=_rgb(color_rgb(d.method)), lw=2, label=_legend(d.method, d.volume_cc))
        for d in propagation.drawn
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        labelcolor="white",
        fontsize=10,
    )
    figure.suptitle(
        f"verdict of the registration: {propagation.registrations.quality.verdict}"
        "   ·   proposal of a machine, not reviewed",
        color="white",
        fontsize=11,
    )
    png = BytesIO()
    figure.savefig(png, format="png", facecolor="black", metadata={"Software": None})
    return png.getvalue()


def _legend(method: str, volume_cc: float | None) -> str:
    return f"{method}  " + ("no contour" if volume_cc is None else f"{volume_cc:.1f} cc")


def _center_xyz_mm(propagation: Propagation) -> Float[np.ndarray, " 3"]:
    """The centroid of the carried prior, else of any contour, else the middle of the CBCT."""
    found = propagation.r_ct.mask().centroid_xyz_mm()
    for drawn in propagation.drawn:
        found = drawn.centroid_xyz_mm if found is None else found
    return propagation.case.cbct.grid.center_xyz_mm if found is None else found


def _window(volume: Volume) -> tuple[float, float]:
    """Grey from the darkest air to the brightest soft tissue of what the scan really holds."""
    thinned = volume.values[::2, ::4, ::4]
    held = thinned[thinned > thinned.min()]
    if held.size == 0:
        return -1000.0, 400.0
    low, high = np.percentile(held, [1.0, 99.0])
    return float(low), float(max(high, low + 1.0))


def _unit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled: np.ndarray = np.clip((values - low) / (high - low), 0.0, 1.0)
    return scaled


def _extent(
    center_xyz_mm: np.ndarray, plane: Plane, half_mm: float
) -> tuple[float, float, float, float]:
    across, up = center_xyz_mm[plane.across], center_xyz_mm[plane.up]
    up = -up if plane.flip_up else up
    return across - half_mm, across + half_mm, up - half_mm, up + half_mm


def _field_extent(grid: Grid, plane: Plane) -> tuple[float, float, float, float]:
    corners = grid.corners_xyz_mm
    across, up = corners[:, plane.across], corners[:, plane.up] * (-1 if plane.flip_up else 1)
    return float(across.min()), float(across.max()), float(up.min()), float(up.max())


def _points(
    plane: Plane, center_xyz_mm: np.ndarray, extent: tuple[float, float, float, float]
) -> tuple[Points, tuple[int, int]]:
    """World points of a plane's samples, row by row from the bottom."""
    left, right, bottom, top = extent
    across = np.arange(left + STEP_MM / 2, right, STEP_MM)
    up = np.arange(bottom + STEP_MM / 2, top, STEP_MM)
    points = np.tile(center_xyz_mm, (len(up) * len(across), 1))
    points[:, plane.across] = np.tile(across, len(up))
    points[:, plane.up] = np.repeat(-up if plane.flip_up else up, len(across))
    return points, (len(up), len(across))


def _sample(
    volume: Volume | Probability,
    plane: Plane,
    center_xyz_mm: np.ndarray,
    extent: tuple[float, float, float, float],
    through: PointMap | None = None,
) -> np.ndarray:
    points, shape = _points(plane, center_xyz_mm, extent)
    if through is not None:
        points = through.apply(points)
    ijk = volume.grid.index(points)
    outside = float(volume.values.min())
    values: np.ndarray = map_coordinates(
        volume.values, ijk[:, ::-1].T, order=1, mode="constant", cval=outside
    )
    return values.reshape(shape)


def _outline(
    axes: Axes,
    region: Probability,
    plane: Plane,
    center_xyz_mm: np.ndarray,
    extent: tuple[float, float, float, float],
    color_rgb: tuple[int, int, int],
) -> None:
    values = _sample(region, plane, center_xyz_mm, extent)
    if values.max() < 0.5 or values.min() >= 0.5:
        return
    rows, columns = values.shape
    left, right, bottom, top = extent
    axes.contour(
        np.linspace(left, right, columns),
        np.linspace(bottom, top, rows),
        values,
        levels=[0.5],
        colors=[_rgb(color_rgb)],
        linewidths=1.4,
    )


def _checkerboard(shape: tuple[int, ...]) -> np.ndarray:
    side = round(SQUARE_MM / STEP_MM)
    rows, columns = np.indices(shape) // side
    board: np.ndarray = (rows + columns) % 2 == 0
    return board


def _dress(
    axes: Axes,
    plane: Plane,
    extent: tuple[float, float, float, float],
    center_xyz_mm: np.ndarray,
    title: str,
) -> None:
    """Title, orientation letters, a scale of whole centimetres, the position of the plane."""
    from matplotlib.patheffects import withStroke

    left, right, bottom, top = extent
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    axes.set_title(title, color="white", fontsize=9)
    on_any_grey = [withStroke(linewidth=2.0, foreground="black")]
    white: dict[str, object] = {"color": "white", "path_effects": on_any_grey}
    middle_x, middle_y = (left + right) / 2, (bottom + top) / 2
    inset = 0.02 * (right - left)
    marks = [
        (left + inset, middle_y, plane.letters[0], "left", "center"),
        (right - inset, middle_y, plane.letters[1], "right", "center"),
        (middle_x, bottom + inset, plane.letters[2], "center", "bottom"),
        (middle_x, top - inset, plane.letters[3], "center", "top"),
    ]
    for x, y, letter, horizontal, vertical in marks:
        axes.text(x, y, letter, ha=horizontal, va=vertical, weight="bold", **white)  # type: ignore[arg-type]
    scale_mm = 20.0 if right - left < 250 else 50.0
    y = bottom + 0.05 * (top - bottom)
    x = right - 0.06 * (right - left) - scale_mm
    axes.plot([x, x + scale_mm], [y, y], color="white", lw=2.5, solid_capstyle="butt", zorder=3)
    axes.text(
        x + scale_mm / 2, y + inset, f"{scale_mm:.0f} mm", color="white", fontsize=8, ha="center"
    )
    third = ({0, 1, 2} - {plane.across, plane.up}).pop()
    where = f"{'xyz'[third]} = {center_xyz_mm[third]:.1f} mm"
    axes.text(left + inset, bottom + inset, where, fontsize=8, **white)  # type: ignore[arg-type]


def _rgb(color: Sequence[int]) -> tuple[float, float, float]:
    return color[0] / 255, color[1] / 255, color[2] / 255
