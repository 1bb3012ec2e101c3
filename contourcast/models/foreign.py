"""A model folder as nnU-Net writes it becomes one of ours; nothing in it is run.

```
FOLDER/plans.json  dataset.json  fold_0/checkpoint_final.pth
```

What the network is, is read from the plans: its class must be one of the table or one of the two
stock ones, for a class of another name could be any program. The checkpoint is opened by a process
of its own (`contourcast.models.foreign_child`), which hands over tensors and numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor

from contourcast.imaging.errors import InputError, WeightsError
from contourcast.models import foreign_child
from contourcast.models.config import NetworkConfig
from contourcast.models.networks import NETWORKS, build
from contourcast.models.plans import FIXED, config_of, name_of_class
from contourcast.models.seen import Seen
from contourcast.models.stages import StagesConfig
from contourcast.models.weights import (
    CARD_FILE,
    Card,
    Normalisation,
    fill,
    save_model,
)

PLANS_FILE: Final = "plans.json"
DATASET_FILE: Final = "dataset.json"
CHECKPOINTS: Final = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
MAX_JSON_BYTES: Final = 2**26  # a fingerprint is not read; plans of the largest sets have 100 kB
SECONDS: Final = 600
# How many slices a network of two axes is given at once; each is seen alone.
SLICES: Final = 8
CHILD: Final = (sys.executable, "-m", foreign_child.__name__)
# nnU-Net's own networks, by every path that its versions have given them.
STOCK: Final[Mapping[str, str]] = {
    f"dynamic_network_architectures.architectures.{path}": name
    for path, name in (
        ("unet.PlainConvUNet", "nnunet-plainconv"),
        ("plain_conv_unet.PlainConvUNet", "nnunet-plainconv"),
        ("unet.ResidualEncoderUNet", "nnunet-resenc"),
        ("residual_unet.ResidualEncoderUNet", "nnunet-resenc"),
    )
}
# Networks whose weights can be turned with their axes: nothing in them knows an axis by its place.
TURNABLE: Final = frozenset(STOCK.values())
# What a stock class is without these is another network than ours, so plans must state them.
STATED: Final = tuple(key for key in FIXED if key in ("conv_bias", "norm_op_kwargs", "nonlin"))
CHANNELS_BY_SCHEMES: Final[Mapping[tuple[str, ...], tuple[str, ...]]] = {
    ("CTNormalization",): ("cbct",),
    ("ZScoreNormalization",): ("cbct",),
    ("CTNormalization", "NoNormalization"): ("cbct", "r_ct"),
    ("ZScoreNormalization", "NoNormalization"): ("cbct", "r_ct"),
}


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What a folder of nnU-Net does not say.

    Attributes:
        fold: Which of several; None: the only one.
        margin_mm: Round the prior, where the network is to look.
        region: Whether it was trained on regions round the prior rather than on whole scans.
        seen: The scans it was trained on; None: not known.
        training: What people should know of it, beside what the folder says.
    """

    fold: str | None = None
    margin_mm: float = 30.0
    region: bool = False
    seen: Seen | None = None
    training: Mapping[str, Any] = field(default_factory=dict)


def is_foreign(folder: Path) -> bool:
    """Whether it is a model folder as nnU-Net writes it, and not one of ours."""
    return (folder / PLANS_FILE).is_file() and not (folder / CARD_FILE).exists()


