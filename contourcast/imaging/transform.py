"""Ways to carry points from one frame of reference to another.

Read names right to left: ``p_cbct = cbct_from_planning.apply(p_planning)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from jaxtyping import Float
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from contourcast.imaging.errors import FrameMismatchError, GeometryError, GridMismatchError
from contourcast.imaging.grid import Grid, Points, frozen_array


class PointMap(Protocol):
    """Anything that carries points of ``source_frame`` to ``target_frame`` (LPS mm)."""

    @property
    def source_frame(self) -> str:
        """The frame whose points it takes."""

    @property
    def target_frame(self) -> str:
        """The frame whose points it gives."""

    def apply(self, points_xyz_mm: Points) -> Points:
        """Carries points, shape (n, 3)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RigidTransform:
    """A rotation and a translation between two frames of reference (LPS, mm, float64).

    Attributes:
        matrix: Homogeneous, takes column vectors of ``source_frame`` to ``target_frame``, (4, 4).

    Raises:
        GeometryError: The matrix is not rigid (rotation orthonormal to 1e-5, det +1).
    """

    matrix: Float[np.ndarray, "4 4"]
    source_frame: str
    target_frame: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", frozen_array(self.matrix))
        if not _is_rigid(self.matrix):
            raise GeometryError(
                "the matrix is not a rigid motion",
                tag="(3006,00C6) Frame of Reference Transformation Matrix",
                remedy="use a registration without scaling, shear or mirroring",
            )

    @classmethod
    def identity(cls, *, source_frame: str, target_frame: str) -> Self:
        """The start of most registrations, and a claim that is to be proven."""
        return cls(matrix=np.eye(4), source_frame=source_frame, target_frame=target_frame)

    @classmethod
    def about(
        cls,
        center_xyz_mm: np.ndarray,
        *,
        rotation: np.ndarray,
        translation_xyz_mm: np.ndarray,
        source_frame: str,
        target_frame: str,
    ) -> Self:
        """``p -> R (p - c) + c + t``."""
        matrix = np.eye(4)
        matrix[:3, :3] = rotation
        matrix[:3, 3] = center_xyz_mm - rotation @ center_xyz_mm + translation_xyz_mm
        return cls(matrix=matrix, source_frame=source_frame, target_frame=target_frame)

    def apply(self, points_xyz_mm: Points) -> Points:
        """Carries points of the source frame to the target frame, shape (n, 3)."""
        moved: Points = (
            np.asarray(points_xyz_mm, float) @ self.matrix[:3, :3].T + self.matrix[:3, 3]
        )
        return moved

    def inverse(self) -> Self:
        """The way back."""
        back = np.linalg.inv(self.matrix)  # not the transpose: a file's matrix has few digits
        back[3] = [0, 0, 0, 1]
        return type(self)(
            matrix=back, source_frame=self.target_frame, target_frame=self.source_frame
        )

    def __matmul__(self, first: RigidTransform) -> RigidTransform:
        """``cbct_from_planning @ planning_from_mr`` is ``cbct_from_mr``.

        The rotation is made exactly orthonormal, so that few digits do not add up in a chain.
        """
        if not first.target_frame or first.target_frame != self.source_frame:
            raise FrameMismatchError(
                "cannot chain two transforms that meet in different frames of reference",
                tag="(0020,0052) Frame of Reference UID",
                uid=f"{first.target_frame or 'none'} then {self.source_frame or 'none'}",
                remedy="register both images to one planning CT first",
            )
        product = self.matrix @ first.matrix
        u, _, vt = np.linalg.svd(product[:3, :3])
        product[:3, :3], product[3] = u @ vt, [0, 0, 0, 1]
        return RigidTransform(
            matrix=product, source_frame=first.source_frame, target_frame=self.target_frame
        )

    def translation_at(self, point_xyz_mm: np.ndarray) -> Float[np.ndarray, " 3"]:
        """How far this point moves (mm); a translation depends on where it is asked for."""
        at = np.asarray(point_xyz_mm, float)
        shift: np.ndarray = self.apply(at[None])[0] - at
        return shift

    @property
    def angle_deg(self) -> float:
        """The one angle of the rotation."""
        return float(np.degrees(Rotation.from_matrix(self.matrix[:3, :3]).magnitude()))

    @property
    def euler_xyz_deg(self) -> tuple[float, float, float]:
        """Angles of R = Rz Ry Rx, for display alone."""
        z, y, x = Rotation.from_matrix(self.matrix[:3, :3]).as_euler("ZYX", degrees=True)
        return float(x), float(y), float(z)


def _is_rigid(matrix: np.ndarray) -> bool:
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        return False
    r = matrix[:3, :3]
    return bool(
        np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-9)
        and np.allclose(r.T @ r, np.eye(3), atol=1e-5)
        and np.linalg.det(r) > 0
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Displacement:
    """How far points of a frame are to be moved, sampled on a grid of that frame.

    Attributes:
        values_xyz_mm: Vectors (x, y, z) in mm at the grid's voxels, shape (z, y, x, 3), float32.
            Outside the grid the displacement is zero.

    Raises:
        GridMismatchError: There is not one vector for each voxel.
    """

    values_xyz_mm: Float[np.ndarray, "z y x 3"]
    grid: Grid
    frame_of_reference: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "values_xyz_mm", frozen_array(self.values_xyz_mm, np.float32))
        if self.values_xyz_mm.shape != (*self.grid.shape_zyx, 3):
            raise GridMismatchError(
                f"vectors of shape {self.values_xyz_mm.shape} do not fit a grid of "
                f"{self.grid.shape_zyx}"
            )

    def at(self, points_xyz_mm: Points) -> Points:
        """The displacement at any points, linear between samples, shape (n, 3)."""
        ijk = self.grid.index(points_xyz_mm)
        zyx = ijk[:, ::-1].T
        columns = [
            map_coordinates(self.values_xyz_mm[..., axis], zyx, order=1, mode="constant", cval=0.0)
            for axis in range(3)
        ]
        return np.column_stack(columns).astype(float)


@dataclass(frozen=True, kw_only=True, eq=False)
class DeformableTransform:
    """First a displacement within the source frame, then a rigid step to the target frame.

    ``p_planning = planning_from_cbct.apply(p_cbct + d(p_cbct))``: the order in which a
    Deformable Spatial Registration says it too (PS3.3 C.20.3, M_pre = identity).
    """

    rigid: RigidTransform
    displacement: Displacement

    def __post_init__(self) -> None:
        if self.displacement.frame_of_reference != self.rigid.source_frame:
            raise FrameMismatchError(
                "the displacement does not live in the frame that the rigid step starts from",
                tag="(0020,0052) Frame of Reference UID",
                uid=f"{self.displacement.frame_of_reference} and {self.rigid.source_frame}",
            )

    @property
    def source_frame(self) -> str:
        """The frame whose points it takes."""
        return self.rigid.source_frame

    @property
    def target_frame(self) -> str:
        """The frame whose points it gives."""
        return self.rigid.target_frame

    def apply(self, points_xyz_mm: Points) -> Points:
        """Carries points of the source frame to the target frame, shape (n, 3)."""
        points = np.asarray(points_xyz_mm, float)
        return self.rigid.apply(points + self.displacement.at(points))
