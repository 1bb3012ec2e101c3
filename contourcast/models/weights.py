"""A model folder: ``weights.safetensors`` and ``card.json``, and nothing that can run.

The card says what the network is and what it was trained to see; it names the weights by their
SHA-256. Pickles (``.pt``, ``.pth``) are never opened: they can hold programs.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError

from contourcast.imaging.errors import InputError, WeightsError
from contourcast.models.config import STRICT, NetworkConfig
from contourcast.models.networks import build, config_from_plain, config_to_plain
from contourcast.models.seen import Seen

if TYPE_CHECKING:  # a card is read where nothing is computed
    import torch
    from torch import Tensor, nn

SHIPPED: Final = Path(__file__).parent / "checkpoints" / "diff-umamba"
WEIGHTS_FILE: Final = "weights.safetensors"
CARD_FILE: Final = "card.json"
# Largest files that are opened: the largest network of the table (67 million float32) is 0.27 GB;
# a safetensors header of it is 0.1 MB; a card is a few kB.
MAX_WEIGHTS_BYTES: Final = 2**30
MAX_HEADER_BYTES: Final = 2**22
MAX_CARD_BYTES: Final = 2**20
# Between which a model's grid is spaced: finer ones fill the memory, coarser ones miss the target.
FINEST_MM: Final = 0.1
COARSEST_MM: Final = 20.0
# What a model can be shown, in this order: today's scan always; the carried prior; the planning CT,
# carried like the prior; both once more, deformed onto today's scan (follow.py).
KNOWN_CHANNELS: Final = ("cbct", "r_ct", "planning_ct", "followed_r_ct", "followed_planning_ct")
FOLLOWED: Final = KNOWN_CHANNELS[3:]
# Those that a planning CT is needed for.
CARRIED_CT: Final = KNOWN_CHANNELS[2:]
# The authors' names of tensors, and ours: Diff-UMamba's, and nnU-Net's BasicBlockD, which wraps
# convolution and norm in one module.
PUBLISHED_NAMES: Final = {
    r"^mamba_m_1\.": "mamba_layer.",
    r"^mamba_m_2\.": "nrm.mamba.",
    r"^proj_convs\.": "nrm.proj.",
    r"^lambdas$": "nrm.lambdas",
    r"\.conv([12])\.(conv|norm)\.": r".\2\1.",
}
PICKLE_STARTS: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """How the CBCT's numbers become the network's: clip, subtract a mean, divide by an sd.

    Cone beams are not calibrated (soft tissue of one scanner reads -130 HU, lung -420), so no
    fixed window fits them all, and ``region-zscore`` looks anew at each scan. The others are what
    nnU-Net does to a channel that is named ``zscore`` or ``CT``.

    Attributes:
        kind: ``region-zscore``: percentiles, mean and sd of the voxels that were observed in the
            region round the prior. ``crop-zscore``: mean and sd of that region with its filled
            places, nothing clipped. ``scan-zscore``: the same of the whole scan. ``ct``: the
            numbers stand here, found once in the training data.
        lower_hu: With ``ct``, and so for the three after it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Literal["region-zscore", "crop-zscore", "scan-zscore", "ct"] = "region-zscore"
    lower_percentile: float = 1.0
    upper_percentile: float = 99.0
    lower_hu: float | None = None
    upper_hu: float | None = None
    mean_hu: float | None = None
    sd_hu: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.lower_percentile < self.upper_percentile <= 100:  # nor with NaN
            raise InputError(
                f"normalisation: the percentiles {self.lower_percentile:g} and "
                f"{self.upper_percentile:g} are not two of 0 to 100, the lower first"
            )
        window = (self.lower_hu, self.upper_hu, self.mean_hu, self.sd_hu)
        stated = [value for value in window if value is not None and math.isfinite(value)]
        if len(stated) != (4 if self.kind == "ct" else 0):
            raise InputError(
                f"normalisation.kind {self.kind} goes with "
                f"{'four' if self.kind == 'ct' else 'no'} numbers of HU, {len(stated)} are stated"
            )
        if self.kind == "ct" and (stated[0] >= stated[1] or stated[3] <= 0):
            raise InputError("normalisation: the window is empty, or its sd is not above zero")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model is, was trained on, and must be given.

    Attributes:
        network: Its name in the table of networks.
        config: Every switch of the network.
        channels: What the input channels are.
        spacing_zyx_mm: Of the grid it works on.
        patch_zyx: Voxels it was trained on; larger regions are covered by overlapping windows.
        margin_mm: How far round the prior it looks.
        normalisation: Of channel 0; channel 1 is a probability and stays.
        windows: Where they lie: over the region round the prior (``region``); or over the whole
            ``scan`` as nnU-Net lays them, of which those are drawn that tell near the prior.
            Networks normalise in each window, so in others they draw another contour.
        weights_sha256: Of the weights file.
        seen: The scans it was fitted on; None: not known.
        training: How it came about: command, seed, data, figures; for people.
    """

    network: str
    config: NetworkConfig
    channels: tuple[str, ...] = KNOWN_CHANNELS[:2]
    spacing_zyx_mm: tuple[float, float, float]
    patch_zyx: tuple[int, int, int]
    margin_mm: float
    normalisation: Normalisation = field(default_factory=Normalisation)
    windows: Literal["region", "scan"] = "region"
    weights_sha256: str = ""
    seen: Seen | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One stable text; what is not known is left out, as in the cards of before."""
        plain = asdict(self) | {"format": 1, "config": config_to_plain(self.config)}
        if self.seen is None:
            del plain["seen"]
        return json.dumps(plain, indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True, kw_only=True)
