"""The network that this service draws with, as far as it is known without being loaded.

The API names it and never draws: it reads the card and the digest of the weights, and has no torch.
A folder as nnU-Net writes it has to be converted to be known; that is a process of its own.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from contourcast.imaging.errors import WeightsError
from contourcast.models.networks import SEGMENTING
from contourcast.models.weights import CARD_FILE, SHIPPED, named
from contourcast.service.settings import ServiceSettings

PLANS_FILE: Final = "plans.json"  # of nnU-Net; contourcast.models.foreign has torch
CONVERTING_S: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model folder.

    Attributes:
        digest: SHA-256 (hex) of the card, which names the weights by theirs.
        card: As its file states it; of a folder of nnU-Net's own, as it was converted.
    """

    name: str
    digest: str
    card: dict[str, Any]


def served_model(settings: ServiceSettings) -> Callable[[], ServedModel]:
    """The model of the settings, read when it is first asked for."""

    @functools.lru_cache(maxsize=1)
    def read() -> ServedModel:
        folder = settings.weights or SHIPPED
        foreign = (folder / PLANS_FILE).is_file() and not (folder / CARD_FILE).exists()
        return _converted(folder) if foreign else read_model(folder)

    return read


def served_network(settings: ServiceSettings) -> Callable[[], tuple[str, str]]:
    """Name and digest of the network, read when they are first asked for."""
    model = served_model(settings)
    return lambda: (model().name, model().digest)


def read_model(folder: Path) -> ServedModel:
    """A model folder of ours.

    Raises:
        WeightsError: It is none, see `named`, or its network draws no contour.
    """
    name, digest = named(folder)
    if name not in SEGMENTING:
        raise WeightsError(
            f"a {name} draws no contour", remedy="use a model of a segmentation network"
        )
    card = json.loads((folder / CARD_FILE).read_text("utf-8"))
    return ServedModel(name=name, digest=digest, card=card)


def _converted(folder: Path) -> ServedModel:
    """A folder of nnU-Net's own, by a process that may load torch and then ends."""
    command = [sys.executable, "-m", "contourcast.service.jobs.network", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=CONVERTING_S, check=True)
    except subprocess.SubprocessError as error:
        raise WeightsError(
            "the model folder could not be converted", remedy="see contourcast models import"
        ) from error
    said = json.loads(done.stdout)
    if "refused" in said:
        raise WeightsError(**said["refused"])
    return ServedModel(**said)


def _describe(folder: Path) -> dict[str, Any]:
    from contourcast.models.foreign import ours

    try:
        with ours(folder) as place:
            return asdict(read_model(place))
    except WeightsError as error:
        parts = ("cause", "tag", "uid", "file", "remedy")
        return {"refused": {part: getattr(error, part) for part in parts}}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_describe(Path(sys.argv[1]))))
