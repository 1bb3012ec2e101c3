from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from contourcast.imaging.errors import InputError
from contourcast.models.mamba import MambaConfig
from contourcast.models.nn_mamba import (
    NnMambaClassifier,
    NnMambaClassifierConfig,
    NnMambaConfig,
    NnMambaLandmarks,
)
from contourcast.training.nn_mamba_tasks import (
    CLASSIFICATION,
    LANDMARKS,
    Recipe,
    classification_figures,
    classification_loss,
    fit,
    heat_maps,
    landmark_errors_mm,
    landmark_loss,
    positions_zyx,
)

SHAPE = (16, 16, 32)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class TestClassification:
    def test_the_loss_of_one_output_is_that_of_two_whose_first_is_zero(self) -> None:
        logits, labels = torch.randn(5, 1), torch.tensor([0, 1, 1, 0, 1])
        two = torch.cat((torch.zeros(5, 1), logits), 1)
        assert torch.allclose(classification_loss(logits, labels), classification_loss(two, labels))

    def test_certain_and_right_costs_nothing(self) -> None:
        assert (
            float(classification_loss(torch.tensor([[-30.0], [30]]), torch.tensor([0, 1]))) < 1e-9
        )

    def test_figures_by_hand(self) -> None:
        """Five images; scores 3 2 1 -1 -2 of classes 1 0 1 1 0: four of six pairs in order."""
        logits = torch.tensor([[3.0], [2], [1], [-1], [-2]])
        figures = classification_figures(logits, torch.tensor([1, 0, 1, 1, 0]))
        assert figures.accuracy == pytest.approx(3 / 5)
        assert figures.f1 == pytest.approx(2 * 2 / (3 + 3))
        assert figures.auc == pytest.approx(4 / 6)

    def test_ties_count_half_and_a_missing_class_has_no_auc(self) -> None:
        tied = classification_figures(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
        assert tied.auc == pytest.approx(0.5)
        one = classification_figures(torch.ones(3, 1), torch.ones(3, dtype=torch.long))
        assert (one.accuracy, one.f1, one.auc) == (1.0, 1.0, None)
        none = classification_figures(-torch.ones(3, 1), torch.zeros(3, dtype=torch.long))
        assert (none.accuracy, none.f1, none.auc) == (1.0, 0.0, None)

    def test_more_classes_are_averaged(self) -> None:
        logits = torch.eye(3)[[0, 1, 2, 0]]
        figures = classification_figures(logits, torch.tensor([0, 1, 2, 2]))
        assert figures.f1 == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
        assert figures.auc is None

    def test_no_image_is_refused(self) -> None:
        with pytest.raises(InputError, match="no image"):
            classification_figures(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))

    @pytest.mark.parametrize(("cls", "norm"), [("sequence", "instance"), ("code", "batch")])
    def test_it_learns_whether_there_is_a_ball(self, cls: Any, norm: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        network = NnMambaClassifier(
            NnMambaClassifierConfig(
                channels_in=1, channels_out=1, width=8, blocks=2, cls=cls, norm=norm,
                dropout=0.1, mamba=MambaConfig(d_state=4),
            )
        )  # fmt: skip
        recipe = Recipe(steps=50, learning_rate=3e-3, weight_decay=CLASSIFICATION.weight_decay)
        losses = fit(network, balls_or_none(generator), classification_loss, recipe)
        assert len(losses) == 50
        images, labels = next(balls_or_none(generator, count=24))
        with torch.no_grad():
            figures = classification_figures(network.eval()(images), labels)
        assert figures.auc is not None
        assert figures.auc > 0.95
        assert figures.accuracy > 0.85


def balls_or_none(
    generator: torch.Generator, *, count: int = 8
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images with a ball anywhere in noise (class 1), or with noise alone."""
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in SHAPE), indexing="ij"), -1)
    while True:
        labels = torch.randint(2, (count,), generator=generator)
        centers = 5 + torch.rand(count, 3, generator=generator) * (torch.tensor(SHAPE) - 10)
        away = (places - centers[:, None, None, None]).square().sum(-1)
        balls = 3 * (away < 4.3**2) * labels[:, None, None, None]
        noise = 0.3 * torch.randn(balls.shape, generator=generator)
        yield (balls + noise)[:, None], labels


class TestLandmarks:
    def test_a_map_is_one_at_its_landmark_and_falls_off_alike_in_all_directions(self) -> None:
        maps = heat_maps(torch.tensor([[[4.0, 5, 6]]]), (9, 11, 13), sigma_voxels=2.0)[0, 0]
        assert float(maps[4, 5, 6]) == 1
        for place in ((6, 5, 6), (4, 7, 6), (4, 5, 8)):
            assert float(maps[place]) == pytest.approx(0.60653, abs=1e-4)

    def test_a_position_between_voxels_is_found_again(self) -> None:
        points = torch.tensor([[[4.3, 5.0, 6.6], [3.0, 7.4, 2.2]]])
        found = positions_zyx(heat_maps(points, (9, 12, 13), sigma_voxels=1.5), radius=2)
        assert float((found - points).abs().max()) < 0.15
        whole = positions_zyx(heat_maps(points, (9, 12, 13), sigma_voxels=1.5), radius=0)
        assert whole.tolist() == [[[4, 5, 7], [3, 7, 2]]]

    def test_far_brightness_and_negative_values_do_not_pull_at_a_position(self) -> None:
        maps = heat_maps(torch.tensor([[[4.0, 4, 4]]]), (12, 12, 12), sigma_voxels=1.0)
        maps[..., 10, 10, 10] = 0.9
        maps[..., 3, 4, 4] = -5
        assert positions_zyx(maps, radius=0).tolist() == [[[4, 4, 4]]]
        found = positions_zyx(maps, radius=2)[0, 0]
        assert float(found[1]) == pytest.approx(4, abs=1e-4)
        assert 4 < float(found[0]) < 4.5

    def test_a_map_without_anything_positive_still_has_a_highest_voxel(self) -> None:
        maps = torch.full((1, 1, 4, 4, 4), -1.0)
        maps[..., 1, 2, 3] = -0.5
        assert positions_zyx(maps).tolist() == [[[1, 2, 3]]]

    def test_errors_are_in_millimetres(self) -> None:
        errors = landmark_errors_mm(
            torch.tensor([[[1.0, 2, 3]]]), torch.tensor([[[2.0, 2, 1]]]),
            spacing_zyx_mm=(3.0, 1.0, 2.0),
        )  # fmt: skip
        assert float(errors) == pytest.approx(5)
        for wrong in ((0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("nan"))):
            with pytest.raises(InputError, match="measures nothing"):
                landmark_errors_mm(torch.zeros(1, 1, 3), torch.zeros(1, 1, 3), spacing_zyx_mm=wrong)

    def test_the_loss_of_empty_maps_is_one_and_of_perfect_ones_zero(self) -> None:
        wanted = heat_maps(torch.tensor([[[4.0, 4, 4]]]), (8, 8, 8), sigma_voxels=1.5)
        assert float(landmark_loss(torch.zeros_like(wanted), wanted)) == pytest.approx(1)
        assert float(landmark_loss(wanted, wanted)) == 0

    def test_it_learns_to_find_a_bright_and_a_dark_spot(self) -> None:
        generator = torch.Generator().manual_seed(1)
        network = NnMambaLandmarks(
            NnMambaConfig(channels_in=1, width=8, blocks=2, mamba=MambaConfig(d_state=4))
        )
        recipe = Recipe(steps=120, learning_rate=1e-2, weight_decay=LANDMARKS.weight_decay)
        fit(network, maps_of(spots(generator)), landmark_loss, recipe)
        images, points = next(spots(generator, count=8))
        with torch.no_grad():
            found = positions_zyx(network.eval()(images))
        errors_mm = landmark_errors_mm(found, points, spacing_zyx_mm=(1.0, 1.0, 1.0))
        assert float(errors_mm.mean()) < 1.0
        guessed = points.mean(0, keepdim=True).expand_as(points)
        chance_mm = landmark_errors_mm(guessed, points, spacing_zyx_mm=(1.0, 1.0, 1.0))
        assert float(chance_mm.mean()) > 4


def spots(
    generator: torch.Generator, *, count: int = 2
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A bright and a dark one in noise, and where they are."""
    while True:
        points = 3 + torch.rand(count, 2, 3, generator=generator) * (torch.tensor(SHAPE) - 7)
        bright, dark = heat_maps(points, SHAPE, sigma_voxels=1.5).unbind(1)
        noise = 0.1 * torch.randn(bright.shape, generator=generator)
        yield (bright - dark + noise)[:, None], points


def maps_of(
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for images, points in batches:
        yield images, heat_maps(points, SHAPE, sigma_voxels=2.0)


class TestFit:
    def test_batches_that_end_and_losses_that_are_not_finite_end_it(self) -> None:
        network = torch.nn.Linear(2, 1)
        recipe = Recipe(steps=3, learning_rate=1e-3, weight_decay=0.0)
        batch = (torch.ones(4, 2), torch.ones(4, dtype=torch.long))
        with pytest.raises(InputError, match="after 1 of 3 steps"):
            fit(network, iter([batch]), classification_loss, recipe)
        with pytest.raises(InputError, match="step 0 is not finite"):
            fit(network, iter([batch]), lambda given, wanted: given.sum() * torch.nan, recipe)

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        weights = []
        for _ in range(2):
            torch.manual_seed(3)
            network = NnMambaClassifier(
                NnMambaClassifierConfig(channels_in=1, width=4, blocks=1, cls="code")
            )
            recipe = Recipe(steps=3, learning_rate=1e-3, weight_decay=1e-3)
            batches = balls_or_none(torch.Generator().manual_seed(2), count=2)
            fit(network, batches, classification_loss, recipe)
            weights.append([p.detach().clone() for p in network.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
