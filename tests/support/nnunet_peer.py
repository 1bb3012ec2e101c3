"""nnU-Net's own predictor, as the peer of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import nn


def nnunets(
    network: nn.Module, patch_zyx: Sequence[int]
) -> Callable[[Float[np.ndarray, "c z y x"]], Float[np.ndarray, "z y x"]]:
    """Its logit of the target in the whole volume: half a patch apart, Gaussian, one thread."""
    inference: Any = pytest.importorskip("nnunetv2.inference.predict_from_raw_data")
    predictor = inference.nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        device=torch.device("cpu"),
        perform_everything_on_device=False,
        allow_tqdm=False,
    )
    predictor.network, predictor.allowed_mirroring_axes = network, None
    predictor.configuration_manager = SimpleNamespace(patch_size=list(patch_zyx))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=2)

    def whole(channels: Float[np.ndarray, "c z y x"]) -> Float[np.ndarray, "z y x"]:
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(channels)).float()
        found: np.ndarray = (logits[1] - logits[0]).numpy()
        return found

    return whole
