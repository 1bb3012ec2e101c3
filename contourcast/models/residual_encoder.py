"""nnU-Net's U-Net with a residual encoder, as its library builds it: the baseline to beat.

Isensee et al. 2024, "nnU-Net Revisited", MICCAI; ``ResidualEncoderUNet`` of
dynamic_network_architectures. The block numbers are those of nnU-Net's ResEnc planners.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from torch import nn

from contourcast.models.noise_reduction import Cleaned
from contourcast.models.plain_conv import (
    PlainConvConfig,
    library_arguments,
    nrm_of,
    registered_once,
)


@dataclass(frozen=True, kw_only=True)
class ResidualEncoderConfig(PlainConvConfig):
    """Sizes; ``blocks`` are residual ones, those of the decoder convolutions."""

    blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6)
    decoder_blocks_asked: tuple[int, ...] = (1,) * 5


class ResidualEncoder(Cleaned):
    """A stem, residual stages, one convolution a stage of the decoder, a head at every level."""

    config: ResidualEncoderConfig

    def __init__(self, config: ResidualEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ResidualEncoderConfig()
        library = ResidualEncoderUNet(
            n_blocks_per_stage=list(config.blocks), **library_arguments(config)
        )
        library.apply(ResidualEncoderUNet.initialize)
        for module in list(library.modules()):
            if isinstance(module, BasicBlockD) and not isinstance(module.skip, nn.Module):
                module.skip = nn.Identity()  # a lambda there, which no other process can be given
        self.encoder, self.decoder = registered_once(library)
        self.nrm = nrm_of(config)
