from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contourcast.imaging.errors import (
    FrameMismatchError,
    GridMismatchError,
    InputError,
    WeightsError,
)
from contourcast.imaging.grid import Grid
from contourcast.imaging.volume import Mask, Probability, Volume
from contourcast.models import region
from contourcast.models.config import NetworkConfig
from contourcast.models.networks import entry
from contourcast.models.predictor import Predictor, load_network, plausible
from contourcast.models.weights import CARD_FILE, Card, Normalisation, save_model
from contourcast.propagate import KNOWN_METHODS
from contourcast.training.loop import TrainSettings
from support.data import require
from support.models import FRAME, TINY, ball, ball_case, tiny_card, tiny_model


class Bright(nn.Module):
    """Calls target what is brighter than a level, or than the middle of the window's range."""

    config = TINY

    def __init__(self, level: float | None = None) -> None:
        super().__init__()
        self.level = level
        self.windows: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.windows.append(tuple(x.shape))
        level = (x[:, 0].max() + x[:, 0].min()) / 2 if self.level is None else self.level
        return torch.stack((level - x[:, 0], x[:, 0] - level), 1)


def predictor(network: nn.Module | None = None, **card: object) -> Predictor:
    return Predictor(network=network or Bright(), card=tiny_card(**card), digest="0" * 64)


def dice(a: Mask, b: Mask) -> float:
    return 2 * float((a.values & b.values).sum()) / float(a.values.sum() + b.values.sum())


@pytest.mark.parametrize("shown", [np.nan, 7.0])
def test_a_scan_that_shows_nothing_there_is_refused(shown: float) -> None:
    cbct, r_ct, _ = ball_case()
    with pytest.raises(InputError, match="shows nothing round the carried prior"):
        predictor().predict(cbct.with_values(np.full_like(cbct.values, shown)), r_ct)


def test_numbers_that_are_none_are_filled_and_the_rest_is_drawn() -> None:
    cbct, r_ct, truth = ball_case(noise_hu=5.0)
    values = cbct.values.copy()
    values[:, :4] = np.nan
    assert dice(predictor().predict(cbct.with_values(values), r_ct).mask(), truth) > 0.95


def test_out_of_view_the_prior_stands_and_air_is_in_view() -> None:
    cbct, r_ct, truth = ball_case(noise_hu=5.0)
    middle = cbct.grid.index(truth.centroid_xyz_mm()[None])[0]  # type: ignore[index]
    k = round(float(middle[2]))
    observed = np.ones(cbct.grid.shape_zyx, bool)
    observed[k:] = False
    told: list[float] = []
    cut = replace(cbct, observed=observed)
    found = predictor().predict(cut, r_ct, on_unseen=told.append).mask().values
    carried = r_ct.mask().values
    apart = (found[k + 2 :] != carried[k + 2 :]).sum()
    assert apart < 0.05 * carried[k + 2 :].sum()
    (share,) = told
    assert share == pytest.approx(carried[k:].sum() / carried.sum(), abs=0.1)
    holes = np.ones((20, 20, 20), bool)
    holes[1:18:3, 1:18:2, 1:18:3] = False  # noise at the lowest value
    holes[5:9, 5:9, 5:9] = False  # a bubble
    assert not region.out_of_view(holes).any()
    holes[:, :, 15:] = False
    assert region.out_of_view(holes)[:, :, 16:].all()


def test_the_answer_lies_on_the_scans_grid_round_the_prior_and_nowhere_else() -> None:
    cbct, r_ct, truth = ball_case(noise_hu=5.0)
    found = predictor().predict(cbct, r_ct)
    assert found.grid.same_as(cbct.grid)
    assert found.frame_of_reference == FRAME
    assert found.name == "GTV"
    assert dice(found.mask(), truth) > 0.95
    assert not found.values[0].any()
    assert found.values.min() >= 0
    assert found.values.max() <= 1


