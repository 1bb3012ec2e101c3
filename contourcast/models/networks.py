"""The table of networks: a new one is a file and a line here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from contourcast.imaging.errors import InputError, WeightsError
from contourcast.imaging.structures import nearest_name
from contourcast.models.config import NetworkConfig
from contourcast.models.libraries import untouched_path

if TYPE_CHECKING:  # the table is read where nothing is computed
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A network as the table knows it; its file is imported when it is first asked for.

    Attributes:
        home: Module of the network and its configuration.
        network: Name of the class there; it is called with a configuration.
        config: Name of the configuration there; its defaults are the setting of NETWORKS §1.
        status: ``main``: what Contourcast is for. ``peer``: a published network, to be compared
            with. ``experimental``: our reading of an article without code.
        source: Where it is from.
        needs: Package beyond the base installation; empty: none.
        task: What its answer is: logits of each voxel, one map for each landmark, or logits of the
            whole image.
    """

    home: str
    network: str
    config: str
    status: Literal["main", "peer", "experimental"]
    source: str
    needs: str = ""
    task: Literal["segmentation", "landmarks", "classification"] = "segmentation"

    @property
    def config_kind(self) -> type[NetworkConfig]:
        """The class of its configurations."""
        kind: type[NetworkConfig] = getattr(self._module(), self.config)
        return kind

    @property
    def network_kind(self) -> type[nn.Module]:
        """Its class."""
        kind: type[nn.Module] = getattr(self._module(), self.network)
        return kind

    def build(self, config: NetworkConfig) -> nn.Module:
        """The network, at birth."""
        return self.network_kind(config)

    def _module(self) -> ModuleType:
        try:
            with untouched_path():
                return import_module(f"contourcast.models.{self.home}")
        except ModuleNotFoundError as error:
            if not self.needs or error.name is None or error.name.startswith("contourcast"):
                raise
            raise InputError(
                f"this network needs the package {self.needs}",
                remedy="pip install 'contourcast[networks]'",
            ) from error


NETWORKS: Final[Mapping[str, Entry]] = {
    "diff-umamba": Entry(
        home="diff_umamba",
        network="DiffUMamba",
        config="DiffUMambaConfig",
        status="main",
        source="Biomedical Signal Processing and Control 120 (2026) 110163",
    ),
    "umamba-bot": Entry(
        home="umamba_bot",
        network="UMambaBot",
        config="UMambaConfig",
        status="peer",
        source="arXiv 2401.04722",
    ),
    "umamba-enc": Entry(
        home="umamba_enc",
        network="UMambaEnc",
        config="UMambaEncConfig",
        status="peer",
        source="arXiv 2401.04722",
    ),
    "nnunet-plainconv": Entry(
        home="plain_conv",
        network="PlainConv",
        config="PlainConvConfig",
        status="peer",
        source="Nature Methods 18 (2021) 203",
        needs="dynamic-network-architectures",
    ),
    "nnunet-resenc": Entry(
        home="residual_encoder",
        network="ResidualEncoder",
        config="ResidualEncoderConfig",
        status="peer",
        source="nnU-Net Revisited, MICCAI 2024",
        needs="dynamic-network-architectures",
    ),
    "segresnet": Entry(
        home="segresnet",
        network="SegResNet",
        config="SegResNetConfig",
        status="peer",
        source="arXiv 1810.11654",
        needs="monai",
    ),
    "unetr": Entry(
        home="unetr",
        network="Unetr",
        config="UnetrConfig",
        status="peer",
        source="arXiv 2103.10504",
        needs="monai",
    ),
    "swin-unetr": Entry(
        home="swin_unetr",
        network="SwinUnetr",
        config="SwinUnetrConfig",
        status="peer",
        source="arXiv 2201.01266",
        needs="monai",
    ),
    "lkm-unet": Entry(
        home="lkm_unet",
        network="LkmUnet",
        config="LkmUnetConfig",
        status="peer",
        source="arXiv 2403.07332",
    ),
    "segmamba": Entry(
        home="segmamba",
        network="SegMamba",
        config="SegMambaConfig",
        status="peer",
        source="arXiv 2401.13560",
    ),
    "lma-unet": Entry(
        home="lma_unet",
        network="LmaUnet",
        config="LmaUnetConfig",
        status="experimental",
        source="our reading of an article without code",
    ),
    "nnmamba": Entry(
        home="nn_mamba",
        network="NnMamba",
        config="NnMambaConfig",
        status="peer",
        source="arXiv 2402.03526",
    ),
    "nnmamba-landmarks": Entry(
        home="nn_mamba",
        network="NnMambaLandmarks",
        config="NnMambaConfig",
        status="peer",
        source="arXiv 2402.03526",
        task="landmarks",
    ),
    "nnmamba-classifier": Entry(
        home="nn_mamba",
        network="NnMambaClassifier",
        config="NnMambaClassifierConfig",
        status="peer",
        source="arXiv 2402.03526",
        task="classification",
    ),
    "swin-umamba": Entry(
        home="swin_umamba",
        network="SwinUMamba",
        config="SwinUMambaConfig",
        status="peer",
        source="arXiv 2402.03302",
    ),
    "swin-umamba-d": Entry(
        home="swin_umamba_d",
        network="SwinUMambaD",
        config="SwinUMambaDConfig",
        status="peer",
        source="arXiv 2402.03302",
    ),
    "swin-umamba-cffm": Entry(
        home="swin_umamba_cffm",
        network="SwinUMambaCffm",
        config="SwinUMambaCffmConfig",
        status="experimental",
        source="an article without code (NETWORKS §11)",
    ),
}

# Those that answer with a contour.
SEGMENTING: Final = tuple(n for n, line in NETWORKS.items() if line.task == "segmentation")


def build(name: str, config: NetworkConfig) -> nn.Module:
    """The network of that name, at birth."""
    return entry(name).build(config)


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


def config_to_plain(config: NetworkConfig) -> dict[str, Any]:
    """Every switch, as JSON knows it."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def config_from_plain(name: str, plain: Mapping[str, Any]) -> NetworkConfig:
    """The frozen configuration that a card states.

    Raises:
        WeightsError: A switch that this version does not know, one of the wrong type, or one left
            out: a card states every switch, so that no later default changes an old model.
    """
    kind = entry(name).config_kind
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
