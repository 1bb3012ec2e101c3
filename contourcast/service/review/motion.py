"""A person's six numbers on top of a registration."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from contourcast.imaging.transform import RigidTransform

Xyz = tuple[float, float, float]


def moved(
    planning_from_cbct: RigidTransform,
    *,
    pivot_xyz_mm: Xyz,
    translation_xyz_mm: Xyz,
    rotation_xyz_deg: Xyz,
) -> RigidTransform:
    """The transform after the planning CT, as it is seen on the CBCT, was turned and pushed.

    Args:
        planning_from_cbct: Before.
        pivot_xyz_mm: The point of the CBCT that the planning CT turns about.
        translation_xyz_mm: Where what is at the pivot goes, along the CBCT's world axes.
        rotation_xyz_deg: Angles of R = Rz Ry Rx.
    """
    if not any((*translation_xyz_mm, *rotation_xyz_deg)):
        return planning_from_cbct  # to the last bit
    x, y, z = rotation_xyz_deg
    frame = planning_from_cbct.source_frame
    pushed = RigidTransform.about(
        np.array(pivot_xyz_mm),
        rotation=Rotation.from_euler("ZYX", (z, y, x), degrees=True).as_matrix(),
        translation_xyz_mm=np.array(translation_xyz_mm),
        source_frame=frame,
        target_frame=frame,
    )
    return planning_from_cbct @ pushed.inverse()