def test_its_surface_is_finer_than_the_networks_grid() -> None:
    """A 3 mm network grid places a ball of 12 mm to a tenth of that, wherever the grid lies."""
    for seed in range(3):
        cbct, r_ct, truth = ball_case(seed=seed, noise_hu=5.0)
        found = predictor().predict(cbct, r_ct)
        apart_mm = np.linalg.norm(
            found.mask().centroid_xyz_mm() - truth.centroid_xyz_mm()  # type: ignore[operator]
        )
        assert apart_mm < 0.3


def test_an_empty_prior_gives_an_empty_region_without_a_look_at_the_scan() -> None:
    cbct, r_ct, _ = ball_case(noise_hu=5.0)
    network = Bright()
    found = predictor(network).predict(cbct, r_ct.with_values(0 * r_ct.values))
    assert not found.values.any()
    assert network.windows == []


def test_another_frame_of_reference_is_refused() -> None:
    cbct, r_ct, _ = ball_case(noise_hu=5.0)
    with pytest.raises(FrameMismatchError):
        predictor().predict(cbct, replace(r_ct, frame_of_reference="2.25.2"))


def test_another_grid_is_refused() -> None:
    cbct, r_ct, _ = ball_case(noise_hu=5.0)
    shifted = replace(cbct.grid, origin_xyz_mm=cbct.grid.origin_xyz_mm + np.ones(3))
    with pytest.raises(GridMismatchError):
        predictor().predict(cbct, replace(r_ct, grid=shifted))


def test_a_small_region_is_one_window_and_a_large_one_several() -> None:
    cbct, r_ct, _ = ball_case(noise_hu=5.0)
    small, large = Bright(), Bright()
    predictor(small, patch_zyx=(24, 24, 24)).predict(cbct, r_ct)
    predictor(large, patch_zyx=(8, 8, 8)).predict(cbct, r_ct)
    assert small.windows == [(1, 2, 24, 24, 24)]
    assert len(large.windows) > 8


def test_windows_give_what_one_window_gives() -> None:
    cbct, r_ct, _ = ball_case(noise_hu=5.0)
    one = predictor(Bright(0.5), patch_zyx=(16, 16, 17)).predict(cbct, r_ct)
    many = predictor(Bright(0.5), patch_zyx=(9, 10, 11)).predict(cbct, r_ct)
    assert float(np.abs(one.values - many.values).max()) < 0.05


@pytest.mark.parametrize(
    ("axes_zyx", "direction", "first"),
    [
        ((0, 1), (1.0, -1.0, -1.0), 6),  # feet first: slices and rows run the other way
        ((1, 2), (-1.0, -1.0, 1.0), 3),  # prone: rows and columns do
    ],
)
def test_the_order_of_the_scans_axes_does_not_matter(
    axes_zyx: tuple[int, int], direction: tuple[float, ...], first: int
) -> None:
    cbct, r_ct, _ = ball_case(noise_hu=5.0)
    grid = replace(
        cbct.grid, direction=np.diag(direction), origin_xyz_mm=cbct.grid.corners_xyz_mm[first]
    )
    turned = predictor().predict(
        replace(cbct, values=np.flip(cbct.values, axes_zyx), grid=grid),
        replace(r_ct, values=np.flip(r_ct.values, axes_zyx), grid=grid),
    )
    straight = predictor().predict(cbct, r_ct)
    assert float(np.abs(np.flip(turned.values, axes_zyx) - straight.values).max()) < 1e-3


def test_a_slightly_oblique_scan_is_drawn_where_it_is() -> None:
    cbct, r_ct, truth = ball_case(noise_hu=5.0)
    c, s = np.cos(0.0017), np.sin(0.0017)
    grid = replace(cbct.grid, direction=np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]))
    found = predictor().predict(replace(cbct, grid=grid), replace(r_ct, grid=grid))
    assert dice(found.mask(), replace(truth, grid=grid)) > 0.95


