"""The analyses of a trained network."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from contourcast.imaging.errors import InputError
from contourcast.models.diff_umamba import DiffUMamba, DiffUMambaConfig
from contourcast.models.noise_reduction import NrmConfig
from contourcast.models.nrm_figures import module_of, nrm_figures, watched
from contourcast.training.analyses import ANALYSES
from contourcast.training.analyses.ablate import BASE, AblateSettings, ablate, variants
from contourcast.training.analyses.correlation import (
    UNTRAINED,
    CorrelationSettings,
    correlation,
    related,
    untrained,
)
from contourcast.training.analyses.field import FieldSettings, field, influence, radii_mm
from contourcast.training.analyses.lambdas import lambdas
from contourcast.training.analyses.latent import (
    CONTROL,
    LatentSettings,
    clustered,
    embedding,
    latent,
    principal,
)
from contourcast.training.analyses.outcome import Outcome
from contourcast.training.analyses.profile import ProfileSettings, profile
from contourcast.training.analyses.robustness import (
    FEATURE_LEVELS,
    IMAGE_LEVELS,
    NOISES,
    RobustnessSettings,
    displaced,
    on_image,
    robustness,
)
from contourcast.training.analyses.sites import bottleneck_of, site_of
from contourcast.training.analyses.subset import SubsetSettings, subset
from contourcast.training.analyses.trials import Parts
from contourcast.training.cases import Model, case_for, dice, drawn, load_models
from contourcast.training.datasets.splits import fractions
from contourcast.training.loop import TrainSettings
from contourcast.training.samples import SampleSettings
from support.evidence import patch_sample
from support.models import TINY, tiny_model

SAMPLES = [patch_sample(seed=n) for n in range(2)]
PATCH = (16, 20, 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model(folder)
    return load_models([str(folder)])[0]


@pytest.fixture
def channels(model: Model) -> np.ndarray:
    return case_for(model, SAMPLES[0]).channels


def hooks_of(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def written(outcome: Outcome, out: Path) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Table and JSON, read back; the figure is an SVG."""
    outcome.write(out)
    assert b"<svg" in (out / f"{outcome.analysis}.svg").read_bytes()[:1000]
    with (out / f"{outcome.analysis}.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    document = json.loads((out / f"{outcome.analysis}.json").read_text())
    assert document["versions"]["torch"]
    assert document["seeds"]
    return table, document


def test_every_analysis_of_the_table_is_a_function_of_its_module() -> None:
    for name in ANALYSES:
        module = import_module(f"contourcast.training.analyses.{name}")
        assert callable(getattr(module, name))


class TestNoise:
    X = torch.randn(1, 3, 6, 7, 8, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("kind", NOISES)
    def test_zero_is_no_noise_exactly(self, kind: str) -> None:
        noisy = NOISES[kind](self.X, 0.0, torch.Generator().manual_seed(1))
        assert torch.equal(noisy, self.X)

    @pytest.mark.parametrize("kind", NOISES)
    def test_noise_is_a_copy_and_repeats_with_its_seed(self, kind: str) -> None:
        before = self.X.clone()
        one, two = (NOISES[kind](self.X, 0.2, torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(self.X, before)
        assert torch.equal(one, two)
        assert not torch.equal(one, before)

    def test_uniform_lies_between_low_and_high(self) -> None:
        noise = NOISES["uniform"](torch.zeros(40_000), 3.0, torch.Generator().manual_seed(1))
        assert float(noise.abs().max()) <= 3.0
        assert float(noise.std()) == pytest.approx(3 / 3**0.5, rel=0.02)

    def test_speckle_grows_with_the_feature(self) -> None:
        x = torch.full((40_000,), 4.0)
        noise = NOISES["speckle"](x, 0.5, torch.Generator().manual_seed(1)) - x
        assert float(noise.std()) == pytest.approx(2.0, rel=0.03)

    def test_periodic_has_ten_waves_along_the_last_axis(self) -> None:
        noise = NOISES["periodic"](torch.zeros(2, 100), 2.0, torch.Generator())
        spectrum = torch.fft.rfft(noise[1]).abs()
        assert int(spectrum.argmax()) == 10
        assert float(noise.max()) == pytest.approx(2.0, rel=0.06)

    def test_salt_and_pepper_sets_a_share_to_the_extremes(self) -> None:
        x = torch.linspace(-1, 1, 100_000)
        noisy = NOISES["salt-and-pepper"](x, 0.02, torch.Generator().manual_seed(1))
        changed = noisy != x
        assert float(changed.float().mean()) == pytest.approx(0.02, rel=0.1)
        assert set(noisy[changed].tolist()) == {-1.0, 1.0}
        assert float((noisy[changed] < 0).float().mean()) == pytest.approx(0.5, abs=0.05)

    @pytest.mark.parametrize("kind", IMAGE_LEVELS)
    def test_the_image_is_disturbed_more_at_higher_levels(self, kind: str) -> None:
        scan = SAMPLES[0].scan
        levels = IMAGE_LEVELS[kind]
        sizes = [
            float(
                np.abs(
                    on_image(
                        scan, kind, level, spacing_zyx_mm=(3, 3, 3), rng=np.random.default_rng(1)
                    )
                    - scan
                ).mean()
            )
            for level in levels
        ]
        assert sizes[0] == pytest.approx(0.0, abs=1e-5)
        assert sizes == sorted(sizes)
        assert sizes[-1] > 0.02

    def test_the_predictors_normalisation_is_kept(self) -> None:
        scan = SAMPLES[0].scan
        noisy = on_image(
            scan, "cupping", 300.0, spacing_zyx_mm=(3, 3, 3), rng=np.random.default_rng(1)
        )
        assert float(noisy.mean()) == pytest.approx(float(scan.mean()), abs=1e-5)
        assert float(noisy.std()) == pytest.approx(float(scan.std()), rel=1e-4)

    def test_a_displaced_prior_is_as_far_away_as_said(self) -> None:
        sample = patch_sample(seed=0, shape_zyx=(32, 34, 36))
        moved = displaced(
            sample,
            spacing_zyx_mm=(3.0, 3.0, 3.0),
            shift_mm=9.0,
            turn_deg=0.0,
            rng=np.random.default_rng(2),
        )
        centres = [np.argwhere(s.prior_mm > 0).mean(0) * 3.0 for s in (sample, moved)]
        assert np.linalg.norm(centres[1] - centres[0]) == pytest.approx(9.0, abs=0.4)
        assert moved.label is sample.label

    def test_a_turned_prior_stays_where_it_is(self) -> None:
        sample = patch_sample(seed=0)
        moved = displaced(
            sample,
            spacing_zyx_mm=(3.0, 3.0, 3.0),
            shift_mm=0.0,
            turn_deg=6.0,
            rng=np.random.default_rng(2),
        )
        assert dice(moved.prior_mm > 0, sample.prior_mm > 0) > 0.97  # a ball
        assert not np.array_equal(moved.prior_mm, sample.prior_mm)


class TestRobustness:
    SETTINGS = RobustnessSettings(kinds=("uniform", "prior-shift"), seeds=(1, 2))

    def test_level_zero_is_the_undisturbed_network(self, model: Model, tmp_path: Path) -> None:
        outcome = robustness([model], SAMPLES, self.SETTINGS)
        table, document = written(outcome, tmp_path)
        for sample in SAMPLES:
            case = case_for(model, sample)
            clean = dice(drawn(model, case.channels), case.truth)
            for row in outcome.rows:
                if row["case"] == sample.name and row["level"] == 0:
                    assert row["dice"] == clean
        assert len(table) == 2 * 2 * (6 + 4)
        assert document["models"][0]["digest"] == model.digest
        uniform = [r for r in outcome.rows if r["kind"] == "uniform" and r["level"] == 12]
        for row in uniform:
            expected = 12 / 3**0.5 / row["feature_sd"]
            assert row["noise_over_sd"] == pytest.approx(expected, rel=0.05)

    def test_the_noise_reaches_the_answer_and_no_hook_stays(self, model: Model) -> None:
        """In a network that draws about half of the voxels, so that any change shows."""
        torch.manual_seed(0)
        block = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.InstanceNorm3d(4))
        frail = replace(
            model,
            network=nn.Sequential(block, nn.Conv3d(4, 2, 1)).eval(),
            card=replace(model.card, patch_zyx=(16, 20, 22)),  # ten waves of 20 are sampled at 0
        )
        before = hooks_of(frail.network)
        loud = RobustnessSettings(kinds=tuple(FEATURE_LEVELS), seeds=(1,))
        outcome = robustness([frail], SAMPLES[:1], loud)
        for kind in FEATURE_LEVELS:
            scores = {row["level"]: row["dice"] for row in outcome.rows if row["kind"] == kind}
            assert scores[max(scores)] != scores[0]
        assert hooks_of(frail.network) == before == 0

    def test_hooks_go_even_when_the_network_fails(
        self, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = hooks_of(model.network)

        def failing(x: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
            raise RuntimeError("no memory")

        monkeypatch.setitem(NOISES, "uniform", failing)
        with pytest.raises(RuntimeError, match="no memory"):
            robustness([model], SAMPLES[:1], RobustnessSettings(kinds=("uniform",), seeds=(1,)))
        assert hooks_of(model.network) == before

    def test_relative_noise_is_measured_in_sds(self, model: Model) -> None:
        settings = RobustnessSettings(kinds=("uniform",), seeds=(1,), relative=True)
        outcome = robustness([model], SAMPLES[:1], settings)
        loudest = outcome.rows[-1]
        assert loudest["level"] == 4
        assert loudest["noise_over_sd"] == pytest.approx(4 / 3**0.5, rel=0.05)

    def test_unknown_noise_is_refused(self) -> None:
        with pytest.raises(InputError, match="no disturbance is named 'hum'"):
            RobustnessSettings(kinds=("hum",))

    def test_an_unknown_site_is_refused(self, model: Model) -> None:
        with pytest.raises(InputError, match=r"has no module 'encoder\.nowhere'"):
            robustness([model], SAMPLES, RobustnessSettings(site="encoder.nowhere", seeds=(1,)))


class TestSites:
    def test_stem_is_the_first_block_and_stage0_the_first_stage(
        self, model: Model, channels: np.ndarray
    ) -> None:
        network: DiffUMamba = model.network  # type: ignore[assignment]
        assert site_of(model, "stem", channels) is network.encoder.stem[0]
        assert site_of(model, "stage0", channels) is network.encoder.stages[0]

    def test_the_bottleneck_is_what_the_module_cleaned(
        self, model: Model, channels: np.ndarray
    ) -> None:
        module = module_of(model.network)
        assert module is not None
        with watched(module) as seen:
            drawn(model, channels)
        assert torch.allclose(bottleneck_of(model, channels), (seen.m1 - seen.m2)[0])

    def test_a_network_of_another_kind_has_one_too(self, model: Model) -> None:
        """Two steps down, two up, none of the house's names."""
        network = nn.Sequential(
            nn.Conv3d(2, 4, 3, 2, 1),
            nn.InstanceNorm3d(4),
            nn.Conv3d(4, 8, 3, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose3d(8, 4, 2, 2),
            nn.ConvTranspose3d(4, 2, 2, 2),
        )
        other = replace(model, network=network)
        channels = np.ones((2, 8, 8, 8), np.float32)
        with torch.no_grad():
            expected = network[:4](torch.ones(1, 2, 8, 8, 8))[0]
        assert torch.equal(bottleneck_of(other, channels), expected)

    def test_a_network_that_never_shrinks_has_none(self, model: Model) -> None:
        other = replace(model, network=nn.Sequential(nn.Conv3d(2, 2, 1)))
        with pytest.raises(InputError, match="has no bottleneck"):
            bottleneck_of(other, np.ones((2, 4, 4, 4), np.float32))

    def test_a_network_without_blocks_has_no_stem(self, model: Model) -> None:
        other = replace(model, network=nn.Sequential(nn.Conv3d(2, 2, 1)))
        with pytest.raises(InputError, match="no block"):
            site_of(other, "stem", np.ones((2, 4, 4, 4), np.float32))


class TestLatent:
    SETTINGS = LatentSettings(seeds=(1, 2), clusters=(2, 3, 4), perplexity=5.0)

    def planted(self, rng: np.random.Generator, groups: int = 3) -> np.ndarray:
        """Rows of three kinds, each a pattern and a little noise, of any size and level."""
        patterns = rng.standard_normal((groups, 80))
        rows = np.repeat(patterns, 12, 0) + 0.3 * rng.standard_normal((12 * groups, 80))
        scaled: np.ndarray = rows * rng.uniform(1, 50, (len(rows), 1)) + rng.normal(
            0, 9, (len(rows), 1)
        )
        return scaled

    def test_planted_clusters_are_found(self) -> None:
        points = principal(self.planted(np.random.default_rng(0)), 50)
        found = clustered([points, points], self.SETTINGS)
        assert found.k == 3
        assert found.silhouette > 0.6
        groups = found.labels.reshape(3, 12)
        assert all(len(set(group)) == 1 for group in groups.tolist())

    def test_white_noise_has_none(self) -> None:
        points = principal(np.random.default_rng(0).standard_normal((36, 80)), 50)
        assert clustered([points, points], self.SETTINGS).silhouette < 0.1

    def test_components_are_at_most_what_the_rows_have(self) -> None:
        rng = np.random.default_rng(0)
        assert principal(rng.standard_normal((16, 100)), 50).shape == (16, 15)
        assert principal(rng.standard_normal((60, 12)), 50).shape[1] <= 12

    def test_a_constant_channel_is_no_error(self) -> None:
        values = np.random.default_rng(0).standard_normal((16, 30))
        values[3] = 7.0
        assert np.isfinite(principal(values, 50)).all()

    def test_too_few_channels_for_the_perplexity(self) -> None:
        with pytest.raises(InputError, match="more than 16 channels"):
            embedding(np.zeros((16, 4)), 30.0, 1)

    def test_too_few_channels_for_the_clusters(self) -> None:
        with pytest.raises(InputError, match="4 channels cannot form 4"):
            clustered([np.zeros((4, 2))] * 2, self.SETTINGS)

    def test_a_control_stands_beside_the_model(self, model: Model, tmp_path: Path) -> None:
        settings = replace(self.SETTINGS, image_noise=(0.0, 0.5))
        table, document = written(latent([model], SAMPLES[:1], settings), tmp_path)
        found = {(row["model"], row["image_noise"], row["space"]) for row in table}
        control = f"{CONTROL} like tiny"
        assert found == {
            (name, noise, space)
            for name, noise in (("tiny", "0"), (control, "0"), ("tiny", "0.5"))
            for space in ("pca", "t-sne")
        }
        assert len(document["summary"]) == 6


class TestCorrelation:
    def test_known_tensors(self) -> None:
        found = related(np.array([1.0, 2.0, 3.0]), np.array([3.0, 5.0, 7.0]))
        assert found["pearson"] == pytest.approx(1.0)
        assert found["cosine"] == pytest.approx(34 / (14 * 83) ** 0.5)
        assert found["ratio"] == pytest.approx((83 / 14) ** 0.5)
        assert np.isnan(related(np.zeros(3), np.ones(3))["pearson"])

    def test_an_untrained_network_stands_beside(self, model: Model, tmp_path: Path) -> None:
        settings = CorrelationSettings(seeds=(7,))
        table, _ = written(correlation([model], SAMPLES, settings), tmp_path)
        assert [row["model"] for row in table] == ["tiny"] * 2 + [f"{UNTRAINED} tiny"] * 2
        assert all(-1 <= float(row["pearson"]) <= 1 for row in table)
        state = torch.random.get_rng_state()
        one, two = (untrained(model, 7).network for _ in range(2))
        assert torch.equal(state, torch.random.get_rng_state())
        assert torch.equal(next(one.parameters()), next(two.parameters()))

    def test_a_model_without_the_module_is_refused(self, model: Model) -> None:
        other = replace(model, network=DiffUMamba(replace(TINY, nrm=None)))
        with pytest.raises(InputError, match="no noise reduction module"):
            correlation([other], SAMPLES)


class TestFigures:
    def figures(self, config: DiffUMambaConfig) -> tuple[DiffUMamba, dict[str, float]]:
        torch.manual_seed(0)
        network = DiffUMamba(config).eval()
        return network, nrm_figures(network, torch.randn(2, 2, *PATCH))

    def test_they_are_what_their_names_say(self) -> None:
        network, found = self.figures(TINY)
        assert found["lambda_1"] == found["lambda_2"] == 0.5
        assert found["lambda_unit_1"] == pytest.approx(0.5**0.5)
        assert found["share_1"] + found["share_2"] == pytest.approx(1.0)
        assert found["gamma"] == 1.0
        assert found["ratio"] > 0
        assert hooks_of(network) == 0

    def test_the_ratio_is_that_of_the_tensors(self) -> None:
        network, found = self.figures(TINY)
        x = torch.randn(2, 2, *PATCH, generator=torch.Generator().manual_seed(1))
        found = nrm_figures(network, x)
        with torch.no_grad():
            features = network.encoder(x)
            m1 = network.mamba_layer(features[-1])
            assert network.nrm is not None
            m2 = m1 - network.nrm(features[:-1], m1)
        assert found["ratio"] == pytest.approx(float(m2.norm() / m1.norm()), rel=1e-4)

    def test_a_share_is_the_size_of_what_a_level_adds(self) -> None:
        network, _ = self.figures(TINY)
        x = torch.randn(2, 2, *PATCH, generator=torch.Generator().manual_seed(1))
        assert network.nrm is not None
        with torch.no_grad():
            network.nrm.lambdas.copy_(torch.tensor([0.2, -0.7]))
            terms = [
                factor * nn.functional.adaptive_avg_pool3d(nn.functional.relu(conv(f)), (4, 5, 5))
                for factor, conv, f in zip(
                    (0.2, -0.7), network.nrm.proj, network.encoder(x), strict=False
                )
            ]
        sizes = [float(term.norm()) for term in terms]
        found = nrm_figures(network, x)
        assert found["share_1"] == pytest.approx(sizes[0] / sum(sizes), rel=1e-4)

    def test_a_common_factor_changes_neither_direction_nor_shares(self) -> None:
        network, before = self.figures(TINY)
        assert network.nrm is not None
        with torch.no_grad():
            network.nrm.lambdas.mul_(0.1)
        torch.manual_seed(0)
        DiffUMamba(TINY)
        after = nrm_figures(network, torch.randn(2, 2, *PATCH))
        assert after["lambda_1"] == pytest.approx(0.05)
        assert after["share_1"] == pytest.approx(before["share_1"], rel=1e-3)
        assert after["lambda_unit_1"] == pytest.approx(before["lambda_unit_1"])

    def test_levels_keep_their_numbers_and_the_gate_is_told(self) -> None:
        nrm = NrmConfig(levels=(2,), gate="scalar")
        network, found = self.figures(replace(TINY, nrm=nrm))
        assert "lambda_1" not in found
        assert found["share_2"] == pytest.approx(1.0)
        assert network.nrm is not None
        with torch.no_grad():
            network.nrm.gate.fill_(-0.25)
        assert nrm_figures(network, torch.randn(1, 2, *PATCH))["gamma"] == 0.25

    @pytest.mark.parametrize("nrm", [None, NrmConfig(second_mamba="none")])
    def test_a_network_without_the_module_has_none(self, nrm: NrmConfig | None) -> None:
        assert self.figures(replace(TINY, nrm=nrm))[1] == {}


class TestLambdas:
    def run(self, folder: Path, text: str) -> Path:
        folder.mkdir()
        (folder / "log.csv").write_text(text)
        (folder / "settings.json").write_text('{"seed": 4}')
        return folder

    def test_the_course_is_read_and_drawn(self, tmp_path: Path) -> None:
        head = "epoch,loss,lambda_1,lambda_unit_1,share_1,gamma,ratio\n"
        run = self.run(tmp_path / "one", head + "0,1,0.5,1,1,1,1.3\n1,0.9,0.4,1,1,0.9,1.1\n")
        table, document = written(lambdas([run]), tmp_path / "out")
        assert [float(row["ratio"]) for row in table] == [1.3, 1.1]
        assert "loss" not in table[0]
        assert document["seeds"] == {"one": 4}
        assert document["summary"]["one"]["lambda_1"] == 0.4

    def test_nnunets_log_is_read_too_with_its_gaps(self, tmp_path: Path) -> None:
        (tmp_path / "fold_0").mkdir()
        (tmp_path / "fold_0" / "epochs.csv").write_text(
            "epoch,loss,lambda_1,ratio\n0,1.0,0.5,nan\n1,0.9,0.4,1.2\n"
        )
        outcome = lambdas([tmp_path / "fold_0"])
        assert [row["lambda_1"] for row in outcome.rows] == [0.5, 0.4]
        table, _ = written(outcome, tmp_path / "out")
        assert table[0]["ratio"] == "nan"

    def test_a_log_without_the_module_is_refused(self, tmp_path: Path) -> None:
        run = self.run(tmp_path / "one", "epoch,loss\n0,1\n")
        with pytest.raises(InputError, match="no figures of a noise reduction"):
            lambdas([run])

    def test_a_folder_without_log_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="the run has no log"):
            lambdas([tmp_path])


class TestField:
    def test_a_single_convolution_sees_its_kernel(self, model: Model) -> None:
        network = nn.Conv3d(2, 2, 3, padding=1)
        other = replace(model, network=network)
        size = influence(other, np.zeros((2, 9, 9, 9), np.float32))
        expected = (network.weight[1] - network.weight[0]).abs().detach().numpy()
        assert size[:, 3:6, 3:6, 3:6] == pytest.approx(expected)
        assert size.sum() == pytest.approx(expected.sum(), rel=1e-5)
        assert network.weight.grad is None

    def test_radii_of_a_known_field(self) -> None:
        field = np.zeros((9, 9, 9))
        field[4, 4, 4], field[4, 4, 7], field[0, 4, 4] = 50.0, 44.0, 6.0
        assert radii_mm(field, (2.0, 1.0, 1.0)) == (0.0, 8.0)
        field[0, 4, 4] = 0.0
        assert radii_mm(field, (2.0, 1.0, 1.0)) == (0.0, 3.0)

    def test_both_inputs_and_every_channel(self, model: Model, tmp_path: Path) -> None:
        table, _ = written(field([model], SAMPLES[:1], FieldSettings(seeds=(1,))), tmp_path)
        assert [(row["input"], row["channel"]) for row in table] == [
            (kind, channel) for kind in ("white noise", "cases") for channel in ("cbct", "r_ct")
        ]
        shares = [float(row["share_of_gradient"]) for row in table]
        assert sum(shares) == pytest.approx(2.0, abs=1e-4)
        assert all(float(r["radius_50_mm"]) <= float(r["radius_95_mm"]) for r in table)


class TestTrainings:
    SAMPLES = tuple(patch_sample(seed=n) for n in range(12))
    TRAIN = TrainSettings(
        config=replace(TINY, channels_in=5, nrm=NrmConfig(slabs=False)),
        samples=SampleSettings(spacing_zyx_mm=(3.0, 3.0, 3.0), patch_zyx=(8, 8, 8)),
        epochs=1,
        steps_per_epoch=1,
        precision="fp32",
        threads=0,
    )

    def parts(self) -> Parts:
        return Parts.by_ct(self.SAMPLES, validation=["ct-4"], test=["ct-5"])

    def test_no_patient_stands_in_two_parts(self) -> None:
        parts = self.parts()
        assert len(parts.fitted) == 8
        with pytest.raises(InputError, match="stands in two"):
            Parts(fitted=parts.fitted, validation=parts.fitted[:1], test=parts.test)

    def test_a_ct_must_be_known_and_in_one_part(self) -> None:
        with pytest.raises(InputError, match="no sample is of 'ct-9'"):
            Parts.by_ct(self.SAMPLES, validation=["ct-9"], test=["ct-5"])
        with pytest.raises(InputError, match="both validate and test"):
            Parts.by_ct(self.SAMPLES, validation=["ct-5"], test=["ct-5"])
        with pytest.raises(InputError, match="no sample for test"):
            Parts.by_ct(self.SAMPLES, validation=["ct-5"], test=[])

    def test_each_variant_turns_one_switch(self) -> None:
        found = variants(TINY)
        assert found[BASE] == TINY
        assert found["no-nrm"].nrm is None
        assert found["without-e1"].nrm == replace(TINY.nrm, levels=(2,))  # type: ignore[type-var]
        assert found["attached"].nrm == replace(TINY.nrm, detach=False)  # type: ignore[type-var]
        assert len({repr(config) for config in found.values()}) == len(found)
        with pytest.raises(InputError, match="nothing to ablate"):
            variants(replace(TINY, nrm=None))

    def test_ablations_are_paired_with_the_network_as_it_is(self, tmp_path: Path) -> None:
        settings = AblateSettings(train=self.TRAIN, seeds=(1, 2), variants=("gate-scalar",))
        table, document = written(ablate(self.parts(), settings, tmp_path), tmp_path)
        assert len(table) == 2 * 2 * 2
        base, gate = document["summary"]
        assert base["trial"] == BASE
        assert base["lead"]["mean"] == 0.0
        assert gate["lead"]["cases"] == 4
        assert (tmp_path / "runs" / "gate-scalar-2" / "log.csv").is_file()

    def test_an_unknown_variant_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no variant is named 'wider'"):
            ablate(self.parts(), AblateSettings(train=self.TRAIN, variants=("wider",)), tmp_path)

    def test_shares_are_nested_by_patient(self, tmp_path: Path) -> None:
        settings = SubsetSettings(
            train={"diff-umamba": self.TRAIN}, seeds=(1,), percentages=(32, 80)
        )
        table, document = written(subset(self.parts(), settings, tmp_path), tmp_path)
        few, many = document["fitted_patients"]["1"].values()
        assert set(few) < set(many)
        wanted = fractions([s.patient for s in self.parts().fitted], seed=1)
        assert tuple(many) == wanted[80]
        assert {row["percent"] for row in table} == {"32", "80"}


class TestProfile:
    def test_counts_and_measures(self, tmp_path: Path) -> None:
        settings = ProfileSettings(sides=(8, 16), measured_sides=())
        table, _ = written(profile({"tiny": ("diff-umamba", TINY)}, settings), tmp_path)
        assert int(table[0]["parameters"]) == sum(p.numel() for p in DiffUMamba(TINY).parameters())
        small, large = (float(row["gflop"]) for row in table)
        assert large == pytest.approx(8 * small, rel=0.01)
        assert table[0]["seconds"] == ""

    def test_sizes_that_a_network_does_not_take_are_left_out(self) -> None:
        settings = ProfileSettings(sides=(2, 8), measured_sides=())
        outcome = profile({"tiny": ("diff-umamba", TINY)}, settings)
        assert [row["side"] for row in outcome.rows] == [8]
        with pytest.raises(InputError, match="no network takes any"):
            profile({"tiny": ("diff-umamba", TINY)}, replace(settings, sides=(2,)))
