"""Networks of the table in the training loop: deep supervision of any depth, the same twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from contourcast.models.config import NetworkConfig
from contourcast.models.lkm_unet import LkmUnetConfig
from contourcast.models.lma_unet import LmaUnetConfig
from contourcast.models.networks import build
from contourcast.models.segmamba import SegMambaConfig
from contourcast.training.loop import Trained, TrainSettings, train
from contourcast.training.samples import Sample, SampleSettings, make_sample
from support.models import ball_case, ball_planned

SAMPLES = SampleSettings(
    spacing_zyx_mm=(4.0, 4.0, 4.0), patch_zyx=(16, 16, 32), margin_mm=8.0, slack_zyx=(4, 4, 4)
)
CONFIGS: dict[str, NetworkConfig] = {
    "lkm-unet": LkmUnetConfig(
        features=(4, 8, 8),
        kernels=((3, 3, 3),) * 3,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        blocks=(1,) * 3,
        decoder_blocks_asked=(1,) * 2,
    ),
    "segmamba": SegMambaConfig(features=(4, 6, 8, 8), hidden=10, depths=(1,) * 4),
    "lma-unet": LmaUnetConfig(features=(4, 6, 8, 8, 8), pool_width=3),
}

# The coarsest of several heads weighs nothing in the loss; LKM-UNet's deepest map is one window,
# whose state has no past to decay from. (Biases before a norm rest too; they are not asked for.)
AT_REST = {
    "lkm-unet": {
        "decoder.heads.0.weight",
        "encoder.patch_layers.2.bim.forth.A_log",
        "encoder.patch_layers.2.bim.back.A_log",
    }
}


@pytest.fixture(scope="module")
def samples() -> tuple[Sample, ...]:
    made = []
    for seed in range(2):
        cbct, r_ct, truth = ball_case(seed=seed)
        made.append(
            make_sample(
                cbct,
                r_ct,
                truth,
                planning_ct=ball_planned(offset_xyz_mm=(7.0, -5.0, 11.0)),
                name=f"patient-{seed}-fraction-01",
                patient=f"patient-{seed}",
                ct=f"ct-{seed}",
                settings=SAMPLES,
            )
        )
    return tuple(made)


def three_steps(name: str, samples: tuple[Sample, ...], folder: Path) -> Trained:
    settings = TrainSettings(
        network=name,
        config=CONFIGS[name],
        channels=("cbct", "r_ct"),
        samples=SAMPLES,
        epochs=1,
        steps_per_epoch=3,
        precision="fp32",
        threads=0,
    )
    return train(samples, samples[:1], settings, folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_three_steps_move_the_weights_and_twice_to_the_same_place(
    name: str, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    first, second = (three_steps(name, samples, tmp_path / run) for run in ("one", "two"))
    (epoch,) = first.log
    assert epoch.skipped_steps == 0
    assert 0 < epoch.loss < 5
    torch.manual_seed(first.settings.seed)
    born = build(name, CONFIGS[name]).state_dict()
    trained = first.network.state_dict()
    assert all(torch.equal(v, trained[k]) for k, v in second.network.state_dict().items())
    still = {k for k, v in trained.items() if torch.equal(v, born[k]) and not k.endswith("bias")}
    assert still == AT_REST.get(name, set())