def test_the_scanners_calibration_does_not_matter() -> None:
    """Soft tissue at -130 HU and lung at -420, as a real cone beam showed them."""
    cbct, r_ct, _ = ball_case(noise_hu=5.0)
    other = cbct.with_values(0.45 * cbct.values - 110)
    a, b = predictor().predict(cbct, r_ct), predictor().predict(other, r_ct)
    assert float(np.abs(a.values - b.values).max()) < 1e-3


def test_the_round_field_of_a_cone_beam_does_not_enter_the_normalisation() -> None:
    cbct, r_ct, truth = ball_case(noise_hu=5.0)
    inside = ball(cbct.grid, center_xyz_mm=(0, 0, 0), radius_mm=24)[0] > 0
    found = predictor().predict(cbct.with_values(np.where(inside, cbct.values, -1000.0)), r_ct)
    declared = predictor().predict(
        replace(cbct, values=np.where(inside, cbct.values, 500.0), observed=inside), r_ct
    )
    assert dice(found.mask(), truth) > 0.9
    assert dice(declared.mask(), truth) > 0.9


def test_a_prior_at_the_edge_of_the_scan_is_drawn_as_far_as_the_scan_goes() -> None:
    cbct, r_ct, truth = ball_case(shift_mm=0.0, noise_hu=5.0)
    part = cbct.grid.crop((0, 0, 0), (16, 50, 54))  # the last slice cuts the ball
    cut = {"grid": part, "frame_of_reference": FRAME}
    found = predictor().predict(
        Volume(values=cbct.values[:16], **cut),  # type: ignore[arg-type]
        Probability(values=r_ct.values[:16], **cut),  # type: ignore[arg-type]
    )
    assert dice(found.mask(), Mask(values=truth.values[:16], **cut)) > 0.9  # type: ignore[arg-type]


def test_the_prior_reaches_the_network_as_it_is() -> None:
    cbct, r_ct, _ = ball_case(noise_hu=5.0)
    seen: list[Tensor] = []

    class Spy(Bright):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    predictor(Spy(), patch_zyx=(24, 24, 24)).predict(cbct, r_ct)
    scan, prior = seen[0][0].numpy()
    radius_mm = (3 * (prior > 0.5).sum() * 27 / (4 * np.pi)) ** (1 / 3)
    assert radius_mm == pytest.approx(1.2 * 12, abs=0.5)
    assert prior.max() <= 1
    assert abs(float(np.median(scan))) < 3


class Hungry(Bright):
    """Fails as a GPU without memory does, so many times; then answers."""

    def __init__(self, times: int) -> None:
        super().__init__(0.5)
        self.scale = nn.Parameter(torch.ones(1))
        self.left = [times]
        self.asked: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(tuple(x.shape[-3:]))
        if self.left[0]:
            self.left[0] -= 1
            raise torch.cuda.OutOfMemoryError("out of memory")
        return super().forward(x) * self.scale


@dataclass(frozen=True, kw_only=True)
class InSteps(NetworkConfig):
    """Takes sides that are multiples of a number."""

    step: int

    def require_patch(self, shape: tuple[int, ...]) -> None:
        self._require_multiple(shape, self.step)


@pytest.mark.parametrize(
    ("times", "tried", "said"),
    [
        (0, [(16, 20, 20)], []),
        (1, [(16, 20, 20), (16, 10, 20)], ["16 x 20 x 20"]),
        (2, [(16, 20, 20), (16, 10, 20), (16, 10, 10)], ["16 x 20 x 20", "16 x 10 x 20"]),
        (
            3,
            [(16, 20, 20), (16, 10, 20), (16, 10, 10)],
            ["16 x 20 x 20", "16 x 10 x 20", "16 x 10 x 10", "drawn on the processor"],
        ),
    ],
)
def test_without_memory_windows_are_halved_twice_and_then_the_processor_draws(
    times: int, tried: list[tuple[int, ...]], said: list[str]
) -> None:
    cbct, r_ct, _ = ball_case(noise_hu=5.0)
    network, notes = Hungry(times), list[str]()
    model = predictor(network)
    found = model.predict(cbct, r_ct, on_note=notes.append)
    whole = predictor(Bright(0.5)).predict(cbct, r_ct)
    assert list(dict.fromkeys(network.asked)) == tried
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))
    assert dice(found.mask(), whole.mask()) > 0.99
    asked = len(network.asked)
    model.predict(cbct, r_ct)  # the next scan begins with whole windows, where it began before
    assert network.asked[asked] == (16, 20, 20)


