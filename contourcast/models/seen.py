"""Which scans a model was fitted on, and in what another scan is unlike them.

A network draws on any grid, and says nothing of scans that are unlike those it learned from. What
it saw stands in its card; what lies outside is told, and judged by nobody but the reader.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from pydantic import ConfigDict

from contourcast.imaging.errors import InputError
from contourcast.imaging.volume import Volume
from contourcast.models.config import STRICT

# Positions and spacings written with few digits differ by so much (imaging.grid.EVEN_GAP_FRACTION).
SAME: Final = 0.01

Range = tuple[float, float]
RangeXyz = tuple[Range, Range, Range]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Least and most of what scans were; of one scan, both are its own.

    Attributes:
        spacing_xyz_mm: Along columns, rows and slices.
        field_xyz_mm: How far the grid reaches along them.
        slices: How many.
        manufacturers: (0008,0070) of each scan; empty: not known.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    spacing_xyz_mm: RangeXyz
    field_xyz_mm: RangeXyz
    slices: tuple[int, int]
    manufacturers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ranges = (*self.spacing_xyz_mm, *self.field_xyz_mm, self.slices)
        if not all(0 < least <= most < float("inf") for least, most in ranges):  # nor with NaN
            raise InputError("seen: a range of scans is none, the least first and above zero")

    @classmethod
    def of(cls, scan: Volume) -> Self:
        """One scan of two slices or more."""
        spacing, shape = scan.grid.spacing_xyz_mm, scan.grid.shape_zyx[::-1]
        x, y, z = ((mm, mm) for mm in spacing)
        across, down, along = ((mm * n,) * 2 for mm, n in zip(spacing, shape, strict=True))
        maker = scan.source.manufacturer.strip() if scan.source else ""
        return cls(
            spacing_xyz_mm=(x, y, z),
            field_xyz_mm=(across, down, along),
            slices=(shape[2], shape[2]),
            manufacturers=(maker,) if maker else (),
        )

    def note(self, scan: Volume) -> str:
        """In what a scan is outside of this, as a sentence; empty: in nothing."""
        today = Seen.of(scan)
        fitted, has = [], []
        for what, known, found in (
            ("voxels of {} mm", self.spacing_xyz_mm, today.spacing_xyz_mm),
            ("fields of {} mm", self.field_xyz_mm, today.field_xyz_mm),
            ("{} slices", (self.slices,), (today.slices,)),
        ):
            if not all(map(_within, found, known)):
                fitted.append(what.format(" × ".join(map(_told, known))))
                has.append(" × ".join(map(_told, found)))
        if today.manufacturers and self.manufacturers and not self._knows(today.manufacturers[0]):
            fitted.append(f"machines of {', '.join(self.manufacturers)}")
            has.append(today.manufacturers[0])
        if not has:
            return ""
        return f"the network was fitted on {'; '.join(fitted)}; this scan has {'; '.join(has)}"

    def _knows(self, maker: str) -> bool:
        return maker.casefold() in {name.casefold() for name in self.manufacturers}


def united(parts: Iterable[Seen | None]) -> Seen | None:
    """What several saw together; None: of one of them it is not known, or there is none.

    Makers are told only where every part knows its own: of others a note would be a guess.
    """
    every = list(parts)
    known = [part for part in every if part is not None]
    if not known or len(known) < len(every):
        return None
    makers = {name for part in known for name in part.manufacturers}
    return Seen(
        spacing_xyz_mm=_around([part.spacing_xyz_mm for part in known]),
        field_xyz_mm=_around([part.field_xyz_mm for part in known]),
        slices=(min(part.slices[0] for part in known), max(part.slices[1] for part in known)),
        manufacturers=tuple(sorted(makers)) if all(part.manufacturers for part in known) else (),
    )


def _around(parts: list[RangeXyz]) -> RangeXyz:
    x, y, z = ((min(r[0] for r in of), max(r[1] for r in of)) for of in zip(*parts, strict=True))
    return x, y, z


def _within(found: Range, known: Range) -> bool:
    return found[0] >= known[0] * (1 - SAME) and found[1] <= known[1] * (1 + SAME)


def _told(known: Range) -> str:
    least, most = (f"{value:.4g}" for value in known)
    return least if least == most else f"{least} to {most}"
