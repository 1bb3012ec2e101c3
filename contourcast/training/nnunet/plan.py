"""From a raw data set to plans that name one of our networks, and preprocessed cases."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from contourcast.imaging.errors import InputError
from contourcast.imaging.files import write_atomically
from contourcast.models.config import NetworkConfig
from contourcast.models.networks import config_from_plain, config_to_plain, entry
from contourcast.models.plans import arguments_of, class_name, config_of
from contourcast.training.datasets.nnunet_raw import PROVENANCE_FILE
from contourcast.training.datasets.splits import (
    PATIENTS_FILE,
    SPLITS_FILE,
    read_patients,
    read_splits,
    write_splits,
)
from contourcast.training.nnunet.recipe import PLANS_KEY, RECIPES, Preset
from contourcast.training.nnunet.workplace import Workplace

STOCK_PLANS: Final = "nnUNetPlans"
IMPORTED: Final = ("conv_op", "norm_op")
FINGERPRINT_FILE: Final = "dataset_fingerprint.json"
DIGEST_FILE: Final = "raw.sha256"

OnStep = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What may be asked of a plan; None leaves it to nnU-Net.

    Attributes:
        network: A name of the table of networks.
        preset: ``paper`` or ``house`` (NETWORKS §12).
        configuration: nnU-Net's name for the resolution; networks of two axes are trained in 2d.
        patch_zyx: Of the training; in 2d y and x.
        stages: How often, less one, the network halves its image.
        width: Of the first stage; each further stage doubles it up to the network's own widest.
        batch: Patches in a step.
        switches: Of the network, as plans state them, such as ``{"nrm": {"gate": "scalar"}}``.
        each_case_a_patient: Whether that is so, where the data set does not say who is who.
        workers: Processes for fingerprint and preprocessing.
        seed: Of the splits, where the data set brings none.
        name: Of the plans file; empty: after the network.
    """

    network: str = "diff-umamba"
    preset: Preset = "paper"
    configuration: Literal["3d_fullres", "2d"] = "3d_fullres"
    patch_zyx: tuple[int, ...] | None = None
    stages: int | None = None
    width: int | None = None
    batch: int | None = None
    switches: Mapping[str, Any] = field(default_factory=dict)
    each_case_a_patient: bool = False
    workers: int = 2
    seed: int = 12345
    name: str = ""

    @property
    def plans_name(self) -> str:
        """What the plans file is called."""
        return self.name or plans_name(self.network)


def plans_name(network: str) -> str:
    """The plans file of a network, unless another name was asked for."""
    return f"{STOCK_PLANS}_{network}"


def plan(
    workplace: Workplace,
    number: int,
    settings: PlanSettings,
    *,
    on_step: OnStep = lambda sentence, done: None,
) -> Path:
    """nnU-Net's fingerprint, planning and preprocessing; then a plans file with our network.

    What is there already is kept: a second network on the same data costs a second.

    Args:
        workplace: nnU-Net's folders.
        number: Of the data set.
        settings: What to plan.
        on_step: Told what is going on.

    Returns:
        The plans file.

    Raises:
        InputError: There is no such data set, it has no patients, a patient stands in two parts, it
            was prepared anew since nnU-Net looked at it, or the network cannot be what is asked.
    """
    dataset = workplace.dataset(number)
    raw, ready = workplace.raw / dataset, workplace.preprocessed / dataset
    ready.mkdir(parents=True, exist_ok=True)
    _require_segmentation(settings.network)  # now, and not after hours of preprocessing
    on_step("keeping patients apart", 0.0)
    _require_same_data(raw, ready)
    keep_patients_apart(raw, ready, settings)
    with workplace.at_work(workers=1):  # nnU-Net plans with that many threads
        on_step("looking at the data", 0.05)
        _fingerprint(number, ready, settings.workers)
        on_step("planning", 0.3)
        stock = _stock_plans(dataset, ready)
        on_step("preprocessing", 0.4)
        _preprocess(number, raw, ready, stock, settings)
        plans = plans_for(stock, settings, _json(ready / "dataset.json"))
    path = ready / f"{settings.plans_name}.json"
    write_atomically(path, (json.dumps(plans, indent=4) + "\n").encode())
    on_step("planned", 1.0)
    return path