class _PlainCard:
    """The card as its file states it, before the network's own switches are understood."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    format: Literal[1]
    network: str
    config: dict[str, Any]
    channels: tuple[str, ...]
    spacing_zyx_mm: tuple[float, float, float]
    patch_zyx: tuple[int, int, int]
    margin_mm: float
    normalisation: Normalisation
    weights_sha256: str
    training: dict[str, Any]
    windows: Literal["region", "scan"] = "region"
    seen: Seen | None = None


def card_from_json(text: str | bytes) -> Card:
    """Reads a card.

    Raises:
        WeightsError: Not JSON, an unknown or missing entry, a switch that this version lacks.
    """
    plain = _plain_card(text)
    entries = {f.name: getattr(plain, f.name) for f in fields(plain)}
    del entries["format"]
    return Card(**entries | {"config": config_from_plain(plain.network, plain.config)})


def _plain_card(text: str | bytes) -> _PlainCard:
    try:
        plain = TypeAdapter(_PlainCard).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WeightsError(
            f"the model card cannot be used: {where + ': ' if where else ''}{first['msg']}",
            file=CARD_FILE,
            remedy="export the model again, or use the Contourcast it was made with",
        ) from error
    except InputError as error:
        raise WeightsError(
            f"the model card cannot be used: {error.cause}", file=CARD_FILE
        ) from error
    if not all(FINEST_MM <= mm <= COARSEST_MM for mm in plain.spacing_zyx_mm):  # nor with NaN
        stated = ", ".join(f"{mm:g}" for mm in plain.spacing_zyx_mm)
        raise WeightsError(
            f"the model card states sizes that no image has: a spacing of {stated} mm, "
            f"possible are {FINEST_MM:g} to {COARSEST_MM:g}",
            file=CARD_FILE,
        )
    if min(plain.patch_zyx) <= 0 or not 0 <= plain.margin_mm <= 500:
        raise WeightsError("the model card states sizes that no image has", file=CARD_FILE)
    return plain


def save_model(folder: Path, network: nn.Module, card: Card, *, dtype: torch.dtype) -> Card:
    """Writes weights and card; the answer is the card with the weights' digest in it."""
    import safetensors.torch

    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().to(dtype) for key, value in network.state_dict().items()}
    data = safetensors.torch.save({key: value.contiguous() for key, value in state.items()})
    complete = replace(card, weights_sha256=hashlib.sha256(data).hexdigest())
    (folder / WEIGHTS_FILE).write_bytes(data)
    (folder / CARD_FILE).write_text(complete.to_json(), encoding="utf-8")
    return complete


def load_model(folder: Path) -> tuple[nn.Module, Card, str]:
    """The network, its card, and the model's digest (SHA-256 of the card, which names the weights).

    Raises:
        WeightsError: A file is missing, is a link to elsewhere, too large, a pickle, not the one
            that the card names, or holds other tensors than the network has.
    """
    import torch

    text = _read(folder, CARD_FILE, MAX_CARD_BYTES)
    card = card_from_json(text)
    data = _read(folder, WEIGHTS_FILE, MAX_WEIGHTS_BYTES)
    _require_named(hashlib.sha256(data).hexdigest(), card.weights_sha256)
    with torch.device("meta"):  # nothing is allocated for what a card merely claims
        network = build(card.network, card.config)
    fill(network, tensors_of(data))
    return network.eval(), card, hashlib.sha256(text).hexdigest()


def named(folder: Path) -> tuple[str, str]:
    """The network's name and the model's digest, as `load_model` finds them; nothing is built.

    Raises:
        WeightsError: A file is missing, is a link to elsewhere or too large, the card is none, or
            the weights are not those that it names.
    """
    text = _read(folder, CARD_FILE, MAX_CARD_BYTES)
    card = _plain_card(text)
    with _path(folder, WEIGHTS_FILE, MAX_WEIGHTS_BYTES).open("rb") as weights:
        _require_named(hashlib.file_digest(weights, "sha256").hexdigest(), card.weights_sha256)
    return card.network, hashlib.sha256(text).hexdigest()