def test_a_smaller_window_is_one_that_the_network_takes() -> None:
    cbct, r_ct, _ = ball_case(noise_hu=5.0)
    network = Hungry(2)
    card = {"config": InSteps(step=8), "patch_zyx": (16, 24, 16)}
    predictor(network, **card).predict(cbct, r_ct)
    assert list(dict.fromkeys(network.asked)) == [(16, 24, 16), (16, 16, 16), (8, 16, 16)]


def test_a_network_that_takes_one_size_is_drawn_on_the_processor_at_once() -> None:
    cbct, r_ct, _ = ball_case(noise_hu=5.0)
    network, notes = Hungry(1), list[str]()
    card = {"config": InSteps(step=16), "patch_zyx": (16, 16, 16)}
    predictor(network, **card).predict(cbct, r_ct, on_note=notes.append)
    assert network.asked == [(16, 16, 16)]
    assert notes[-1] == "drawn on the processor"


def test_another_fault_is_not_taken_for_it() -> None:
    class Broken(Bright):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("a launch failed")

    cbct, r_ct, _ = ball_case(noise_hu=5.0)
    with pytest.raises(RuntimeError, match="launch"):
        predictor(Broken()).predict(cbct, r_ct)


@pytest.mark.gpu
def test_a_real_gpu_without_memory_draws_the_same() -> None:
    require("gpu", torch.cuda.is_available(), "no CUDA device")
    torch.manual_seed(0)
    cbct, r_ct, _ = ball_case(noise_hu=5.0)
    network = entry("diff-umamba").build(TINY).eval()
    card = tiny_card(patch_zyx=(16, 20, 20))
    plain = Predictor(network=network, card=card, digest="0" * 64).predict(cbct, r_ct)
    notes: list[str] = []
    on_gpu = Predictor(network=network.to("cuda"), card=card, digest="0" * 64, device="cuda")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-9)
    try:
        found = on_gpu.predict(cbct, r_ct, on_note=notes.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert notes[-1] == "drawn on the processor"
    assert float(np.abs(found.values - plain.values).max()) < 1e-5
    assert next(network.parameters()).is_cuda


class TestPieces:
    GRID = Grid.even(
        shape_zyx=(9, 9, 40), spacing_xyz_mm=(2.0, 2.0, 2.0), origin_xyz_mm=(0.0, 0.0, 0.0)
    )

    def line(self, *spans: tuple[int, int]) -> np.ndarray:
        drawn = np.zeros(self.GRID.shape_zyx, bool)
        for a, b in spans:
            drawn[3:6, 3:6, a:b] = True
        return drawn

    def prior(self, a: int, b: int) -> np.ndarray:
        return self.line((a, b)).astype(np.float32)

    def kept(self, drawn: np.ndarray, prior: np.ndarray) -> np.ndarray:
        result: np.ndarray = drawn & plausible(drawn, prior, self.GRID)
        return result

    def test_parts_near_the_prior_stay_and_one_far_away_goes(self) -> None:
        drawn = self.line((10, 14), (17, 20), (34, 39))
        assert np.array_equal(self.kept(drawn, self.prior(10, 18)), self.line((10, 14), (17, 20)))

    def test_the_target_may_have_moved_off_the_prior(self) -> None:
        drawn = self.line((14, 18), (30, 38))
        assert np.array_equal(self.kept(drawn, self.prior(5, 11)), self.line((14, 18)))

    def test_a_speck_goes(self) -> None:
        drawn = self.line((10, 30))
        drawn[4, 4, 33] = True
        assert np.array_equal(self.kept(drawn, self.prior(10, 30)), self.line((10, 30)))

    def test_when_all_is_far_the_nearest_is_shown(self) -> None:
        drawn = self.line((15, 20), (30, 39))
        assert np.array_equal(self.kept(drawn, self.prior(0, 3)), self.line((15, 20)))

    def test_dropped_pieces_leave_nothing_in_the_answer(self) -> None:
        cbct, r_ct, truth = ball_case(shift_mm=0.0, noise_hu=5.0)
        _, far = ball(cbct.grid, center_xyz_mm=(36, 0, 0), radius_mm=7)
        both = cbct.with_values(np.where(far > 0.5, 20.0, cbct.values))
        # In a region this large the ball is a hundredth: the clip must not cut it.
        whole_range = Normalisation(lower_percentile=0.1, upper_percentile=99.9)
        found = predictor(patch_zyx=(30, 30, 30), normalisation=whole_range).predict(both, r_ct)
        assert found.values[far > 0.9].max() < 0.01
        assert dice(found.mask(), truth) > 0.93


class TestScaling:
    def test_it_clips_centres_and_scales(self) -> None:
        values = np.concatenate((np.linspace(-1, 1, 1000), [1e6]))[None, None]
        scaled = region.scaling(values, np.ones_like(values, bool), Normalisation()).apply(values)
        assert abs(float(scaled.mean())) < 1e-3
        assert float(scaled.std()) == pytest.approx(1, abs=1e-3)
        assert scaled.max() < 2

    def test_a_constant_region_is_zero_and_an_unseen_one_too(self) -> None:
        values = np.full((2, 3, 4), 7.0)
        for seen in (True, False):
            observed = np.full(values.shape, seen)
            scaled = region.scaling(values, observed, Normalisation()).apply(values)
            assert not scaled.any()


class TestLoading:
    def test_a_model_folder_becomes_a_predictor(self, tmp_path: Path) -> None:
        card = tiny_model(tmp_path)
        loaded = load_network(tmp_path, device="cpu")
        assert (loaded.name, loaded.card) == ("diff-umamba", card)
        assert len(loaded.digest) == 64
        cbct, r_ct, _ = ball_case(noise_hu=5.0)
        a, b = (loaded.predict(cbct, r_ct).values for _ in range(2))
        assert np.array_equal(a, b)

    def test_other_channels_are_refused(self, tmp_path: Path) -> None:
        tiny_model(tmp_path)
        text = (tmp_path / CARD_FILE).read_text()
        (tmp_path / CARD_FILE).write_text(text.replace('"r_ct"', '"pet"'))
        with pytest.raises(WeightsError, match="cbct, pet"):
            load_network(tmp_path)

    def test_more_channels_than_the_network_takes_are_refused(self, tmp_path: Path) -> None:
        tiny_model(tmp_path)
        text = (tmp_path / CARD_FILE).read_text()
        (tmp_path / CARD_FILE).write_text(text.replace('"r_ct"', '"r_ct", "planning_ct"'))
        with pytest.raises(WeightsError, match="names 3 channels, the network takes 2"):
            load_network(tmp_path)

    def test_a_network_that_draws_nothing_is_no_method(self, tmp_path: Path) -> None:
        kind = entry("nnmamba-classifier")
        config = kind.config_kind(channels_in=2)
        card = tiny_card(network="nnmamba-classifier", config=config)
        save_model(tmp_path, kind.build(config), card, dtype=torch.float16)
        with pytest.raises(WeightsError, match="draws no contour"):
            load_network(tmp_path)
        with pytest.raises(InputError, match="cannot learn contours"):
            TrainSettings(network="nnmamba-classifier", config=config)
        assert "nnmamba-classifier" not in KNOWN_METHODS

    def test_a_device_that_is_not_there_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(InputError, match="no CUDA device"):
            load_network(tmp_path, device="cuda")


def test_card_and_predictor_are_frozen() -> None:
    made: Any = predictor()
    with pytest.raises(AttributeError):
        made.digest = ""
    assert isinstance(made.card, Card)
