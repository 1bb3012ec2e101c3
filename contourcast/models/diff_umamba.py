"""Diff-UMamba: UMamba-Bot whose bottleneck is cleaned by the noise reduction module.

Diff-UMamba, Biomedical Signal Processing and Control 120 (2026) 110163, figure 2, equation 5:
ŷ = Decoder(F_1 … F_{S-1}, m̂). Everything else is UMamba-Bot, and its weights fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from jaxtyping import Float
from torch import Tensor

from contourcast.imaging.errors import InputError
from contourcast.models.arbiter import CHANNELS, Arbiter
from contourcast.models.noise_reduction import Cleaned, NrmConfig, plugged
from contourcast.models.umamba_bot import UMambaBot, UMambaConfig

WIDEST_ARBITER: Final = 256


@dataclass(frozen=True, kw_only=True)
class DiffUMambaConfig(UMambaConfig):
    """UMamba-Bot's sizes and the module's switches; ``nrm`` None is exactly UMamba-Bot.

    Attributes:
        arbiter: Width of an arbiter between what is drawn and what follows the tissue
            (arbiter.py); 0: none, as published.
    """

    nrm: NrmConfig | None = field(default_factory=NrmConfig)
    arbiter: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.arbiter <= WIDEST_ARBITER:
            raise InputError(f"an arbiter's width is from 0 to {WIDEST_ARBITER}")
        if self.arbiter and (self.channels_in, self.channels_out, self.axes) != (CHANNELS, 2, 3):
            raise InputError(
                f"an arbiter needs the {CHANNELS} channels that samples hold, two classes and "
                "three axes"
            )


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
        self.arbiter = Arbiter(config.arbiter) if config.arbiter else None

    def draw(self, x: Float[Tensor, "b c *space"]) -> Tensor | list[Tensor]:
        """Logits (b, channels_out, *space); with deep supervision of all levels, finest first."""
        drawn: Tensor | list[Tensor] = super().forward(x)
        return drawn

    def forward(self, x: Float[Tensor, "b c *space"]) -> Tensor | list[Tensor]:
        """The same, after the arbiter, where there is one, has decided on the finest level."""
        logits = self.draw(x)
        if self.arbiter is None:
            return logits
        if isinstance(logits, list):
            return [self.arbiter(x, logits[0]), *logits[1:]]
        decided: Tensor = self.arbiter(x, logits)
        return decided
