"""nnU-Net's plain U-Net, as its library builds it.

Isensee et al. 2021, Nature Methods 18, 203; ``PlainConvUNet`` of dynamic_network_architectures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import nn

from contourcast.models.blocks import CONV, NORM, NORM_EPS, SLOPE
from contourcast.models.mamba import MambaConfig
from contourcast.models.noise_reduction import Cleaned, NoiseReduction, NrmConfig, plugged
from contourcast.models.stages import StagesConfig


@dataclass(frozen=True, kw_only=True)
class PlainConvConfig(StagesConfig):
    """Sizes; ``blocks`` are convolutions, and all that are asked for are built.

    Attributes:
        nrm: Switches of the noise reduction module before the decoder; None: the stock network.
        mamba: Sizes of the module's Mamba layer.
    """

    nrm: NrmConfig | None = None
    mamba: MambaConfig = field(default_factory=MambaConfig)

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Sides that all strides divide; strided and transposed convolutions must meet again."""
        self._require_multiple(shape, self.reduction)
        super().require_patch(shape)


class PlainConv(Cleaned):
    """Two convolutions a stage, transposed convolutions up, a head at every level."""

    config: PlainConvConfig

    def __init__(self, config: PlainConvConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PlainConvConfig()
        library = PlainConvUNet(n_conv_per_stage=list(config.blocks), **library_arguments(config))
        library.apply(PlainConvUNet.initialize)
        self.encoder, self.decoder = registered_once(library)
        self.nrm = nrm_of(config)


def library_arguments(config: PlainConvConfig) -> dict[str, Any]:
    """What both of nnU-Net's networks are called with; fresh lists, for the library's own use."""
    return {
        "input_channels": config.channels_in,
        "n_stages": config.stages,
        "features_per_stage": list(config.features),
        "conv_op": CONV[config.axes],
        "kernel_sizes": [list(k) for k in config.kernels],
        "strides": [list(s) for s in config.strides],
        "num_classes": config.channels_out,
        "n_conv_per_stage_decoder": list(config.decoder_blocks_asked),
        "conv_bias": True,
        "norm_op": NORM[config.axes],
        "norm_op_kwargs": {"eps": NORM_EPS, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"negative_slope": SLOPE, "inplace": True},
    }


def registered_once(library: Any) -> tuple[nn.Module, nn.Module]:
    """Its encoder and decoder, without the second names that the library gives their tensors.

    A convolution is also a member of ``all_modules``, the encoder also one of the decoder; both
    stay usable under those names, and are no longer stored under them.
    """
    for module in list(library.modules()):
        if isinstance(module, ConvDropoutNormReLU):
            _unregister(module, "all_modules")
        elif isinstance(module, UNetDecoder):
            _unregister(module, "encoder")
    return library.encoder, library.decoder


def nrm_of(config: PlainConvConfig) -> NoiseReduction | None:
    """The module on a network of stages: all features but the deepest feed it."""
    return plugged(
        config.nrm,
        config.features[:-1],
        config.features[-1],
        axes=config.axes,
        mamba=config.mamba,
    )


def _unregister(parent: nn.Module, name: str) -> None:
    child = getattr(parent, name)
    delattr(parent, name)
    object.__setattr__(parent, name, child)
