"""Small trainings that are compared: same samples, same seeds, one thing changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contourcast.imaging.errors import InputError
from contourcast.models.weights import Card
from contourcast.training.cases import Model, case_for, dice, drawn
from contourcast.training.loop import Epoch, TrainSettings, train
from contourcast.training.samples import Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """Samples to fit on, to pick the epoch by, and to measure on; no patient in two of them."""

    fitted: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]

    def __post_init__(self) -> None:
        named = {
            "training": {s.patient for s in self.fitted},
            "validation": {s.patient for s in self.validation},
            "test": {s.patient for s in self.test},
        }
        empty = [name for name, patients in named.items() if not patients]
        if empty:
            raise InputError(f"there is no sample for {empty[0]}")
        if sum(map(len, named.values())) > len(set().union(*named.values())):
            raise InputError("a patient stands in two of training, validation and test")

    @classmethod
    def by_ct(
        cls, samples: Sequence[Sample], *, validation: Sequence[str], test: Sequence[str]
    ) -> Parts:
        """Whole CTs for validation and test, the rest to fit on.

        Raises:
            InputError: A CT is unknown or asked for twice, a part is empty, or a patient is shared.
        """
        known = {s.ct for s in samples}
        for ct in (*validation, *test):
            if ct not in known:
                raise InputError(f"no sample is of '{ct}'", remedy=f"choose from {sorted(known)}")
        if set(validation) & set(test):
            raise InputError("a CT cannot both validate and test")
        aside = {*validation, *test}
        return cls(
            fitted=tuple(s for s in samples if s.ct not in aside),
            validation=tuple(s for s in samples if s.ct in validation),
            test=tuple(s for s in samples if s.ct in test),
        )

    def facts(self) -> dict[str, object]:
        """Who is where."""
        return {
            name: sorted({f"{s.ct}: {s.patient}" for s in getattr(self, name)})
            for name in ("fitted", "validation", "test")
        }


def trial(
    parts: Parts,
    settings: TrainSettings,
    folder: Path,
    *,
    name: str,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> list[dict[str, Any]]:
    """Trains (or goes on) in its folder and measures each test case: a row for each.

    Args:
        parts: Of the samples.
        settings: Of the training.
        folder: Of this trial alone.
        name: What it is called in the rows.
        on_epoch: Told of each epoch.
    """
    trained = train(parts.fitted, parts.validation, settings, folder, on_epoch=on_epoch)
    samples = settings.samples
    model = Model(
        name=name,
        network=trained.network,
        card=Card(
            network=settings.network,
            config=settings.config,
            channels=settings.channels,
            spacing_zyx_mm=samples.spacing_zyx_mm,
            patch_zyx=samples.patch_zyx,
            margin_mm=samples.margin_mm,
            normalisation=samples.normalisation,
        ),
        digest="",
        device=settings.device,
    )
    rows = []
    for sample in parts.test:
        case = case_for(model, sample)
        rows.append(
            {
                "trial": name,
                "seed": settings.seed,
                "case": case.name,
                "patient": case.patient,
                "dice": dice(drawn(model, case.channels), case.truth),
                "best_epoch": trained.best.epoch,
            }
        )
    return rows
