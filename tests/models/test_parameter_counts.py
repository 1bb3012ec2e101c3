"""The published sizes (NETWORKS §1). A changed count is a changed architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contourcast.models.networks import build, entry
from contourcast.models.noise_reduction import NrmConfig

FEATURES = (32, 64, 128, 256, 320, 320, 320)


def six(channels_in: int, stages: int = 6) -> dict[str, Any]:
    """nnU-Net's setting of that many stages."""
    return {
        "channels_in": channels_in,
        "features": FEATURES[:stages],
        "kernels": ((3, 3, 3),) * stages,
        "strides": ((1, 1, 1), *((2, 2, 2),) * (stages - 1)),
        "blocks": (2,) * stages,
        "decoder_blocks_asked": (2,) * (stages - 1),
    }


COUNTS: list[tuple[str, dict[str, Any], int]] = [
    ("umamba-bot", six(1), 42_120_394),
    ("umamba-bot", six(2), 42_121_290),
    ("diff-umamba", six(1), 43_053_839),
    ("diff-umamba", six(2), 43_054_735),
    ("umamba-bot", six(1, 5), 22_571_400),
    ("diff-umamba", six(1, 5), 23_402_124),
    ("umamba-bot", six(1, 7), 65_431_436),
    ("diff-umamba", six(1, 7), 66_467_602),
    ("umamba-enc", six(2) | {"patch_zyx": (64, 64, 64)}, 42_077_290),
    ("umamba-enc", six(2) | {"patch_zyx": (96, 96, 96)}, 42_367_048),
    ("umamba-enc", six(2) | {"patch_zyx": (128, 128, 128)}, 42_751_818),
    # NETWORKS §1 counts 80 x 160 x 160 with sizes rounded down, 50 voxels at the deepest stage. A
    # strided convolution rounds up and leaves 75: the published network stops there. Fifty are at
    ("umamba-enc", six(2) | {"patch_zyx": (64, 160, 160)}, 42_740_450),
    ("umamba-enc", six(2) | {"patch_zyx": (80, 160, 160)}, 42_762_700),
    ("nnunet-plainconv", six(1), 31_195_594),
    ("nnunet-plainconv", {}, 31_196_458),
    ("nnunet-resenc", {"channels_in": 1}, 102_349_770),
    ("nnunet-resenc", {}, 102_350_634),
    ("segresnet", {}, 18_796_866),
    ("segresnet", {"nrm": NrmConfig()}, 18_796_866 + 496_387),
    ("unetr", {"patch_zyx": (64, 64, 64)}, 95_831_714),
    ("unetr", {"patch_zyx": (96, 96, 96)}, 95_948_450),
    ("unetr", {"patch_zyx": (128, 128, 128)}, 96_175_778),
    ("unetr", {"nrm": NrmConfig()}, 95_948_450 + 3_959_812),
    ("swin-unetr", {}, 62_188_436),
    ("swin-unetr", {"feature": 24}, 15_703_868),
    ("nnmamba", {"channels_in": 1, "channels_out": 6, "head": "code"}, 15_944_958),
    ("nnmamba", {"channels_in": 1, "channels_out": 16, "head": "code"}, 15_959_598),
    ("nnmamba", {"head": "code"}, 15_941_478),
    ("nnmamba", {}, 15_967_894),  # our linear heads
    ("nnmamba", {"norm": "batch"}, 15_967_894),
    ("nnmamba-landmarks", {"channels_in": 1, "channels_out": 6}, 15_968_070),
    ("nnmamba-classifier", {"channels_in": 1, "channels_out": 1, "cls": "code"}, 12_876_321),
    ("nnmamba-classifier", {"channels_in": 1, "channels_out": 2, "cls": "code"}, 12_876_354),
    ("nnmamba-classifier", {"channels_in": 1, "channels_out": 2}, 13_786_530),  # our sequence
    ("swin-umamba", {"channels_in": 1, "channels_out": 13}, 59_888_644),
    ("swin-umamba", {"channels_in": 3, "channels_out": 14}, 59_895_032),
    ("swin-umamba", {}, 59_883_512),
    ("swin-umamba-d", {"channels_in": 1, "channels_out": 13}, 27_496_948),
    ("swin-umamba-d", {}, 27_489_992),
    ("swin-umamba-cffm", {"channels_in": 1}, 21_534_650),
    ("swin-umamba-cffm", {"channels_in": 1, "dims": (96, 192, 384, 768)}, 45_830_294),
    ("lkm-unet", six(1), 64_356_842),
    ("lkm-unet", six(2), 64_357_706),
    ("segmamba", {"channels_in": 4, "channels_out": 4}, 67_416_196),
    ("segmamba", {}, 67_380_482),
    ("lma-unet", {"channels_in": 1, "dimensions": 2}, 6_761_858),
    ("lma-unet", {"channels_in": 1}, 16_960_898),
]


@pytest.mark.parametrize(("name", "switches", "parameters"), COUNTS)
def test_published_count(name: str, switches: dict[str, Any], parameters: int) -> None:
    network = at_birth(name, switches)
    assert sum(p.numel() for p in network.parameters()) == parameters


def at_birth(name: str, switches: dict[str, Any]) -> torch.nn.Module:
    """Without a number in it."""
    with torch.device("meta"):
        return build(name, entry(name).config_kind(**switches))


def test_what_the_noise_reduction_module_adds() -> None:
    network = at_birth("diff-umamba", six(1))
    parts = {
        part: sum(p.numel() for n, p in network.named_parameters() if n.startswith(f"nrm.{part}"))
        for part in ("proj", "lambdas", "mamba")
    }
    assert parts == {"proj": 257_600, "lambdas": 5, "mamba": 675_840}


def test_what_swin_umamba_can_take_from_vmamba() -> None:
    encoder = at_birth("swin-umamba", {}).vssm_encoder
    assert isinstance(encoder, torch.nn.Module)
    assert sum(p.numel() for p in encoder.parameters()) == 22_136_736


def test_no_tensor_is_stored_twice() -> None:
    network = build(
        "diff-umamba", entry("diff-umamba").config_kind(**six(1) | {"features": (4,) * 6})
    )
    places = [v.data_ptr() for v in network.state_dict().values()]
    assert len(set(places)) == len(places)
