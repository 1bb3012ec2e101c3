"""What figures say of a registration or a contour: accept, look, reject, with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """From best to worst."""

    ACCEPT = "accept"
    LOOK = "look"
    REJECT = "reject"

    @property
    def severity(self) -> int:
        """0 for accept, 2 for reject."""
        return list(Verdict).index(self)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of several; accept of none."""
    return max(verdicts, key=lambda v: v.severity, default=Verdict.ACCEPT)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that was judged.

    Attributes:
        name: What it is, in snake_case with its unit, such as ``near_bone_lncc`` or ``shift_mm``.
        value: None when it cannot be computed here.
        limit: The limits in words, such as ``accept ≥ 0.45, reject < 0.30``; empty when it is
            reported and not judged.
        reason: Why it is not accepted, a sentence for a physicist; empty when it is.
    """

    name: str
    value: float | None
    limit: str = ""
    verdict: Verdict = Verdict.ACCEPT
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """All figures of one thing, and what they say together."""

    figures: tuple[Figure, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst of the figures."""
        return worst([f.verdict for f in self.figures])

    @property
    def reservations(self) -> tuple[Figure, ...]:
        """The figures for which it is not accepted, the worst first."""
        told = [f for f in self.figures if f.reason and f.verdict is not Verdict.ACCEPT]
        return tuple(sorted(told, key=lambda f: -f.verdict.severity))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not accepted, the worst first."""
        return tuple(f.reason for f in self.reservations)

    def figure(self, name: str) -> float | None:
        """The value of that figure; None when it is not there or could not be computed."""
        return next((f.value for f in self.figures if f.name == name), None)