def import_folder(folder: Path, out: Path, settings: ImportSettings | None = None) -> Card:
    """Converts nnU-Net's model folder; the answer is the card of the new one.

    Args:
        folder: Holds plans.json, dataset.json and fold_x folders.
        out: Where weights and card go.
        settings: What the folder does not say.

    Raises:
        WeightsError: The folder is not whole, its network is not one that we know, its checkpoint
            holds a program, its weights are of another network, its channels or labels are not
            what can be shown or drawn here.
    """
    settings = settings or ImportSettings()
    plans, dataset = _json(folder / PLANS_FILE), _json(folder / DATASET_FILE)
    checkpoint = _checkpoint(folder, settings.fold)
    likely = _likely_configuration(plans, folder)
    model = _described(plans, dataset, likely) if likely else None
    state, facts = read_apart(checkpoint)
    stated = facts.get("configuration") or likely
    if model is None or stated != likely:
        model = _described(plans, dataset, stated)
    state = {key: _turned(value, model.order) for key, value in _once(state).items()}
    with torch.device("meta"):
        network = build(model.network, model.config)
    fill(network, state)
    card = Card(
        network=model.network,
        config=model.config,
        channels=model.channels,
        spacing_zyx_mm=model.spacing_zyx_mm,
        patch_zyx=model.patch_zyx,
        margin_mm=settings.margin_mm,
        normalisation=model.normalisation(region=settings.region),
        windows="region" if settings.region else "scan",
        seen=settings.seen,
        training={
            "checkpoint_sha256": _sha256(checkpoint),
            "data": str(plans.get("dataset_name", "")),
            "epochs": facts.get("current_epoch"),
            "fold": facts.get("fold"),
            "plans": str(plans.get("plans_name", "")),
            "trainer": facts.get("trainer_name"),
            "validation_dice_of_patches": facts.get("_best_ema"),
        }
        | dict(settings.training),
    )
    return save_model(out, network, card, dtype=torch.float32)


@contextmanager
def ours(folder: Path) -> Iterator[Path]:
    """The folder itself when it is one of ours; else, for as long as it is needed, its import."""
    if not is_foreign(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="contourcast-import-") as name:
        import_folder(folder, Path(name))
        yield Path(name)


