"""The table of networks: a new one is a file and a line here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError
from torch import nn

from contourcast.imaging.errors import InputError, WeightsError
from contourcast.imaging.structures import nearest_name
from contourcast.models.diff_umamba import DiffUMamba, DiffUMambaConfig
from contourcast.models.umamba_bot import UMambaBot, UMambaConfig


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A network as the table knows it.

    Attributes:
        status: ``checked``: counts, properties and reference are tested here. ``trained``: there
            is a checkpoint of the house too.
    """

    config: type[UMambaConfig]
    network: type[UMambaBot]
    status: Literal["checked", "trained"]


NETWORKS: Final[Mapping[str, Entry]] = {
    "umamba-bot": Entry(config=UMambaConfig, network=UMambaBot, status="checked"),
    "diff-umamba": Entry(config=DiffUMambaConfig, network=DiffUMamba, status="trained"),
}


def build(name: str, config: UMambaConfig) -> nn.Module:
    """The network of that name, at birth."""
    return entry(name).network(config)


def entry(name: str) -> Entry:
    """The line of the table.

    Raises:
        WeightsError: There is no such network.
    """
    if name not in NETWORKS:
        near = nearest_name(name, list(NETWORKS))
        raise WeightsError(
            f"no network is named '{name}'" + (f"; the nearest is '{near}'" if near else ""),
            remedy=f"choose from {', '.join(NETWORKS)}",
        )
    return NETWORKS[name]


def config_to_plain(config: UMambaConfig) -> dict[str, Any]:
    """Every switch, as JSON knows it."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def config_from_plain(name: str, plain: Mapping[str, Any]) -> UMambaConfig:
    """The frozen configuration that a card states.

    Raises:
        WeightsError: A switch that this version does not know, one of the wrong type, or one left
            out: a card states every switch, so that no later default changes an old model.
    """
    kind = entry(name).config
    missing = _missing(config_to_plain(kind()), plain)
    if missing:
        raise WeightsError(
            f"the card leaves out {', '.join(missing)}",
            remedy="export the model again with this version",
        )
    try:
        return TypeAdapter(kind).validate_json(json.dumps(plain))
    except InputError as error:
        raise WeightsError(f"the card describes no network: {error.cause}") from error
    except ValidationError as error:
        first = error.errors()[0]
        switch = ".".join(str(part) for part in first["loc"])
        raise WeightsError(
            f"the card's switch '{switch}' cannot be used: {first['msg']}",
            remedy="use a model of this version, or a newer Contourcast",
        ) from error


def _missing(full: Mapping[str, Any], given: Mapping[str, Any], where: str = "") -> list[str]:
    missing = [f"{where}{key}" for key in full if key not in given]
    for key, value in full.items():
        if isinstance(value, dict) and isinstance(given.get(key), Mapping):
            missing += _missing(value, given[key], f"{where}{key}.")
    return missing
