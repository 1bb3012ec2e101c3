"""Diff-UMamba: UMamba-Bot whose bottleneck is cleaned by the noise reduction module.

Diff-UMamba, Biomedical Signal Processing and Control 120 (2026) 110163, figure 2, equation 5:
ŷ = Decoder(F_1 … F_{S-1}, m̂). Everything else is UMamba-Bot, and its weights fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from contourcast.models.noise_reduction import Cleaned, NrmConfig, plugged
from contourcast.models.umamba_bot import UMambaBot, UMambaConfig


@dataclass(frozen=True, kw_only=True)
class DiffUMambaConfig(UMambaConfig):
    """UMamba-Bot's sizes and the module's switches; ``nrm`` None is exactly UMamba-Bot."""

    nrm: NrmConfig | None = field(default_factory=NrmConfig)


class DiffUMamba(Cleaned, UMambaBot):
    """m̂ = M₁(F_S) - M₂(Σ λ_i e_i) goes to the decoder."""

    config: DiffUMambaConfig

    def __init__(self, config: DiffUMambaConfig | None = None) -> None:
        config = config or DiffUMambaConfig()
        super().__init__(config)
        self.nrm = plugged(
            config.nrm,
            config.features[:-1],
            config.features[-1],
            axes=config.axes,
            mamba=config.mamba,
        )