def plans_for(
    stock: Mapping[str, Any], settings: PlanSettings, dataset: Mapping[str, Any]
) -> dict[str, Any]:
    """nnU-Net's plans with our network, its sizes and the preset's recipe.

    Raises:
        InputError: The network cannot take that patch, or a switch is not one of its own.
    """
    plans: dict[str, Any] = json.loads(json.dumps(stock))
    configurations = plans["configurations"]
    if settings.configuration not in configurations:
        raise InputError(f"nnU-Net planned no {settings.configuration} for this data set")
    chosen = configurations[settings.configuration]
    patch, strides, kernels = _topology(chosen, settings)
    config = _config(settings, patch, strides, kernels, dataset)
    arguments = arguments_of(config)
    chosen |= {
        "patch_size": list(patch),
        "batch_size": settings.batch or chosen["batch_size"],
        "architecture": {
            "network_class_name": class_name(settings.network),
            "arch_kwargs": arguments,
            "_kw_requires_import": [key for key in IMPORTED if key in arguments],
        },
    }
    plans["plans_name"] = settings.plans_name
    plans["configurations"] = {settings.configuration: chosen}
    plans[PLANS_KEY] = RECIPES[settings.preset].to_plain()
    return plans


def _require_segmentation(network: str) -> None:
    task = entry(network).task
    if task != "segmentation":
        raise InputError(
            f"{network} is for {task}, and nnU-Net trains segmentation",
            remedy="choose another network: contourcast networks",
        )


def _require_same_data(raw: Path, ready: Path) -> None:
    """What is kept from an earlier plan was made from these very cases."""
    told = [(raw / name) for name in ("dataset.json", PATIENTS_FILE, PROVENANCE_FILE)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in told if path.exists()))
    for case in sorted([*(raw / "imagesTr").iterdir(), *(raw / "labelsTr").iterdir()]):
        digest.update(f"{case.name} {case.stat().st_size}\n".encode())
    kept = ready / DIGEST_FILE
    if kept.exists() and kept.read_text() != digest.hexdigest():
        raise InputError(
            "the data set is another one than nnU-Net has preprocessed",
            file=raw.name,
            remedy=f"remove {ready.parent.name}/{ready.name}, or give the new one another number",
        )
    kept.write_text(digest.hexdigest())


def keep_patients_apart(raw: Path, ready: Path, settings: PlanSettings) -> None:
    """Patients and splits go where nnU-Net looks for them, and are proven there.

    Raises:
        InputError: Nobody says which case is of whom, or a patient stands in two parts.
    """
    patients = _patients(raw, settings)
    text = json.dumps(patients, indent=1) + "\n"
    write_atomically(ready / PATIENTS_FILE, text.encode())
    if (raw / SPLITS_FILE).exists() and not (ready / SPLITS_FILE).exists():
        shutil.copyfile(raw / SPLITS_FILE, ready / SPLITS_FILE)
    if not (ready / SPLITS_FILE).exists():
        folds = min(5, len(set(patients.values())))
        write_splits(ready, patients, seed=settings.seed, folds=folds)
    read_splits(ready / SPLITS_FILE, patients)


def _patients(raw: Path, settings: PlanSettings) -> dict[str, str]:
    if (raw / PATIENTS_FILE).exists():
        return read_patients(raw)
    if not settings.each_case_a_patient:
        raise InputError(
            "the data set does not say which case is of which patient",
            file=PATIENTS_FILE,
            remedy="write there a JSON object of cases and patients, or, if it is so, say "
            "--each-case-a-patient",
        )
    ending = str(_json(raw / "dataset.json")["file_ending"])
    names = [p.name.removesuffix(ending) for p in (raw / "labelsTr").iterdir()]
    return {name: name for name in sorted(names)}


def _fingerprint(number: int, ready: Path, workers: int) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset

    if not (ready / FINGERPRINT_FILE).exists():
        extract_fingerprint_dataset(
            number, num_processes=workers, clean=True, verbose=False, show_progress_bar=False
        )


