import numpy as np
import pytest
import torch

from contourcast.imaging.volume import Volume
from contourcast.registration.field_of_view import depth_in_view, padding_value
from contourcast.registration.pyramid import full_resolution
from contourcast.registration.sampling import sample
from contourcast.registration.settings import FieldOfViewSettings
from support.analytic_phantom import Phantom, even_grid, motion

SETTINGS = FieldOfViewSettings()
STILL = motion(shift_xyz_mm=(0, 0, 0), rotation_xyz_deg=(0, 0, 0))


def depth_at(volume: Volume, points_xyz_mm: list[list[float]]) -> list[float]:
    depth = depth_in_view(full_resolution(volume, device="cpu"), SETTINGS)
    found = sample(depth, torch.tensor(points_xyz_mm, dtype=torch.float32), np.eye(4))
    return torch.nan_to_num(found, nan=0.0).tolist()


def test_the_cylinder_of_a_cone_beam_is_found_without_any_padding_attribute() -> None:
    cbct = Phantom().cbct(STILL, radius_mm=80)
    middle, inner, outer = depth_at(cbct, [[0, 0, 0], [60, 0, 0], [90, 0, 0]])
    assert middle > 45  # half the length is 55 mm
    assert inner == pytest.approx(20, abs=4)
    assert outer == 0


def test_end_slices_that_were_never_reconstructed_are_outside() -> None:
    cbct = Phantom().cbct(STILL)
    values = np.array(cbct.values)
    values[:10] = -1000  # 30 mm at the feet
    below, above = depth_at(cbct.with_values(values), [[0, 0, -45], [0, 0, 30]])
    assert below == 0
    assert above > 15


def test_single_voxels_that_happen_to_hold_the_padding_value_stay_inside() -> None:
    cbct = Phantom().cbct(STILL)
    values = np.array(cbct.values)
    values[18, 30:33, 30:33] = -1000
    (depth,) = depth_at(cbct.with_values(values), [[0, 0, 0]])
    assert depth > 40


def test_declared_padding_is_outside_even_with_plausible_values() -> None:
    cbct = Phantom().cbct(STILL, radius_mm=1000)
    observed = np.ones(cbct.grid.shape_zyx, bool)
    observed[:, :, :20] = False
    volume = Volume(values=cbct.values, grid=cbct.grid, frame_of_reference="1.2", observed=observed)
    hidden, seen = depth_at(volume, [[-70, 0, 0], [30, 0, 0]])
    assert hidden == 0
    assert seen > 40


def test_a_scan_without_padding_is_in_view_up_to_its_borders() -> None:
    cbct = Phantom().cbct(STILL, radius_mm=1000)
    assert padding_value(torch.tensor(cbct.values), border_share=0.25) is None
    near_border, beyond = depth_at(cbct, [[90, 0, 0], [100, 0, 0]])
    assert 0 < near_border < 8
    assert beyond == 0


def test_an_oblique_field_is_found_where_it_lies() -> None:
    angle = np.radians(30)
    turned = np.array(
        [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    )
    grid = even_grid(extent_xyz_mm=(190, 190, 110), spacing_mm=3, direction=turned)
    cbct = Phantom().cbct(STILL, grid=grid)
    along = (turned @ [0, 0, 40]).tolist()
    across = (turned @ [90, 0, 0]).tolist()
    inside, outside = depth_at(cbct, [along, across])
    assert inside == pytest.approx(16, abs=4)
    assert outside == 0
