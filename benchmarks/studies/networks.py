"""The networks beside each other: same samples, steps, seed and memory, with and without r-CT.

    contourcast fit samples --curriculum docs/curriculum.toml --data DATA --out SAMPLES
    python -m benchmarks.studies.networks SAMPLES OUT [--steps 300]
    python -m benchmarks.studies.unseen_fractions DATA SCORES \
        $(for m in OUT/*/model; do echo --network $(basename $(dirname $m))=$m; done)
    contourcast evaluate --scores SCORES/scores.csv --reference rigid --out EVALUATED

Small networks and short schedules, for a CPU: what is compared is what one core learns in some
minutes, not what each network can reach. Runs that were stopped go on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

from contourcast.models.networks import entry
from contourcast.training.augment import Augmentation
from contourcast.training.loop import TrainSettings, export, train
from contourcast.training.samples import load_samples, split

# Five stages as the shipped checkpoint has, at three quarters of its width; the last stride leaves
# the five slices alone, so that every network takes the patch. Memory of a training step (tensors
# kept for the backward, two crops): 80 to 93 MiB.
U_SHAPE: Final[dict[str, Any]] = {
    "features": (12, 24, 48, 96, 128),
    "kernels": ((3, 3, 3),) * 5,
    "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
    "blocks": (1,) * 5,
    "decoder_blocks_asked": (1,) * 4,
}
NETWORKS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "bot": ("umamba-bot", U_SHAPE),
    "diff": ("diff-umamba", U_SHAPE),
    "identity": ("umamba-bot", U_SHAPE | {"bottleneck": "identity"}),
    "plainconv": (
        "nnunet-plainconv",
        U_SHAPE
        | {
            "features": (16, 32, 64, 128, 160),
            "blocks": (2,) * 5,
            "decoder_blocks_asked": (2,) * 4,
        },
    ),
    "resenc": ("nnunet-resenc", U_SHAPE | {"blocks": (1, 2, 2, 2, 2)}),
}
CHANNELS: Final[dict[str, tuple[str, ...]]] = {
    "cbct": ("cbct",),
    "r-ct": ("cbct", "r_ct"),
    "planned": ("cbct", "r_ct", "planning_ct"),
}
# What the first checkpoint was taught with, and every figure of docs/networks.md.
AUGMENTATION: Final = Augmentation(prior_growth_mm=2.0, prior_wobble_mm=1.0, unfollowed=0.0)
VALIDATION: Final = ("4DCT phase 00", *(f"phantom {2086 + n}" for n in range(4)))
STEPS_PER_EPOCH: Final = 50


def main() -> None:
    """Trains what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--channels", default="r-ct,cbct,planned")
    arguments = parser.parse_args()
    fitted, aside = split(load_samples(arguments.samples), validation_cts=VALIDATION)
    for shown in arguments.channels.split(","):
        for name in arguments.networks.split(","):
            kind, switches = NETWORKS[name]
            settings = TrainSettings(
                network=kind,
                config=entry(kind).config_kind(channels_in=len(CHANNELS[shown]), **switches),
                channels=CHANNELS[shown],
                augmentation=AUGMENTATION,
                seed=arguments.seed,
                epochs=arguments.steps // STEPS_PER_EPOCH,
                steps_per_epoch=STEPS_PER_EPOCH,
            )
            folder = arguments.out / f"{name}-{shown}"
            trained = train(fitted, aside, settings, folder)
            export(
                trained, folder / "model", training={"study": "networks", "samples": len(fitted)}
            )
            dice, seconds = trained.best.validation_dice, sum(e.seconds for e in trained.log)
            print(f"{folder.name}: validation DSC {dice:.3f}, {seconds:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
