"""The table of methods that carry the prior to today. A new one is one function and one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from contourcast.imaging.volume import Mask, Volume
from contourcast.registration.result import Carriage, Registrations
from contourcast.registration.settings import RegistrationSettings

if TYPE_CHECKING:  # the table is read where nothing is computed
    from contourcast.registration import deformable


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What every method is given.

    Attributes:
        fixed: Today's CBCT.
        moving: The planning CT.
        prior: On the planning CT's grid.
        registrations: Where the planning CT is today; the chosen one is what methods start from.
    """

    fixed: Volume
    moving: Volume
    prior: Mask
    registrations: Registrations
    settings: RegistrationSettings


def translation(task: Task) -> Carriage:
    """The shift alone."""
    registration = task.registrations.translation
    return Carriage(
        planning_from_cbct=registration.planning_from_cbct, quality=registration.quality
    )


def rigid(task: Task) -> Carriage:
    """Rotation and shift, of the body or of the target as chosen."""
    registration = task.registrations.chosen
    return Carriage(
        planning_from_cbct=registration.planning_from_cbct, quality=registration.quality
    )


def dir_t(task: Task) -> Carriage:
    """Rigid, then a deformation of the box round the tumour."""
    from contourcast.registration import deformable

    return deformable.dir_t(_scene(task))


def dir_l(task: Task) -> Carriage:
    """Rigid, then a deformation of the lung that holds the tumour."""
    from contourcast.registration import deformable

    return deformable.dir_l(_scene(task))


def _scene(task: Task) -> deformable.Scene:
    from contourcast.registration import deformable

    return deformable.Scene(
        fixed=task.fixed,
        moving=task.moving,
        prior=task.prior,
        planning_from_cbct=task.registrations.chosen.planning_from_cbct,
        settings=task.settings,
    )


METHODS: Final[dict[str, Callable[[Task], Carriage]]] = {
    "translation": translation,
    "rigid": rigid,
    "dir-t": dir_t,
    "dir-l": dir_l,
}
