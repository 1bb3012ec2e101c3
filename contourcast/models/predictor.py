"""From today's scan and the carried prior to today's region."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import nn

from contourcast.imaging.errors import InputError, WeightsError
from contourcast.imaging.grid import Grid
from contourcast.imaging.resample import Moved
from contourcast.imaging.volume import Probability, Volume, require_same_frame
from contourcast.models.config import NetworkConfig
from contourcast.models.diff_umamba import DiffUMamba
from contourcast.models.follow import follow, followed
from contourcast.models.foreign import ours
from contourcast.models.networks import SEGMENTING
from contourcast.models.region import (
    as_carried,
    box_of,
    filled_up,
    is_empty,
    out_of_view,
    planning_on,
    region_grid,
    sample_on,
    scaling,
    scan_on,
    signed_distance,
    whole_grid,
)
from contourcast.models.slicewise import on_volume
from contourcast.models.weights import (
    CARRIED_CT,
    FOLLOWED,
    KNOWN_CHANNELS,
    SHIPPED,
    Card,
    load_model,
)
from contourcast.models.windows import LOGIT_LIMIT, Box, Windows, in_windows

# How far from the carried prior a piece may lie and still be today's target: 95 % of the baseline
# shifts and drifts of REGISTRATION §11.1 stay below it.
NEAR_PRIOR_MM: Final = 10.0
# Pieces smaller than this share of the largest are dropped, as the labelling rule does
# (REGISTRATION §11.1).
SPECK_SHARE: Final = 0.1
# A probability from which a voxel is in the region.
INSIDE: Final = 0.5
# How often windows are halved before the processor draws instead (CLINICAL_SERVICE §6.1).
SMALLER_WINDOWS: Final = 2

OnNote = Callable[[str], None]
"""Told, in a sentence, what was done otherwise than asked, or what the model never saw."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """A trained network, ready for one scan after another.

    Attributes:
        digest: SHA-256 (hex) of the card, which names the weights by theirs.
    """

    network: nn.Module
    card: Card
    digest: str
    device: str = "cpu"

    @property
    def name(self) -> str:
        """The network's name in the table."""
        return self.card.network

    def predict(
        self,
        cbct: Volume,
        r_ct: Probability,
        planning_ct: Moved | None = None,
        *,
        on_note: OnNote = lambda note: None,
        on_unseen: Callable[[float], None] = lambda share: None,
    ) -> Probability:
        """Today's region on the CBCT's grid, zero away from it.

        An empty prior gives an empty region: the prior says where to look, and without it
        nothing may be drawn. Outside the field of view the prior stands (REGISTRATION §7). Where a
        GPU's memory does not do, windows are halved up to `SMALLER_WINDOWS` times, then the
        processor draws.

        Args:
            cbct: Today's scan.
            r_ct: The carried prior.
            planning_ct: Carried by the same registration; only some models look at it.
            on_note: Told in what the scan is unlike those that the model was fitted on, and when
                memory ran out.
            on_unseen: Told which share of the prior is out of view.

        Raises:
            FrameMismatchError: Scan, prior and planning CT are not seen from one frame.
            InputError: The scan shows nothing there, or this model looks at the planning CT and
                none is given.
            GridMismatchError: They are on different grids.
        """
        cbct.require_same_place(r_ct)
        if is_empty(r_ct):
            return r_ct.with_values(np.zeros_like(r_ct.values))
        card = self.card
        if card.seen is not None and (unlike := card.seen.note(cbct)):
            on_note(unlike)
        place = _on_scan(cbct, r_ct, card) if card.windows == "scan" else _in_region(r_ct, card)
        grid = place.grid
        values, observed = scan_on(cbct, grid)
        if not observed.any():
            raise InputError(
                "the scan shows nothing round the carried prior: no voxel there is a number, in "
                "view and no padding",
                remedy="check that the target lies within the field of view of the CBCT",
            )
        prior = sample_on(r_ct.values, r_ct.grid, onto=grid, outside=0.0)
        scan = scaling(values, observed, card.normalisation, scan=cbct).apply(values)
        scan[place.beyond] = 0.0
        shown = {"cbct": scan, "r_ct": prior}
        if set(CARRIED_CT) & set(card.channels):
            if planning_ct is None:
                raise InputError("this model looks at the planning CT, and none is given")
            require_same_frame(cbct.frame_of_reference, planning_ct.moving_from_fixed.source_frame)
            shown["planning_ct"] = planning_on(planning_ct, grid)
        if set(FOLLOWED) & set(card.channels):
            shown |= _as_followed(shown, grid)
        logits = self._logits(
            np.stack([shown[name] for name in card.channels]), place.windows, place.first, on_note
        )
        beyond = out_of_view(observed)
        logits[beyond] = _as_logit(prior[beyond])
        if (prior >= INSIDE).any():
            on_unseen(float(beyond[prior >= INSIDE].mean()))
        logits[~plausible(logits > 0, prior, grid)] = -LOGIT_LIMIT
        return r_ct.with_values(_onto_scan(logits, grid, r_ct.grid))

    def _logits(
        self,
        channels: Float[np.ndarray, "c z y x"],
        windows: Windows,
        first: Box | None,
        on_note: OnNote,
    ) -> Float[np.ndarray, "z y x"]:
        """Logit of the target at each voxel shown, however much memory there is."""
        smaller: Windows | None = windows
        for _ in range(1 + SMALLER_WINDOWS):
            if smaller is None:
                break
            try:
                return _logits(self.network, channels, smaller, first, self.device)
            except torch.cuda.OutOfMemoryError:
                on_note(
                    "the GPU's memory did not do for windows of "
                    f"{' x '.join(map(str, smaller.patch))} voxels"
                )
            torch.cuda.empty_cache()
            patch = _halved(smaller.patch, self.card.config)
            smaller = None
            if patch is not None:
                smaller = Windows.over(windows.shape, patch, as_nnunet=windows.as_nnunet)
        on_note("drawn on the processor")
        return _logits(_on_processor(self.network), channels, windows, first, "cpu")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Place:
    """What a network looks at.

    Attributes:
        grid: Of what it is shown.
        windows: On that grid.
        first: Where those lie that are drawn first, see `in_windows`.
        beyond: Whether a voxel is no part of the scan, and only fills a window up.
    """

    grid: Grid
    windows: Windows
    first: Box | None = None
    beyond: Bool[np.ndarray, "#z #y #x"]


