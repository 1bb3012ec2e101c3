"""A thorax drawn from formulas: no patient's data, as many different ones as there are seeds.

Everything lies in one right-handed frame: x to the left, y to the back, z to the head, millimetres
from the middle of the box. Sizes are those of adults (radiological anatomy, rounded) and vary by
seed; none claims to be a population's statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.grid import Grid
from contourcast.imaging.volume import Volume
from contourcast.simulation.anatomy import (
    LEFT,
    RIGHT,
    Anatomy,
)
from contourcast.simulation.sampling import logistic, smooth_noise

AIR, FAT, MUSCLE, BLOOD, LIVER = -1000.0, -100.0, 48.0, 40.0, 58.0
MARROW, CORTEX, DISC, CARTILAGE = 190.0, 620.0, 85.0, 110.0
LUNG_FRONT, LUNG_BACK = -860.0, -760.0  # gravity: the back is denser
EDGE_MM: Final = 0.8  # half width of a drawn border, as a CT blurs it
HEIGHT_MM: Final = 300.0
CT_NOISE_HU: Final = 12.0  # a planning CT's


@dataclass(frozen=True, kw_only=True)
class Build:
    """One person's sizes, mm (see ``drawn_build``)."""

    half_width: float
    half_depth: float
    fat: float
    wall: float
    base_z: float
    dome: float
    apex_z: float
    carina_z: float
    heart_xyz: tuple[float, float, float]
    heart_axes: tuple[float, float, float]


def drawn_build(rng: np.random.Generator) -> Build:
    """A person at random."""
    return Build(
        half_width=rng.uniform(158, 195),
        half_depth=rng.uniform(102, 128),
        fat=rng.uniform(6, 20),
        wall=rng.uniform(17, 24),
        base_z=rng.uniform(-112, -92),
        dome=rng.uniform(42, 62),
        apex_z=rng.uniform(112, 128),
        carina_z=rng.uniform(38, 56),
        heart_xyz=(rng.uniform(12, 24), rng.uniform(-34, -22), rng.uniform(-48, -36)),
        heart_axes=(rng.uniform(50, 60), rng.uniform(38, 46), rng.uniform(46, 56)),
    )


def phantom(*, seed: int, spacing_xyz_mm: tuple[float, float, float]) -> Anatomy:
    """A virtual thorax, the same for the same seed and spacing."""
    rng = np.random.default_rng([seed, 0x7A0])
    build = drawn_build(rng)
    canvas = _Canvas(build, spacing_xyz_mm)
    lungs = _soft_tissue(canvas, build, rng)
    _spine(canvas, build, rng)
    _ribs(canvas, build, rng)
    _tree(canvas, build, lungs, rng)
    bone = (canvas.hu > 170) & (lungs == 0)
    noise = smooth_noise(rng, canvas.hu.shape, canvas.grid.spacing_zyx_mm, 2.5)
    body = canvas.hu > -400
    ct = Volume(
        values=np.maximum(canvas.hu + CT_NOISE_HU * noise, -1010.0),
        grid=canvas.grid,
        frame_of_reference=derived_uid(f"phantom {seed}", "frame of reference"),
    )
    return Anatomy(name=f"phantom-{seed}", ct=ct, lungs=lungs, body=body | (lungs > 0), bone=bone)


