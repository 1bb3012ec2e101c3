"""The small U-Mambas whose reference answers are kept in tests/golden."""

from __future__ import annotations

from typing import Any, Final

from contourcast.models.diff_umamba import DiffUMamba, DiffUMambaConfig
from contourcast.models.umamba_bot import UMambaBot, UMambaConfig
from contourcast.models.umamba_enc import UMambaEnc, UMambaEncConfig

# 8 x 16 x 16 voxels become 2 x 2 x 2; no two stages are alike, one kernel and one stride are flat.
PATCH: Final = (8, 16, 16)
SIZES: Final[dict[str, Any]] = {
    "features": (4, 6, 8, 10),
    "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
    "blocks": (2, 2, 2, 2),
    "decoder_blocks_asked": (2, 2, 2),
}
NETWORKS: Final[dict[str, Any]] = {
    "bot": lambda: UMambaBot(UMambaConfig(**SIZES)),
    "enc": lambda: UMambaEnc(UMambaEncConfig(**SIZES, patch_zyx=PATCH)),
    "diff": lambda: DiffUMamba(DiffUMambaConfig(**SIZES)),
    "diff_scalars": lambda: DiffUMamba(DiffUMambaConfig(**SIZES)),
}