def _in_region(r_ct: Probability, card: Card) -> _Place:
    """The region round the prior, with windows of its own."""
    grid = region_grid(
        r_ct,
        spacing_zyx_mm=card.spacing_zyx_mm,
        patch_zyx=card.patch_zyx,
        margin_mm=card.margin_mm,
    )
    windows = Windows.over(grid.shape_zyx, card.patch_zyx)
    return _Place(grid=grid, windows=windows, beyond=np.zeros(grid.shape_zyx, bool))


def _on_scan(cbct: Volume, r_ct: Probability, card: Card) -> _Place:
    """Those of the whole scan's windows that tell near the prior."""
    scan = whole_grid(cbct.grid, card.spacing_zyx_mm)
    whole = filled_up(scan, card.spacing_zyx_mm, card.patch_zyx)

    def near(margin_mm: float) -> Box:
        around = region_grid(
            r_ct, spacing_zyx_mm=card.spacing_zyx_mm, patch_zyx=(1, 1, 1), margin_mm=margin_mm
        )
        return box_of(around, whole)

    looked, first = near(card.margin_mm), near(min(card.margin_mm, NEAR_PRIOR_MM))
    windows = Windows.over(whole.shape_zyx, card.patch_zyx, as_nnunet=True).telling(looked)
    box = windows.box
    grid = whole.crop([along.start for along in box], [along.stop for along in box])
    beyond = np.ones(grid.shape_zyx, bool)
    beyond[box_of(scan, grid)] = False
    z, y, x = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(first, box, strict=True))
    return _Place(grid=grid, windows=windows.within(box), first=(z, y, x), beyond=beyond)


@torch.inference_mode()
def _logits(
    network: nn.Module,
    channels: Float[np.ndarray, "c z y x"],
    windows: Windows,
    first: Box | None,
    device: str,
) -> Float[np.ndarray, "z y x"]:
    """Logit of the target at each voxel shown.

    The network draws in windows; an arbiter decides once, for it looks at the whole of a border.
    """
    if not isinstance(network, DiffUMamba) or network.arbiter is None:
        network_draws = partial(on_volume, network)
        return in_windows(network_draws, channels, windows, device=device, first=first)
    as_drawn = in_windows(network.draw, channels, windows, device=device, first=first)
    both = torch.from_numpy(np.stack((-as_drawn, as_drawn)) / 2)[None]
    # It is small and the region is not: the processor has it, whatever the network runs on.
    decided = _on_processor(network.arbiter)(torch.from_numpy(channels[None]), both)[0]
    logits: np.ndarray = (decided[1] - decided[0]).numpy()
    return logits


