"""The small networks whose reference answers are kept in tests/golden."""

from __future__ import annotations

from typing import Final

from torch import Tensor

from contourcast.models.lkm_unet import LkmUnetConfig
from contourcast.models.segmamba import SegMambaConfig

# The code's reading: 2 x 5, 7, 6 in three axes and 2 x 5 in two are the first stage's windows.
LKM_SOLID: Final = LkmUnetConfig(
    features=(4, 8, 8),
    kernels=((3, 3, 3),) * 3,
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    blocks=(2, 1, 1),
    decoder_blocks_asked=(1, 2),
    pim_partition="grid",
    pam_pool="code",
)
LKM_FLAT: Final = LkmUnetConfig(
    features=(4, 8, 8),
    kernels=((3, 3),) * 3,
    strides=((1, 1), (2, 2), (2, 2)),
    blocks=(1, 2, 1),
    decoder_blocks_asked=(1, 1),
    pim_partition="grid",
    pam_pool="code",
)
# Their head is fixed to 48 channels; their numbers of slices, whatever the patch.
SEG_TENSOR: Final = SegMambaConfig(features=(48, 8, 12, 16), hidden=20, depths=(1, 2, 1, 1))
SEG_CODE: Final = SegMambaConfig(
    features=(48, 8, 12, 16), hidden=20, depths=(1, 2, 1, 1), slices=(64, 32, 16, 8)
)


def shown(logits: Tensor) -> Tensor:
    """Every third voxel, which is enough to tell answers apart and small enough to keep."""
    some = logits[..., 1::3, 1::3]
    return some if logits.ndim == 4 else some[:, :, 1::3]