class _Canvas:
    """An image being drawn, with the coordinates of its voxels (broadcastable)."""

    def __init__(self, build: Build, spacing_xyz_mm: tuple[float, float, float]) -> None:
        half = np.array([build.half_width + 32, build.half_depth + 24, HEIGHT_MM / 2])
        spacing = np.asarray(spacing_xyz_mm)
        n = (2 * np.floor(half / spacing)).astype(int) + 1
        self.grid = Grid.even(
            shape_zyx=(int(n[2]), int(n[1]), int(n[0])),
            spacing_xyz_mm=spacing_xyz_mm,
            origin_xyz_mm=-(n - 1) / 2 * spacing,
        )
        x, y, z = (
            (np.arange(k) * s - (k - 1) / 2 * s).astype(np.float32)
            for k, s in zip(n, spacing, strict=True)
        )
        self.x, self.y, self.z = x[None, None, :], y[None, :, None], z[:, None, None]
        self.hu = np.full(self.grid.shape_zyx, AIR, np.float32)

    def paint(self, inside_mm: np.ndarray, hu: float | np.ndarray) -> None:
        """Lays a tissue over what is there: its (rough) signed distance, inside positive."""
        cover = logistic(inside_mm / EDGE_MM)
        self.hu += cover * (hu - self.hu)

    def paint_beads(
        self,
        points_xyz: Float[np.ndarray, "n 3"],
        radii: Float[np.ndarray, " n"],
        hu: float,
        *,
        flatten_z: float = 1.0,
        only: np.ndarray | None = None,
    ) -> None:
        """Lays a string of balls over what is there, as one thing (no seams between them)."""
        cover = np.zeros(self.hu.shape, np.float32)
        x, y, z = self.x.ravel(), self.y.ravel(), self.z.ravel()
        step = self.grid.spacing_zyx_mm
        for (px, py, pz), r in zip(points_xyz, radii, strict=True):
            reach = r + 3 * EDGE_MM
            box = []
            for axis, at, along, s in (
                (z, pz, flatten_z, step[0]),
                (y, py, 1, step[1]),
                (x, px, 1, step[2]),
            ):
                first = int(np.ceil((at - reach * along - axis[0]) / s))
                last = int(np.floor((at + reach * along - axis[0]) / s))
                box.append(slice(max(0, first), max(0, last + 1)))
            part = tuple(box)
            if 0 in (view := cover[part]).shape:
                continue
            d = np.sqrt(
                ((z[part[0]] - pz) / flatten_z)[:, None, None] ** 2
                + (y[part[1]] - py)[None, :, None] ** 2
                + (x[part[2]] - px)[None, None, :] ** 2
            )
            np.maximum(view, logistic((r - d) / EDGE_MM), out=view)
        if only is not None:
            cover *= only
        self.hu += cover * (hu - self.hu)