def _stock_plans(dataset: str, ready: Path) -> dict[str, Any]:
    """nnU-Net's own plans; the axes stay as they are, as the predictor has them."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )

    path = ready / f"{STOCK_PLANS}.json"
    if not path.exists():
        ExperimentPlanner(
            dataset, plans_name=STOCK_PLANS, suppress_transpose=True
        ).plan_experiment()
    return _json(path)


def _preprocess(
    number: int, raw: Path, ready: Path, stock: Mapping[str, Any], settings: PlanSettings
) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    name = settings.configuration
    if name not in stock["configurations"]:
        raise InputError(f"nnU-Net planned no {name} for this data set")
    cases = sorted(read_patients(ready))
    folder = ready / stock["configurations"][name]["data_identifier"]
    if all((folder / f"{case}.pkl").exists() for case in cases):
        return
    preprocessor = DefaultPreprocessor(verbose=False)
    preprocessor.show_progress_bar = False
    preprocessor.run(number, name, STOCK_PLANS, num_processes=settings.workers)
    truth = ready / "gt_segmentations"  # where nnU-Net's own validation looks
    truth.mkdir(exist_ok=True)
    for label in (raw / "labelsTr").iterdir():
        shutil.copyfile(label, truth / label.name)


def _topology(
    chosen: Mapping[str, Any], settings: PlanSettings
) -> tuple[tuple[int, ...], list[list[int]], list[list[int]]]:
    """Patch, strides and kernels: nnU-Net's for its patch, or for the one that was asked for."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import (
        get_pool_and_conv_props,
    )

    arguments = chosen["architecture"]["arch_kwargs"]
    patch: Sequence[int] = chosen["patch_size"]
    strides, kernels = arguments["strides"], arguments["kernel_sizes"]
    if settings.patch_zyx is not None:
        if len(settings.patch_zyx) != len(patch):
            raise InputError(f"{settings.configuration} wants a patch of {len(patch)} sizes")
        patch = settings.patch_zyx
        # nnU-Net leaves four voxels of each axis at the deepest stage
        _, strides, kernels, _, _ = get_pool_and_conv_props(chosen["spacing"], patch, 4, 999999)
    if settings.stages is not None:
        if not 2 <= settings.stages <= len(strides):
            raise InputError(
                f"{settings.stages} stages do not fit a patch of {tuple(patch)}",
                remedy=f"2 to {len(strides)} stages",
            )
        strides, kernels = strides[: settings.stages], kernels[: settings.stages]
    plain = [[int(n) for n in each] for each in strides], [[int(n) for n in k] for k in kernels]
    return tuple(int(n) for n in patch), *plain


def _config(
    settings: PlanSettings,
    patch: tuple[int, ...],
    strides: list[list[int]],
    kernels: list[list[int]],
    dataset: Mapping[str, Any],
) -> NetworkConfig:
    """The network's configuration at the plan's sizes."""
    default = entry(settings.network).config_kind()
    if default.axes != len(patch):
        raise InputError(
            f"{settings.network} has {default.axes} axes and {settings.configuration} {len(patch)}",
            remedy=f"use {'2d' if default.axes == 2 else '3d_fullres'}",
        )
    plain = config_to_plain(default)
    if "strides" in plain:
        stages = len(strides)
        width = settings.width or plain["features"][0]
        widest = max(plain["features"])
        sizes = {
            "features": [min(width * 2**i, widest) for i in range(stages)],
            "strides": strides,
            "kernels": kernels,
            "blocks": _stretched(plain.get("blocks", [1]), stages),
            "decoder_blocks_asked": _stretched(plain.get("decoder_blocks_asked", [1]), stages - 1),
        }
        plain |= {key: value for key, value in sizes.items() if key in plain}
    elif settings.stages is not None or settings.width is not None:
        raise InputError(
            f"the stages of {settings.network} are its own",
            remedy="leave stages and width out; its sizes are switches",
        )
    if "patch_zyx" in plain:  # some networks are built for one patch
        plain["patch_zyx"] = list(patch)
    if settings.preset == "house" and plain.get("nrm"):
        plain["nrm"] |= {"gate": "scalar", "slabs": True}
    config = config_of(
        settings.network,
        arguments_of(config_from_plain(settings.network, plain)) | _known(settings.switches, plain),
        input_channels=len(dataset["channel_names"]),
        num_classes=len([n for n in dataset["labels"] if n != "ignore"]),
    )
    config.require_patch(patch)
    return config


def _known(switches: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Switches over the preset's values, nested ones too; None turns a part off."""
    return {
        key: plain[key] | value
        if isinstance(value, Mapping) and isinstance(plain.get(key), Mapping)
        else value
        for key, value in switches.items()
    }


def _stretched(blocks: Sequence[int], stages: int) -> list[int]:
    """As many as there are stages; further ones are like the last."""
    return [blocks[min(i, len(blocks) - 1)] for i in range(stages)]


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
