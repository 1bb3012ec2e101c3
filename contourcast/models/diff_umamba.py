"""Diff-UMamba: UMamba-Bot whose bottleneck is cleaned by the noise reduction module.

Diff-UMamba, Biomedical Signal Processing and Control 120 (2026) 110163, figure 2, equation 5:
ŷ = Decoder(F_1 … F_{S-1}, m̂). Everything else is UMamba-Bot, and its weights fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from contourcast.models.blocks import initialise_he
from contourcast.models.noise_reduction import NoiseReduction, NrmConfig
from contourcast.models.umamba_bot import UMambaBot, UMambaConfig


@dataclass(frozen=True, kw_only=True)
class DiffUMambaConfig(UMambaConfig):
    """UMamba-Bot's sizes and the module's switches; ``nrm`` None is exactly UMamba-Bot."""

    nrm: NrmConfig | None = field(default_factory=NrmConfig)


class DiffUMamba(UMambaBot):
    """m̂ = M₁(F_S) - M₂(Σ λ_i e_i) goes to the decoder."""

    def __init__(self, config: DiffUMambaConfig | None = None) -> None:
        config = config or DiffUMambaConfig()
        super().__init__(config)
        self.nrm = (
            None
            if config.nrm is None
            else NoiseReduction(
                config.features[:-1],
                config.features[-1],
                axes=config.axes,
                config=config.nrm,
                mamba=config.mamba,
            ).apply(initialise_he)
        )

    def bottleneck(self, features: list[Tensor]) -> Tensor:
        """Equation 8."""
        m1 = super().bottleneck(features)
        cleaned: Tensor = m1 if self.nrm is None else self.nrm(features[:-1], m1)
        return cleaned