def _require_named(found: str, stated: str) -> None:
    if found != stated:
        raise WeightsError(
            f"the weights are not those of the card: SHA-256 {found[:12]}…, "
            f"the card says {stated[:12] or 'none'}…",
            file=WEIGHTS_FILE,
            remedy="copy the whole model folder again",
        )


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Makes tensors a network's own, each in its place and none left over.

    Raises:
        WeightsError: Unknown, missing or misshapen tensors, or numbers that are not finite.
    """
    import torch

    own = network.state_dict()
    unknown, missing = sorted(set(state) - set(own)), sorted(set(own) - set(state))
    if unknown or missing:
        raise WeightsError(
            f"the weights are of another network: {listed('unknown', unknown)}"
            f"{'; ' if unknown and missing else ''}{listed('missing', missing)}"
        )
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise WeightsError(
                f"tensor {key} has shape {tuple(value.shape)}, needed is {tuple(own[key].shape)}"
            )
        if not torch.isfinite(value).all():
            raise WeightsError(f"tensor {key} holds numbers that are not finite")
    network.load_state_dict(dict(state), assign=True)


def import_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of the authors' checkpoints of U-Mamba and Diff-UMamba to ours.

    Known are UMamba-Bot's and -Enc's names and Diff-UMamba's two key sets (``mamba_m_1``,
    ``mamba_m_2``, ``proj_convs.i``, ``lambdas``; and ``conv3d_i``, ``lambda_i``). Modules that
    their state dicts hold twice (``decoder.encoder``, ``all_modules``) are dropped. What is then
    unknown or missing is for `fill` to refuse.
    """
    import torch

    renamed: dict[str, Tensor] = {}
    scalars: dict[int, Tensor] = {}
    for key, value in state.items():
        if key.startswith("decoder.encoder.") or ".all_modules." in key:
            continue
        if number := re.fullmatch(r"lambda_(\d+)", key):
            scalars[int(number[1])] = value.reshape(1)
            continue
        renamed[_renamed(key)] = value.reshape(-1) if key == "lambdas" else value
    if scalars:
        renamed["nrm.lambdas"] = torch.cat([scalars[i] for i in sorted(scalars)])
    return renamed


def _renamed(key: str) -> str:
    if number := re.match(r"conv3d_([1-9]\d*)\.", key):
        return f"nrm.proj.{int(number[1]) - 1}.{key[number.end() :]}"
    for theirs, ours in PUBLISHED_NAMES.items():
        key = re.sub(theirs, ours, key)
    return key


def _read(folder: Path, name: str, limit: int) -> bytes:
    return _path(folder, name, limit).read_bytes()


def _path(folder: Path, name: str, limit: int) -> Path:
    """One small file that really lies in the folder."""
    path = folder / name
    if not path.is_file():
        pickles = [p.name for p in folder.glob("*.p*t*")] if folder.is_dir() else []
        raise WeightsError(
            f"the model folder has no {name}",
            file=pickles[0] if pickles else "",
            remedy=(
                "pickled checkpoints are never opened, they can run programs: convert it to "
                "safetensors where it was trained"
                if pickles
                else f"a model folder holds {CARD_FILE} and {WEIGHTS_FILE}"
            ),
        )
    if path.resolve().parent != folder.resolve():
        raise WeightsError(
            f"{name} is a link that leaves the model folder", file=name, remedy="copy the file"
        )
    size = path.stat().st_size
    if size > limit:
        raise WeightsError(f"{name} has {size} bytes, the limit is {limit}", file=name)
    return path


def tensors_of(data: bytes, *, file: str = WEIGHTS_FILE) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as float32.

    Raises:
        WeightsError: It is a pickle, or no whole safetensors file.
    """
    import safetensors.torch

    if data.startswith(PICKLE_STARTS):
        raise WeightsError(
            "this is a pickle, not a safetensors file; pickles can run programs, none is opened",
            file=file,
            remedy="convert it to safetensors where it was trained",
        )
    header = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if header > min(MAX_HEADER_BYTES, len(data) - 8):
        raise WeightsError(
            f"the file claims a header of {header} bytes and has {len(data)}",
            file=file,
            remedy="the file is truncated or forged: fetch it again",
        )
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(
            f"not a readable safetensors file ({error})",
            file=file,
            remedy="fetch it again",
        ) from error
    return {key: value.float() for key, value in tensors.items()}


def listed(word: str, keys: list[str]) -> str:
    """Every one of some keys, for an error."""
    return f"{word} {', '.join(keys)}" if keys else ""