def read_apart(
    checkpoint: Path, *, program: Sequence[str] = CHILD, seconds: float = SECONDS
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a checkpoint, read by a process that has little to lose.

    Args:
        checkpoint: As nnU-Net writes it.
        program: What is started, with checkpoint and folder as its last arguments.
        seconds: After which it is ended.

    Raises:
        WeightsError: The checkpoint was refused, or the process did not come to an end.
    """
    with tempfile.TemporaryDirectory(prefix="contourcast-checkpoint-") as name:
        place = Path(name)
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        try:
            code = subprocess.run(
                [*program, str(checkpoint.resolve()), name],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=environment,
                timeout=seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise WeightsError(
                f"reading the checkpoint did not end within {seconds:g} s", file=checkpoint.name
            ) from None
        if code == foreign_child.REFUSED:
            raise WeightsError(**json.loads((place / foreign_child.ERROR_FILE).read_text()))
        if code != 0:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            raise WeightsError(
                f"the process that reads the checkpoint {how}",
                file=checkpoint.name,
                remedy="the file is damaged, forged, or larger than this machine can read",
            )
        tensors = safetensors.torch.load_file(place / foreign_child.TENSORS_FILE)
        facts: dict[str, Any] = json.loads((place / foreign_child.FACTS_FILE).read_text())
        return tensors, facts


def _checkpoint(folder: Path, fold: str | None) -> Path:
    folds = sorted(p.name.removeprefix("fold_") for p in folder.glob("fold_*") if p.is_dir())
    wanted = [fold] if fold is not None else folds
    if len(wanted) != 1 or wanted[0] not in folds:
        raise WeightsError(
            f"the model folder has the folds {', '.join(folds) or 'none'}"
            + (f", not {fold}" if fold is not None else ""),
            remedy="choose one: contourcast models import --fold" if folds else "",
        )
    for name in CHECKPOINTS:
        path = folder / f"fold_{wanted[0]}" / name
        if path.is_file():
            return path
    raise WeightsError(f"fold {wanted[0]} has no {CHECKPOINTS[0]}", remedy="train it first")


@dataclass(frozen=True, kw_only=True)
class _Described:
    """What the plans say of one model.

    Attributes:
        config: Of the network as it stands on images whose axes are z y x.
        order: Which axis of such images nnU-Net put first, second and third.
        channels: What they are here.
        window: How a scan is normalised by numbers of the training data; None: by its own.
    """

    network: str
    config: NetworkConfig
    order: tuple[int, ...]
    spacing_zyx_mm: tuple[float, float, float]
    patch_zyx: tuple[int, int, int]
    channels: tuple[str, ...]
    window: Normalisation | None

    def normalisation(self, *, region: bool) -> Normalisation:
        """Of the scan, as it was when the network was trained on regions or on whole scans."""
        return self.window or Normalisation(kind="crop-zscore" if region else "scan-zscore")


def _likely_configuration(plans: Mapping[str, Any], folder: Path) -> str | None:
    """The one that the folder is named after, or the only one; the checkpoint knows better."""
    names = plans.get("configurations")
    if not isinstance(names, dict) or not names:
        raise WeightsError("the plans have no configurations", file=PLANS_FILE)
    suffix = folder.name.rpartition("__")[2]
    return suffix if suffix in names else next(iter(names)) if len(names) == 1 else None


def _described(plans: Mapping[str, Any], dataset: Mapping[str, Any], name: object) -> _Described:
    try:
        configuration = _configuration(plans, name)
        network, config = _network(configuration, dataset)
        order = tuple(int(n) for n in plans.get("transpose_forward", (0, 1, 2)))
        spacing = [float(n) for n in configuration["spacing"]]
        patch = [int(n) for n in configuration["patch_size"]]
        if config.axes == 2:  # nnU-Net leaves the slices as they are
            spacing = [float(plans["original_median_spacing_after_transp"][0]), *spacing]
            patch = [SLICES, *patch]
        if sorted(order) != [0, 1, 2] or len(spacing) != 3 or len(patch) != 3:
            raise ValueError("not three axes")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise WeightsError(
            "the plans or the data set's description are not whole", file=PLANS_FILE
        ) from error
    if min(*spacing, *patch) <= 0:
        raise WeightsError("the plans state sizes that no image has", file=PLANS_FILE)
    if order != (0, 1, 2):
        config = _turned_config(network, config, order)
    patch_zyx = _in_place(patch, order)
    try:
        config.require_patch(patch_zyx[-config.axes :])
    except InputError as error:
        raise WeightsError(error.cause, file=PLANS_FILE) from error
    return _Described(
        network=network,
        config=config,
        order=order,
        spacing_zyx_mm=_in_place(spacing, order),
        patch_zyx=patch_zyx,
        channels=_channels(configuration, config),
        window=_window(configuration, plans),
    )


def _configuration(plans: Mapping[str, Any], name: object, *, below: int = 0) -> dict[str, Any]:
    """What the plans say under that name, with all that it inherits."""
    named = str(name)
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or not isinstance(configurations.get(named), dict):
        raise WeightsError(f"the plans have no configuration '{named[:40]}'", file=PLANS_FILE)
    own: dict[str, Any] = configurations[named]
    parent: dict[str, Any] = {}
    if "inherits_from" in own:
        if below > len(configurations):
            raise WeightsError("the plans' configurations inherit in a circle", file=PLANS_FILE)
        parent = _configuration(plans, own["inherits_from"], below=below + 1)
    whole = parent | own
    if "previous_stage" in whole:
        raise WeightsError("a cascade needs two models", remedy="use its 3d_fullres model")
    missing = [
        key
        for key in ("architecture", "spacing", "patch_size", "normalization_schemes")
        if below == 0 and key not in whole
    ]
    if missing:
        raise WeightsError(
            f"the plans leave out {', '.join(missing)}",
            file=PLANS_FILE,
            remedy="plan and train with nnU-Net 2.4 or newer",
        )
    return whole


def _network(
    configuration: Mapping[str, Any], dataset: Mapping[str, Any]
) -> tuple[str, NetworkConfig]:
    architecture = configuration["architecture"]
    class_name = str(architecture["network_class_name"])
    arguments = dict(architecture["arch_kwargs"])
    labels = [name for name in dataset["labels"] if name != "ignore"]
    channels = len(dataset["channel_names"])
    name = STOCK.get(class_name) or name_of_class(class_name)
    if name is None or name not in NETWORKS:
        raise WeightsError(
            f"the plans name the network {class_name[:80]}, which is not one of the table; another "
            "class could be any program, so none is looked for",
            file=PLANS_FILE,
            remedy=f"known are {', '.join([*NETWORKS])}",
        )
    if class_name in STOCK and any(key not in arguments for key in STATED):
        raise WeightsError(f"the plans leave out one of {', '.join(STATED)}", file=PLANS_FILE)
    if len(labels) != 2 or any(isinstance(dataset["labels"][label], list) for label in labels):
        raise WeightsError(
            f"the model draws {len(labels) - 1} labels; here one is drawn",
            file=DATASET_FILE,
            remedy="train on a data set with background and target alone",
        )
    try:
        config = config_of(name, arguments, input_channels=channels, num_classes=len(labels))
    except InputError as error:
        raise WeightsError(error.cause, file=PLANS_FILE) from error
    return name, config


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what nnU-Net's state dicts hold under a second name."""
    return {
        key: value
        for key, value in state.items()
        if ".all_modules." not in key and not key.startswith("decoder.encoder.")
    }


def _turned_config(name: str, config: NetworkConfig, order: Sequence[int]) -> NetworkConfig:
    """A network for images whose axes nnU-Net exchanged, as one for images as they are.

    A convolution of an image with exchanged axes is the convolution with the kernel whose axes are
    exchanged back: it is the network that is turned, once, and no image.
    """
    if name not in TURNABLE or not isinstance(config, StagesConfig) or config.axes == 2:
        raise WeightsError(
            "this network was trained on images with exchanged axes, and cannot be turned back",
            file=PLANS_FILE,
            remedy="plan again with: contourcast train plan, which leaves the axes as they are",
        )
    return replace(
        config,
        kernels=tuple(_in_place(k, order) for k in config.kernels),
        strides=tuple(_in_place(s, order) for s in config.strides),
    )


def _turned(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """A kernel of three axes, with them in the order z y x."""
    if tensor.ndim != 5:
        return tensor
    return tensor.permute(0, 1, *(2 + order.index(axis) for axis in range(3))).contiguous()


def _in_place(values: Sequence[Any], order: Sequence[int]) -> Any:
    """Values of exchanged axes, in the order z y x."""
    return tuple(values[order.index(axis)] for axis in range(3))


def _channels(configuration: Mapping[str, Any], config: NetworkConfig) -> tuple[str, ...]:
    schemes = tuple(str(scheme) for scheme in configuration["normalization_schemes"])
    if len(schemes) != config.channels_in:
        raise WeightsError(
            f"the data set has {config.channels_in} channels and the plans normalise "
            f"{len(schemes)}",
            file=DATASET_FILE,
        )
    if any(configuration.get("use_mask_for_norm", ())):
        raise WeightsError(
            "the model's images were normalised within a mask, which a scan here has none of",
            file=PLANS_FILE,
        )
    if schemes not in CHANNELS_BY_SCHEMES:
        raise WeightsError(
            f"the model wants channels normalised as {', '.join(schemes)[:120]}; what can be shown "
            "is a scan (CT or zscore) and the carried prior (noNorm)",
            file=PLANS_FILE,
            remedy="train on the scan, or on the scan and the prior as a noNorm channel",
        )
    return CHANNELS_BY_SCHEMES[schemes]


def _window(configuration: Mapping[str, Any], plans: Mapping[str, Any]) -> Normalisation | None:
    if configuration["normalization_schemes"][0] == "ZScoreNormalization":
        return None
    try:
        found = plans["foreground_intensity_properties_per_channel"]["0"]
        return Normalisation(
            kind="ct",
            lower_hu=float(found["percentile_00_5"]),
            upper_hu=float(found["percentile_99_5"]),
            mean_hu=float(found["mean"]),
            sd_hu=float(found["std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            "the plans do not say how the scan was normalised", file=PLANS_FILE
        ) from error
    except InputError as error:
        raise WeightsError(error.cause, file=PLANS_FILE) from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsError(
            f"the model folder has no {path.name}",
            remedy=f"nnU-Net's model folders hold {PLANS_FILE}, {DATASET_FILE} and fold_x",
        )
    if path.stat().st_size > MAX_JSON_BYTES:
        raise WeightsError(f"{path.name} is larger than any that nnU-Net writes", file=path.name)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path.name} is not JSON", file=path.name) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path.name} is not what nnU-Net writes", file=path.name)
    return content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
