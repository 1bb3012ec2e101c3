"""From nnU-Net's result folder to the model folder that the service loads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from contourcast.imaging.errors import InputError
from contourcast.models.foreign import DATASET_FILE, PLANS_FILE, ImportSettings, import_folder
from contourcast.models.seen import Seen, united
from contourcast.models.weights import Card
from contourcast.training.datasets.nnunet_raw import PROVENANCE_FILE
from contourcast.training.datasets.source import SEEN
from contourcast.training.nnunet.progress import read_rows
from contourcast.training.nnunet.recipe import PLANS_KEY
from contourcast.training.nnunet.run import FINAL, RunSettings, fold_folder
from contourcast.training.nnunet.workplace import Workplace

# What of a prepared data set's provenance tells how its scans were cut.
EXTENT: Final = "extent"


def export(workplace: Workplace, number: int, settings: RunSettings, out: Path) -> Card:
    """Converts a finished training; the card says what it was trained on, and how.

    Raises:
        InputError: The training has not come to its end.
        WeightsError: Its network is shown or draws what no scan here has.
    """
    fold = fold_folder(workplace, number, settings)
    if not (fold / FINAL).is_file():
        raise InputError(
            f"fold {settings.fold} of {settings.plans_name} has not been trained to its end",
            remedy="go on with: contourcast train run",
        )
    made = _provenance(workplace.raw / workplace.dataset(number))
    rows = read_rows(fold)
    facts: dict[str, Any] = {
        "recipe": json.loads((fold.parent / PLANS_FILE).read_text(encoding="utf-8"))[PLANS_KEY],
        "data_set": {key: made[key] for key in ("settings", "citation") if key in made},
        "cases": len(made.get("cases", {})) or _number_of_cases(fold.parent),
        "last_epoch": {
            key: value
            for key, value in (rows[-1].to_plain() if rows else {}).items()
            if math.isfinite(value)
        },
    }
    given = made.get("settings", {})
    asked = ImportSettings(
        fold=str(settings.fold), region=given.get(EXTENT) == "region", training=facts
    )
    asked = replace(asked, seen=seen_in(made))
    margin = given.get("margin_mm")
    if isinstance(margin, int | float):
        asked = replace(asked, margin_mm=float(margin))
    return import_folder(fold.parent, out, asked)


def seen_in(made: Mapping[str, Any]) -> Seen | None:
    """What the scans of all cases were, as far as the source of each knew it."""
    known = TypeAdapter(Seen)
    told = (case.get("facts", {}).get(SEEN) for case in made.get("cases", {}).values())
    return united(
        None if plain is None else known.validate_json(json.dumps(plain)) for plain in told
    )


def _provenance(raw: Path) -> dict[str, Any]:
    path = raw / PROVENANCE_FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _number_of_cases(model: Path) -> int:
    return int(json.loads((model / DATASET_FILE).read_text(encoding="utf-8"))["numTraining"])
