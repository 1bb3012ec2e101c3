"""Who is right at each place: what follows today's tissue, or what the network draws anew.

Where a tumour merely moved, the prior that follows the tissue (`follow`) is the better contour;
where tissue came or went, or the prior was drawn in another style, the network's is. The arbiter
looks at both, at the scan and at how the followed planning CT fits it, at half the resolution, and
answers with a share of each: ŷ = (1 - g) y + g logit(followed prior). Ours; in no paper.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

# Of a model that has an arbiter, in this order (`KNOWN_CHANNELS` of weights.py).
CHANNELS: Final = 5
SCAN, PRIOR, PLANNING, FOLLOWED, FOLLOWED_PLANNING = range(CHANNELS)
# Both contours' certainty beyond this says no more: of a channel, and of a network's logit.
CERTAIN: Final = 1e-3
LOGIT_LIMIT: Final = 8.0
HALF: Final = 2
# Half the side of the window in which scan and planning CTs are normalised, in voxels of half the
# resolution (20 mm at the house's grid), and what is added to its sd (`FollowSettings`).
WINDOW: Final = 4
FLOOR: Final = 0.5
EVIDENCE: Final = CHANNELS + 4 + 3 + 2


class Arbiter(nn.Module):
    """Two small convolutions, what they say of the prior's border as a whole, and a share.

    Args:
        width: Of its features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near = nn.Conv3d(EVIDENCE, width, 3, padding=1)
        self.wide = nn.Conv3d(width, width, 3, padding=1)
        self.whole = nn.Linear(width, width)
        self.share = nn.Conv3d(width, 1, 1)
        for parameter in self.share.parameters():
            nn.init.zeros_(parameter)  # born undecided

    def forward(
        self, x: Float[Tensor, "b 5 z y x"], logits: Float[Tensor, "b 2 z y x"]
    ) -> Float[Tensor, "b 2 z y x"]:
        """The two's logits, half a difference each to background and target."""
        with torch.autocast(x.device.type, enabled=False):
            both = self.decide(*asked(x, logits))
            return torch.cat((-both, both), 1) / 2

    def decide(self, seen: Tensor, drawn: Tensor, followed: Tensor) -> Tensor:
        """The logit of the target, from what `asked` answers."""
        features = F.relu(self.wide(F.relu(self.near(seen))))
        prior = seen[:, FOLLOWED : FOLLOWED + 1].clamp(0, 1)
        border = prior * (1 - prior) + 1e-4
        whole = (features * border).sum((2, 3, 4)) / border.sum((2, 3, 4))
        features = F.relu(features + self.whole(whole)[:, :, None, None, None])
        share = F.interpolate(self.share(features), drawn.shape[2:], mode="trilinear").sigmoid()
        return (1 - share) * drawn + share * followed


def asked(
    x: Float[Tensor, "b 5 z y x"], logits: Float[Tensor, "b 2 z y x"]
) -> tuple[Tensor, Tensor, Tensor]:
    """What can be known, and the target's logit as it was drawn and as it follows the tissue."""
    x = x.float()
    drawn = (logits[:, 1:] - logits[:, :1]).float().clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    followed = logit(x[:, FOLLOWED : FOLLOWED + 1])
    return evidence(x, drawn, followed), drawn, followed


def logit(channel: Tensor) -> Tensor:
    """Of a probability, as far as it is certain."""
    return torch.logit(channel.clamp(CERTAIN, 1 - CERTAIN))


def evidence(x: Tensor, drawn: Tensor, followed: Tensor) -> Float[Tensor, "b 14 z2 y2 x2"]:
    """What can be known, at half the resolution.

    All channels; three contours' logits, and where the two disagree; scan and planning CTs
    normalised in a window, and how far both planning CTs are from the scan.
    """
    carried = logit(x[:, PRIOR : PRIOR + 1])
    apart = (drawn.sigmoid() - followed.sigmoid()).abs()
    all_of_it = torch.cat((x, drawn / 4, followed / 4, carried / 4, apart), 1)
    seen = F.avg_pool3d(all_of_it, HALF, ceil_mode=True, count_include_pad=False)
    scan, deformed, rigid = (
        _normalised(seen[:, n : n + 1]) for n in (SCAN, FOLLOWED_PLANNING, PLANNING)
    )
    return torch.cat(
        (seen, scan, deformed, rigid, (scan - deformed).abs(), (scan - rigid).abs()), 1
    )


def _normalised(image: Tensor) -> Tensor:
    """``(I - mean) / (sd + floor)`` in a window round each voxel."""
    count = _windowed(torch.ones_like(image))
    mean = _windowed(image) / count
    variance = (_windowed(image.square()) / count - mean.square()).clamp(min=0)
    return (image - mean) / (variance.sqrt() + FLOOR)


def _windowed(image: Tensor) -> Tensor:
    for axis in range(3):
        size, padding = [1, 1, 1], [0, 0, 0]
        reach = min(WINDOW, (image.shape[2 + axis] - 1) // 2)
        size[axis], padding[axis] = 2 * reach + 1, reach
        image = F.avg_pool3d(image, size, 1, padding)
    return image
