"""Registered there and back again: by how much one misses where one began."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Mask, Volume
from contourcast.registration.field_of_view import padding_value
from contourcast.registration.pyramid import full_resolution
from contourcast.registration.rigid import register_all
from contourcast.registration.settings import FieldOfViewSettings, RegistrationSettings
from support.data import data_item
from support.landmark_pair import LandmarkPair
from support.pairings import LUNG, REAL, body_center, virtual_with_truth
from support.real_scans import scan
from support.virtual_cbct import ball, target_errors_mm


def rigid_round_trip_mm(
    first: Volume,
    second: Volume,
    *,
    regions: tuple[Mask | None, Mask | None] = (None, None),
    settings: RegistrationSettings | None = None,
) -> np.ndarray:
    """Distance from where one began, at the nodes of a 16 cm cube in the first scan.

    Each direction searches anew; it does not begin where the other ended. What a cone beam does
    not show is declared, and on the way back it is compared where it shows something.
    """
    first, second = declared(first), declared(second)
    there, center_xyz_mm = _second_from_first(first, second, regions[0], settings)
    seen = regions[1] or _shown(first, there, onto=second)
    back, _ = _second_from_first(second, first, seen, settings)
    here = RigidTransform.identity(
        source_frame=first.frame_of_reference, target_frame=first.frame_of_reference
    )
    return target_errors_mm(back @ there, here, center_xyz_mm=center_xyz_mm)


def _second_from_first(
    first: Volume, second: Volume, region: Mask | None, settings: RegistrationSettings | None
) -> tuple[RigidTransform, np.ndarray]:
    body = register_all(
        fixed=first,
        moving=second,
        prior=ball(second, body_center(second), radius_mm=15),
        settings=settings or RegistrationSettings(),
        region=region,
    ).body
    return body.planning_from_cbct, body.center_xyz_mm


def _shown(first: Volume, second_from_first: RigidTransform, *, onto: Volume) -> Mask | None:
    """Where the second scan shows what the first does; None: the first shows all of its grid."""
    if first.observed is None:
        return None
    places = second_from_first.inverse().apply(onto.grid.centers())
    index = np.round(first.grid.index(places)).astype(int)[:, ::-1]
    inside = ((index >= 0) & (index < first.grid.shape_zyx)).all(axis=1)
    values = np.zeros(len(index), bool)
    values[inside] = first.observed[tuple(index[inside].T)]
    return Mask(
        values=values.reshape(onto.grid.shape_zyx),
        grid=onto.grid,
        frame_of_reference=onto.frame_of_reference,
    )


def declared(volume: Volume) -> Volume:
    """With its padding told as not observed."""
    if volume.observed is not None:
        return volume
    padding = padding_value(
        full_resolution(volume, device="cpu").values,
        border_share=FieldOfViewSettings().border_share,
    )
    return volume if padding is None else replace(volume, observed=volume.values != padding)


def round_trips() -> Iterator[tuple[str, np.ndarray]]:
    """Name and distances, mm, of each pair of scans."""
    for seed in range(3):
        cbct, _ = virtual_with_truth(LUNG, seed=seed, longest_mm=20, widest_deg=4)
        yield f"virtual cone beam {seed} of {LUNG}", rigid_round_trip_mm(cbct, scan(LUNG))
    for name, cbct_name in REAL.items():
        yield cbct_name, rigid_round_trip_mm(elsewhere(scan(cbct_name)), scan(name))
    phases = [read_ct_series(data_item("lung_4dct") / f"phase_{phase}") for phase in ("00", "50")]
    yield "OpenTPS 4DCT, phases 00 and 50", rigid_round_trip_mm(elsewhere(phases[0]), phases[1])
    pair = LandmarkPair.read()
    regions = pair.lung_on(pair.fixed.grid), pair.moving_lung
    yield "two CTs of one lung", rigid_round_trip_mm(pair.fixed, pair.moving, regions=regions)


def elsewhere(volume: Volume) -> Volume:
    """In a frame of its own: the two scans of some pairs state one."""
    return replace(volume, frame_of_reference=f"{volume.frame_of_reference[:60]}.1")