def _halved(patch: tuple[int, ...], config: NetworkConfig) -> tuple[int, ...] | None:
    """A window of about half the voxels that the network takes as well; None: it takes none.

    Slices of a network of two axes are a batch, so there it is their number that is halved.
    """
    axis = 0 if config.axes == 2 else max(range(3), key=patch.__getitem__)
    for side in range(-(-patch[axis] // 2), patch[axis]):
        smaller = (*patch[:axis], side, *patch[axis + 1 :])
        try:
            config.require_patch(smaller[-config.axes :])
        except InputError:
            continue
        return smaller
    return None


def _on_processor(network: nn.Module) -> nn.Module:
    """The same network in the machine's memory; the one on the GPU stays, and nothing is added."""
    known: dict[int, object] = {id(one): one.cpu() for one in network.buffers()}
    for one in network.parameters():
        known[id(one)] = nn.Parameter(one.detach().cpu(), requires_grad=False)
    return copy.deepcopy(network, known)


def _as_followed(
    shown: Mapping[str, Float[np.ndarray, "z y x"]], grid: Grid
) -> dict[str, Float[np.ndarray, "z y x"]]:
    """The carried prior and planning CT where today's tissue says that they are (follow.py)."""
    spacing = grid.spacing_zyx_mm
    moved = follow(shown["cbct"], shown["planning_ct"], spacing_zyx_mm=spacing)
    prior_mm = signed_distance(shown["r_ct"], grid)
    prior, planning = FOLLOWED
    return {
        prior: as_carried(followed(prior_mm, moved, spacing_zyx_mm=spacing)),
        planning: followed(shown["planning_ct"], moved, spacing_zyx_mm=spacing),
    }


def load_network(folder: Path | None, *, device: str = "cpu") -> Predictor:
    """A model folder as a predictor; None: the checkpoint that comes with Contourcast.

    A folder as nnU-Net writes it is converted first, in a process of its own, to a folder that is
    gone when the model is loaded (`contourcast models import` does it once for good).

    Raises:
        WeightsError: The folder is not a model, see `load_model`; or its channels are not ours.
        InputError: This machine has no such device.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("this machine has no CUDA device", remedy="use --device cpu")
    with ours(folder or SHIPPED) as place:
        network, card, digest = load_model(place)
    if card.network not in SEGMENTING:
        raise WeightsError(
            f"a {card.network} draws no contour", remedy="use a model of a segmentation network"
        )
    known = tuple(name for name in KNOWN_CHANNELS if name in card.channels)
    if card.channels != known or known[:1] != KNOWN_CHANNELS[:1]:
        raise WeightsError(
            f"the model wants the channels {', '.join(card.channels)}; what can be shown, in this "
            f"order, is {', '.join(KNOWN_CHANNELS)}",
            remedy="use a model that was trained on the scan and what is carried to it",
        )
    if card.config.channels_in != len(card.channels):
        raise WeightsError(
            f"the card names {len(card.channels)} channels, the network takes "
            f"{card.config.channels_in}",
            remedy="export the model again",
        )
    return Predictor(network=network.to(device), card=card, digest=digest, device=device)


def plausible(
    drawn: Bool[np.ndarray, "z y x"], prior: Float[np.ndarray, "z y x"], grid: Grid
) -> Bool[np.ndarray, "z y x"]:
    """Where the region may be: round the pieces that can be today's target.

    Kept is every piece that reaches within `NEAR_PRIOR_MM` of the carried prior (a target can
    fall apart as it shrinks, and a ROI may have two parts), but no speck. When none does, the
    nearest is kept, so that a person sees what was found rather than nothing.
    """
    pieces, count = ndimage.label(drawn, np.ones((3, 3, 3)))
    if count <= 1:
        return np.ones_like(drawn)
    inside = prior >= min(0.5, float(prior.max()))
    away_mm = ndimage.distance_transform_edt(~inside, sampling=grid.spacing_zyx_mm)
    numbers = np.arange(1, count + 1)
    sizes = ndimage.sum_labels(drawn, pieces, numbers)
    nearest_mm = ndimage.minimum(away_mm, pieces, numbers)
    near = nearest_mm <= NEAR_PRIOR_MM
    if not near.any():
        near = nearest_mm == nearest_mm.min()
    kept = numbers[near & (sizes >= SPECK_SHARE * sizes[near].max())]
    dropped = drawn & ~np.isin(pieces, kept)
    rim = ndimage.binary_dilation(dropped, np.ones((3, 3, 3)))
    allowed: np.ndarray = ~rim | np.isin(pieces, kept)
    return allowed


def _as_logit(probability: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    certain = 1 / (1 + np.exp(LOGIT_LIMIT))
    p = probability.clip(certain, 1 - certain)
    logits: np.ndarray = np.log(p / (1 - p))
    return logits


def _onto_scan(
    logits: Float[np.ndarray, "z y x"], grid: Grid, scan: Grid
) -> Float[np.ndarray, "z y x"]:
    """Probabilities on the scan's grid: logits by cubic spline, so that the 0.5 level is smooth."""
    probability = np.zeros(scan.shape_zyx, np.float32)
    if not (logits > 0).any():
        return probability
    found = np.argwhere(logits > -LOGIT_LIMIT / 2)
    low, high = (found.min(0) - 1).clip(0), np.minimum(found.max(0) + 2, logits.shape)
    corners = scan.index(grid.crop(low, high).corners_xyz_mm)[:, ::-1]
    first = np.ceil(corners.min(0)).astype(int).clip(0)
    last = np.minimum(np.floor(corners.max(0)).astype(int) + 1, scan.shape_zyx)
    if (first >= last).any():
        return probability
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    fine = sample_on(
        logits, grid, onto=scan.crop(first, last), outside=-LOGIT_LIMIT, blur=False, order=3
    )
    probability[box] = 1 / (1 + np.exp(-fine))
    return probability