def _chest_half_axes(build: Build, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half width and half depth of the space within the ribs, by height."""
    width = build.half_width - build.fat - build.wall
    depth = build.half_depth - build.fat - build.wall
    up = np.clip((z - build.base_z) / (build.apex_z - build.base_z), 0, 1)
    taper = np.sqrt(np.clip(1 - up**3.2, 1e-3, 1)) * (0.93 + 0.07 * np.sin(np.pi * up))
    return width * taper, depth * (0.45 + 0.55 * taper)


def _soft_tissue(canvas: _Canvas, build: Build, rng: np.random.Generator) -> np.ndarray:
    """Body, lungs, mediastinum, diaphragm; returns the lungs by side."""
    x, y, z = canvas.x, canvas.y, canvas.z
    shoulder = 24 * np.clip((z - 70) / 60, 0, 1) ** 2
    rho = (
        np.abs(x / (build.half_width + shoulder)) ** 2.5 + np.abs(y / build.half_depth) ** 2.5
    ) ** 0.4
    canvas.paint((1 - rho) * build.half_depth, FAT)
    canvas.paint((1 - rho) * build.half_depth - build.fat, MUSCLE)

    a, b = _chest_half_axes(build, z)
    wobble = 2.0 * smooth_noise(rng, canvas.hu.shape, canvas.grid.spacing_zyx_mm, 60.0)
    chest = (1 - np.sqrt((x / a) ** 2 + ((y + 4) / b) ** 2)) * np.minimum(a, b) + wobble
    # the diaphragm: two domes, the right one higher
    middle = 0.52 * build.half_width
    domes = np.maximum(
        build.dome + 10 - 0.011 * (x + middle) ** 2 - 0.008 * (y + 10) ** 2,
        build.dome - 0.011 * (x - middle) ** 2 - 0.008 * (y + 10) ** 2,
    )
    heart_floor = build.dome - 18 - 0.004 * np.maximum(np.abs(x) - 25, 0) ** 2 + 0 * y
    above = (z - build.base_z - np.maximum(np.maximum(domes, heart_floor), -40)) * 0.8 + wobble
    # the mediastinum: heart, great vessels, spine's bed
    hx, hy, hz = build.heart_xyz
    ax, ay, az = build.heart_axes
    heart = (1 - np.sqrt(((x - hx) / ax) ** 2 + ((y - hy) / ay) ** 2 + ((z - hz) / az) ** 2)) * 42
    spine_y = 0.52 * build.half_depth
    column = (1 - np.sqrt((x / 27) ** 2 + ((y - spine_y - 10) / 38) ** 2)) * 27
    vessels_width = 25 + 9 * np.exp(-(((z - build.carina_z) / 30) ** 2))
    vessels = (
        1 - np.sqrt((x / vessels_width) ** 2 + ((y + 2) / (0.62 * build.half_depth)) ** 2)
    ) * 25
    mediastinum = np.maximum(np.maximum(heart, column), vessels) + 0.7 * wobble
    lung = np.minimum(np.minimum(chest, above), -mediastinum)

    canvas.paint(np.minimum(chest + 1.5, -above), LIVER)  # below the diaphragm
    canvas.paint(np.minimum(chest, mediastinum), FAT + 45)  # mediastinal fat, partial volumes
    canvas.paint(np.minimum(heart - 3, chest), BLOOD)
    aorta_x = 14 + 8 * np.clip((build.carina_z - z) / 150, -0.3, 1)
    canvas.paint(11.5 - np.hypot(x - aorta_x, y - (spine_y - 22)) + 0 * z, BLOOD)
    for vx, vy, r in (
        (-18, -12, 9.5),
        (4, -22, 14.0),
        (-2, 12, 6.0),
    ):  # cava, ascending, oesophagus
        tube = r - np.hypot(x - vx, y - vy) + 0 * z
        canvas.paint(np.minimum(tube, (z - build.carina_z + 40) * 0.8), BLOOD)
    depth = np.clip((y + build.half_depth) / (2 * build.half_depth), 0, 1)
    texture = 24 * smooth_noise(rng, canvas.hu.shape, canvas.grid.spacing_zyx_mm, 3.5)
    texture += 18 * smooth_noise(rng, canvas.hu.shape, canvas.grid.spacing_zyx_mm, 14.0)
    canvas.paint(lung, LUNG_FRONT + (LUNG_BACK - LUNG_FRONT) * depth + texture)
    # fissure: a thin plate in each lung
    for side in (-1, 1):
        plate = 0.55 - np.abs((z - 12) - 0.75 * (y + 4) * -1 - 6 * side + 0.5 * wobble) * 0.8
        canvas.paint(np.minimum(np.minimum(plate, lung), side * x), -620.0)
    side_of = np.where(x < 0, RIGHT, LEFT)
    return np.where(lung > 0, side_of, 0).astype(np.uint8)


def _spine(canvas: _Canvas, build: Build, rng: np.random.Generator) -> None:
    """Vertebrae with discs, canal, arches and spinous processes."""
    x, y, z = canvas.x, canvas.y, canvas.z
    centre_y = 0.52 * build.half_depth + 8
    pitch = rng.uniform(21, 25)
    along = (z / pitch + rng.uniform()) % 1.0
    disc = (np.abs(along - 0.5) > 0.40) + 0 * x
    body = (1 - np.sqrt((x / 16.5) ** 2 + ((y - centre_y) / 13.5) ** 2)) * 14 + 0 * z
    marrow = MARROW + 35 * smooth_noise(rng, canvas.hu.shape, canvas.grid.spacing_zyx_mm, 6.0)
    endplate = np.abs(np.abs(along - 0.5) - 0.38) < 0.035
    canvas.paint(body, np.where(disc, DISC, np.where((body < 2.2) | endplate, 430.0, marrow)))
    canal_y = centre_y + 23
    canvas.paint(9.0 - np.hypot(x, y - canal_y) + 0 * z, 30.0)
    arch = 3.2 - np.abs(np.hypot(x / 1.15, y - canal_y) - 12.5) + 0 * z
    canvas.paint(np.where(disc, -5, arch), CORTEX * 0.75)
    spinous = np.minimum(3.0 - np.abs(x), 12 - np.abs(y - canal_y - 24 + 0 * z))
    canvas.paint(
        np.where(along > 0.15, spinous, -5) - 5 * (np.abs(along - 0.6) > 0.33), CORTEX * 0.7
    )
    transverse = np.minimum(4.0 - np.abs(y - canal_y + 4), 34 - np.abs(x)) + 0 * z
    transverse = np.minimum(transverse, np.abs(x) - 12)
    canvas.paint(np.where(np.abs(along - 0.45) < 0.17, transverse, -5), CORTEX * 0.6)


def _ribs(canvas: _Canvas, build: Build, rng: np.random.Generator) -> None:
    """Twelve pairs of ribs falling to the front, cartilage, breastbone, shoulder blades."""
    pitch = rng.uniform(23, 26)
    points, radii, soft = [], [], []
    for n in range(12):
        start_z = build.apex_z - 8 - pitch * n
        fall = rng.uniform(62, 78) * min(1.0, 0.35 + 0.13 * n)
        for side in (-1, 1):
            turn = np.linspace(np.radians(72), np.radians(-62 if n < 9 else 0), 90)
            z = start_z - fall * np.sin((turn[0] - turn) / 2.35) ** 1.2
            a, b = _chest_half_axes(build, np.maximum(z, build.base_z))
            px = side * (a + 5.5) * np.cos(turn)
            py = (b + 5.5) * np.sin(turn) - 4
            arc = np.column_stack((px, py, z))
            bony = turn > np.radians(-38)
            points.append(arc[bony])
            radii.append(np.full(bony.sum(), rng.uniform(3.6, 4.6)))
            soft.append(arc[~bony])
    canvas.paint_beads(np.concatenate(points), np.concatenate(radii), CORTEX, flatten_z=1.5)
    canvas.paint_beads(np.concatenate(points), np.concatenate(radii) - 2.0, MARROW, flatten_z=1.5)
    cartilage = np.concatenate(soft)
    canvas.paint_beads(cartilage, np.full(len(cartilage), 4.2), CARTILAGE, flatten_z=1.3)
    x, y, z = canvas.x, canvas.y, canvas.z
    _, b = _chest_half_axes(build, z)
    plate = np.minimum(4.5 - np.abs(y + b + 8), 17 - np.abs(x))
    tall = np.minimum(z + 40, 105 - z)
    canvas.paint(np.minimum(plate, tall), 260.0)
    for side in (-1, 1):
        blade = np.linspace(0, 1, 40)
        rows = [
            np.column_stack(
                (
                    side * (70 + 62 * blade),
                    0.80 * build.half_depth - 34 * blade**1.4,
                    np.full(40, height) + 12 * blade,
                )
            )
            for height in np.arange(15, 110, 3.5)
        ]
        sheet = np.concatenate(rows)
        canvas.paint_beads(sheet, np.full(len(sheet), 2.4), CORTEX * 0.8)


def _tree(canvas: _Canvas, build: Build, lungs: np.ndarray, rng: np.random.Generator) -> None:
    """Trachea and bronchi, arteries and veins, dividing from each hilum into its lung."""
    carina = np.array([0.0, 4.0, build.carina_z])
    top = np.array([0.0, -4.0, HEIGHT_MM / 2 + 5])
    trachea = np.linspace(top, carina, 60)
    canvas.paint_beads(trachea, np.full(60, 10.5), 20.0)
    air: list[tuple[np.ndarray, float]] = [(p, 8.5) for p in trachea]
    vessels: list[tuple[np.ndarray, float]] = []
    walls: list[tuple[np.ndarray, float]] = []
    for side in (-1.0, 1.0):
        hilum = np.array([side * rng.uniform(40, 48), 4.0, build.carina_z - rng.uniform(22, 32)])
        main = np.linspace(carina, hilum, 25)
        walls += [(p, 7.6) for p in main]
        air += [(p, 6.0) for p in main]
        for kind in range(3):  # artery, vein, bronchus
            for _ in range(9 if kind < 2 else 6):
                way = rng.normal(size=3) * [0.8, 0.9, 1.2] + [side * 0.75, 0, -0.15]
                start = hilum + rng.normal(size=3) * [4, 6, 9]
                radius = rng.uniform(3.0, 4.6) if kind < 2 else 3.4
                beads: list[tuple[np.ndarray, float]] = []
                _branch(beads, start, way, radius, rng.uniform(24, 38), 5 if kind < 2 else 3, rng)
                if kind < 2:
                    vessels += beads
                else:
                    walls += [(p, r + 1.0) for p, r in beads]
                    air += beads
    closed = (lungs > 0).astype(np.float32)
    near_lung = np.maximum(closed, (np.abs(canvas.x) < 60) * (canvas.z > build.carina_z - 28))
    for beads, hu, only in (
        (vessels, BLOOD, closed),
        (walls, 0.0, near_lung),
        (air, AIR, near_lung),
    ):
        canvas.paint_beads(
            np.array([p for p, _ in beads]), np.array([r for _, r in beads]), hu, only=only
        )


def _branch(
    beads: list[tuple[np.ndarray, float]],
    start: np.ndarray,
    way: np.ndarray,
    radius: float,
    length: float,
    generations: int,
    rng: np.random.Generator,
) -> None:
    """One vessel and its two daughters (Murray's law: radii shrink by about 2^(-1/3))."""
    way = way / np.linalg.norm(way)
    bend = rng.normal(size=3) * 0.25
    steps = max(3, int(length / max(1.2, 0.7 * radius)))
    t = np.linspace(0, 1, steps)[:, None]
    path = start + length * (t * way + t**2 * bend)
    taper = radius * (1 - 0.22 * t[:, 0])
    beads.extend(zip(path, taper.tolist(), strict=True))
    if generations == 0 or radius < 0.7:
        return
    for sign in (-1.0, 1.0):
        turn = rng.normal(size=3)
        turn -= turn @ way * way
        turn /= np.linalg.norm(turn) + 1e-9
        spread = rng.uniform(0.25, 0.8)
        _branch(
            beads,
            path[-1],
            way + bend * 1.2 + sign * spread * turn,
            radius * rng.uniform(0.66, 0.82),
            length * rng.uniform(0.68, 0.9),
            generations - 1,
            rng,
        )
