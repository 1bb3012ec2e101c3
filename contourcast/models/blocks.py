"""What the convolutional networks are built of, for two and three axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

CONV: Final[dict[int, type[nn.Conv2d] | type[nn.Conv3d]]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: Final[dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
NORM: Final[dict[int, type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]]] = {
    2: nn.InstanceNorm2d,
    3: nn.InstanceNorm3d,
}
# nnU-Net v2: InstanceNorm affine, eps 1e-5; LeakyReLU and He initialisation with slope 0.01.
NORM_EPS: Final = 1e-5
SLOPE: Final = 0.01


def convolution(
    channels_in: int, channels_out: int, kernel: Sequence[int], stride: Sequence[int] | int = 1
) -> nn.Module:
    """With bias, padded so that stride 1 keeps the size."""
    conv = CONV[len(kernel)]
    padding = tuple(k // 2 for k in kernel)
    return conv(channels_in, channels_out, tuple(kernel), stride, padding)  # type: ignore[arg-type]


class ResidualBlock(nn.Module):
    """conv, norm, LReLU, conv, norm; plus the input (through 1 x 1 if asked); LReLU.

    With ``shortcut`` it is U-Mamba's BasicResBlock, without it nnU-Net's BasicBlockD.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: Sequence[int],
        stride: Sequence[int] | int = 1,
        shortcut: bool,
    ) -> None:
        super().__init__()
        axes = len(kernel)
        self.conv1 = convolution(channels_in, channels_out, kernel, stride)
        self.norm1 = NORM[axes](channels_out, eps=NORM_EPS, affine=True)
        self.conv2 = convolution(channels_out, channels_out, kernel)
        self.norm2 = NORM[axes](channels_out, eps=NORM_EPS, affine=True)
        self.conv3 = (
            convolution(channels_in, channels_out, (1,) * axes, stride) if shortcut else None
        )

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c2 *space2"]:
        """Strides shrink the space, rounding up."""
        y = F.leaky_relu(self.norm1(self.conv1(x)), SLOPE, inplace=True)
        y = self.norm2(self.conv2(y))
        return F.leaky_relu(y + (x if self.conv3 is None else self.conv3(x)), SLOPE, inplace=True)


def stage(
    channels_in: int,
    channels_out: int,
    *,
    blocks: int,
    kernel: Sequence[int],
    stride: Sequence[int] | int = 1,
) -> nn.Sequential:
    """One block that may change channels and size, and further ones that do not."""
    return nn.Sequential(
        ResidualBlock(channels_in, channels_out, kernel=kernel, stride=stride, shortcut=True),
        *(
            ResidualBlock(channels_out, channels_out, kernel=kernel, shortcut=False)
            for _ in range(blocks - 1)
        ),
    )


class Up(nn.Module):
    """Nearest neighbour *to the size of the skip* (so odd sizes fit), and 1 x 1."""

    def __init__(self, channels_in: int, channels_out: int, *, axes: int) -> None:
        super().__init__()
        self.conv = convolution(channels_in, channels_out, (1,) * axes)

    def forward(
        self, x: Float[Tensor, "b c *space"], size: Sequence[int]
    ) -> Float[Tensor, "b c2 *size"]:
        """1 x 1 and nearest neighbour commute: the convolution goes first, on fewer voxels."""
        up: Tensor = F.interpolate(self.conv(x), size=tuple(size), mode="nearest")
        return up


class UnetrBlock(nn.Module):
    """conv, norm, LReLU, conv, norm; plus the input (through 1 x 1 and norm if wider); LReLU.

    MONAI's UnetrBasicBlock with instance norm and residual: no biases, norms without weights.
    """

    def __init__(self, channels_in: int, channels_out: int, *, axes: int) -> None:
        super().__init__()
        conv = CONV[axes]
        self.conv1 = conv(channels_in, channels_out, 3, padding=1, bias=False)
        self.conv2 = conv(channels_out, channels_out, 3, padding=1, bias=False)
        self.conv3 = (
            None if channels_in == channels_out else conv(channels_in, channels_out, 1, bias=False)
        )

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c2 *space"]:
        """Same size."""
        y = F.leaky_relu(F.instance_norm(self.conv1(x), eps=NORM_EPS), SLOPE, inplace=True)
        y = F.instance_norm(self.conv2(y), eps=NORM_EPS)
        if self.conv3 is not None:
            x = F.instance_norm(self.conv3(x), eps=NORM_EPS)
        return F.leaky_relu(y + x, SLOPE, inplace=True)


class UnetrUp(nn.Module):
    """Transposed convolution, beside the skip, `UnetrBlock` (MONAI's UnetrUpBlock)."""

    def __init__(self, channels_in: int, channels_out: int, *, axes: int, times: int = 2) -> None:
        super().__init__()
        self.up = TRANSPOSED[axes](channels_in, channels_out, times, times, bias=False)
        self.block = UnetrBlock(2 * channels_out, channels_out, axes=axes)

    def forward(
        self, x: Float[Tensor, "b c *space"], skip: Float[Tensor, "b c2 *space2"]
    ) -> Float[Tensor, "b c2 *space2"]:
        """Of the skip's size, which is so many times that of ``x``."""
        y: Tensor = self.block(torch.cat((self.up(x), skip), 1))
        return y


class UpConvolution(nn.Module):
    """Transposed convolution by a stride, cut to the size of the skip (so odd sizes fit)."""

    def __init__(
        self, channels_in: int, channels_out: int, *, stride: Sequence[int], bias: bool = True
    ) -> None:
        super().__init__()
        transposed = TRANSPOSED[len(stride)]
        self.conv = transposed(
            channels_in,
            channels_out,
            tuple(stride),  # type: ignore[arg-type]
            tuple(stride),  # type: ignore[arg-type]
            bias=bias,
        )

    def forward(
        self, x: Float[Tensor, "b c *space"], size: Sequence[int]
    ) -> Float[Tensor, "b c2 *size"]:
        """Each axis grows by its stride and loses what is more than the size."""
        up: Tensor = self.conv(x)
        return up[(slice(None), slice(None), *(slice(n) for n in size))]


def initialise_he(module: nn.Module) -> None:
    """nnU-Net's start for convolutions of images; Linear and Conv1d keep theirs (Mamba's)."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
