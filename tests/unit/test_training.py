from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from contourcast.imaging.errors import FrameMismatchError, GridMismatchError, InputError
from contourcast.imaging.transform import RigidTransform
from contourcast.models.networks import build
from contourcast.models.noise_reduction import NrmConfig
from contourcast.models.predictor import load_network
from contourcast.models.weights import KNOWN_CHANNELS
from contourcast.training import loop
from contourcast.training.augment import Augmentation, augment, centre_crop
from contourcast.training.loop import (
    Epoch,
    Precision,
    TrainingDivergedError,
    TrainSettings,
    best_so_far,
    deep_loss,
    export,
    segmentation_loss,
    train,
    widened,
)
from contourcast.training.samples import (
    ARRAYS,
    Sample,
    SampleSettings,
    load_samples,
    make_sample,
    save_sample,
    split,
)
from support.models import TINY, ball_case, ball_planned

SAMPLES = SampleSettings(
    spacing_zyx_mm=(4.0, 4.0, 4.0), patch_zyx=(12, 12, 12), margin_mm=8.0, slack_zyx=(4, 4, 4)
)
SETTINGS = TrainSettings(
    config=replace(TINY, nrm=NrmConfig(slabs=False)),
    channels=("cbct", "r_ct"),
    samples=SAMPLES,
    epochs=3,
    steps_per_epoch=3,
    learning_rate=1e-2,
    threads=0,
    precision="fp32",
)
STILL = Augmentation(
    rotation_deg=0, scale=1, jitter_mm=0, mirror=0, prior_shift_mm=0, prior_far=0,
    prior_rotation_deg=0, prior_growth_mm=0, prior_wobble_mm=0, prior_dropped=0, unfollowed=0,
    noise=0, gain=0,
    offset=0, shading=0, blur_voxels=0,
)  # fmt: skip


PLANNED = ball_planned(offset_xyz_mm=(7.0, -5.0, 11.0))
OTHER_FRAME = RigidTransform(
    matrix=np.eye(4), source_frame="2.25.77", target_frame=PLANNED.volume.frame_of_reference
)


def sample_of(seed: int) -> Sample:
    cbct, r_ct, truth = ball_case(seed=seed)
    return make_sample(
        cbct,
        r_ct,
        truth,
        planning_ct=PLANNED,
        name=f"patient-{seed}-fraction-01",
        patient=f"patient-{seed}",
        ct=f"ct-{seed // 2}",
        settings=SAMPLES,
    )


@pytest.fixture(scope="module")
def samples() -> tuple[Sample, ...]:
    return tuple(sample_of(seed) for seed in range(6))


class TestSamples:
    def test_a_sample_holds_scan_prior_and_label_of_one_place(
        self, samples: tuple[Sample, ...]
    ) -> None:
        one = samples[0]
        voxel_cc = 0.064
        _, r_ct, truth = ball_case(seed=0)
        assert float(one.label.sum()) * voxel_cc == pytest.approx(truth.volume_cc, rel=0.02)
        prior_cc = float((one.prior_mm > 0).sum()) * voxel_cc
        assert prior_cc == pytest.approx(r_ct.mask().volume_cc, rel=0.1)
        inside, outside = one.scan[one.label > 0.9].mean(), one.scan[one.label < 0.1].mean()
        assert inside - outside > 1.5

    def test_the_distance_is_in_millimetres_far_and_near(self, samples: tuple[Sample, ...]) -> None:
        """The prior is a ball of 14.4 mm: its distance falls by a millimetre a millimetre."""
        distance = samples[0].prior_mm
        centre = np.array(distance.shape) // 2
        line = distance[centre[0], centre[1]]
        deepest = int(np.argmax(line))
        assert float(line[deepest]) == pytest.approx(14.4, abs=2.5)
        falls = np.diff(line[deepest + 1 : deepest + 8])
        assert np.allclose(falls, -4.0, atol=1.7)

    def test_they_survive_their_file(self, samples: tuple[Sample, ...], tmp_path: Path) -> None:
        save_sample(tmp_path, samples[0])
        (read,) = load_samples(tmp_path)
        assert (read.name, read.patient, read.ct) == (
            samples[0].name, samples[0].patient, samples[0].ct,
        )  # fmt: skip
        for name in ARRAYS:
            assert np.allclose(getattr(read, name), getattr(samples[0], name), atol=0.02)

    @pytest.mark.parametrize("keep", [0, 20, 0.5, 0.99])
    def test_a_cut_samples_file_is_refused(
        self, samples: tuple[Sample, ...], tmp_path: Path, keep: float
    ) -> None:
        path = save_sample(tmp_path, samples[0])
        data = path.read_bytes()
        path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
        with pytest.raises(InputError, match=f"the sample is damaged; {path.name}"):
            load_samples(tmp_path)

    def test_a_samples_file_with_other_bytes_is_refused(
        self, samples: tuple[Sample, ...], tmp_path: Path
    ) -> None:
        path = save_sample(tmp_path, samples[0])
        data = bytearray(path.read_bytes())
        data[len(data) // 3 : len(data) // 2] = b"x" * (len(data) // 2 - len(data) // 3)
        path.write_bytes(data)
        with pytest.raises(InputError, match="the sample is damaged"):
            load_samples(tmp_path)

    def test_an_older_samples_file_is_refused(
        self, samples: tuple[Sample, ...], tmp_path: Path
    ) -> None:
        path = save_sample(tmp_path, samples[0])
        with np.load(path) as file:
            kept = {key: file[key] for key in file if not key.startswith("followed")}
        np.savez(path, **kept)
        with pytest.raises(InputError, match="no followed_prior_mm: an earlier version"):
            load_samples(tmp_path)

    def test_no_samples_and_no_prior_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no samples"):
            load_samples(tmp_path)
        cbct, r_ct, truth = ball_case()
        with pytest.raises(InputError, match="prior is empty"):
            make_sample(
                cbct, r_ct.with_values(0 * r_ct.values), truth, planning_ct=PLANNED,
                name="a", patient="a", ct="a", settings=SAMPLES,
            )  # fmt: skip

    def test_a_label_on_another_grid_is_refused(self) -> None:
        cbct, r_ct, truth = ball_case()
        part = replace(
            truth, values=truth.values[1:], grid=truth.grid.crop((1, 0, 0), (36, 50, 54))
        )
        with pytest.raises(GridMismatchError):
            make_sample(
                cbct, r_ct, part, planning_ct=PLANNED,
                name="a", patient="a", ct="a", settings=SAMPLES,
            )  # fmt: skip
        elsewhere = replace(PLANNED, moving_from_fixed=OTHER_FRAME)
        with pytest.raises(FrameMismatchError):
            make_sample(
                cbct, r_ct, truth, planning_ct=elsewhere,
                name="a", patient="a", ct="a", settings=SAMPLES,
            )  # fmt: skip

    def test_the_split_is_by_ct_and_never_shares_a_patient(
        self, samples: tuple[Sample, ...]
    ) -> None:
        fit, aside = split(samples, validation_cts=["ct-2"])
        assert {s.ct for s in fit} == {"ct-0", "ct-1"}
        assert {s.ct for s in aside} == {"ct-2"}
        with pytest.raises(InputError, match="both sides"):
            split((*samples, replace(samples[0], ct="ct-2")), validation_cts=["ct-2"])
        with pytest.raises(InputError, match="ct-0, ct-1, ct-2"):
            split(samples, validation_cts=["ct-9"])


class TestAugmentation:
    def crop(self, sample: Sample, settings: Augmentation, seed: int = 0) -> tuple[np.ndarray, ...]:
        return augment(
            sample,
            patch_zyx=SAMPLES.patch_zyx,
            spacing_zyx_mm=SAMPLES.spacing_zyx_mm,
            settings=settings,
            generator=np.random.default_rng(seed),
        )

    def test_without_any_it_is_the_middle_of_the_sample(self, samples: tuple[Sample, ...]) -> None:
        for a, b in zip(
            self.crop(samples[0], STILL),
            centre_crop(samples[0], patch_zyx=SAMPLES.patch_zyx),
            strict=True,
        ):
            # a mean over half a voxel where the sample's sides are of the other parity
            assert float(np.abs(a - b).mean()) < 0.12

    def test_scan_and_label_move_together(self, samples: tuple[Sample, ...]) -> None:
        for seed in range(5):
            channels, label = self.crop(
                samples[0],
                replace(STILL, rotation_deg=20, scale=1.2, jitter_mm=4, mirror=0.5),
                seed,
            )
            inside, outside = channels[0][label > 0.9], channels[0][label < 0.1]
            assert inside.mean() - outside.mean() > 1.5

    def test_the_planning_ct_goes_where_the_prior_goes(self, samples: tuple[Sample, ...]) -> None:
        """Its ball fills the prior, however the prior was displaced."""
        for seed in range(5):
            channels, _ = self.crop(
                samples[0],
                replace(STILL, prior_shift_mm=6, prior_rotation_deg=15, rotation_deg=20, scale=1.2),
                seed,
            )
            inside, outside = channels[2][channels[1] > 0.9], channels[2][channels[1] < 0.01]
            assert inside.mean() - outside.mean() > 1.2

    def test_what_follows_the_tissue_goes_where_the_scan_goes(
        self, samples: tuple[Sample, ...]
    ) -> None:
        """However wrong the prior was carried, the followed one lies on today's ball."""
        for seed in range(5):
            channels, label = self.crop(
                samples[0],
                replace(
                    STILL, prior_shift_mm=6, prior_rotation_deg=15, rotation_deg=20, mirror=0.5
                ),
                seed,
            )
            followed, truth = channels[3] > 0.5, label > 0.5
            assert 2 * (followed & truth).sum() / (followed.sum() + truth.sum()) > 0.75
            assert channels[4][followed].mean() - channels[4][channels[3] < 0.01].mean() > 1.2

    def test_what_did_not_follow_is_what_was_carried(self, samples: tuple[Sample, ...]) -> None:
        settings = replace(STILL, unfollowed=1.0, prior_shift_mm=6, prior_growth_mm=3)
        channels, _ = self.crop(samples[0], settings, 3)
        assert np.array_equal(channels[3], channels[1])
        assert np.array_equal(channels[4], channels[2])

    def test_intensities_never_touch_the_prior(self, samples: tuple[Sample, ...]) -> None:
        loud = replace(STILL, noise=2, gain=0.5, offset=2, shading=0.5, blur_voxels=3)
        quiet, noisy = self.crop(samples[0], STILL)[0], self.crop(samples[0], loud)[0]
        assert np.array_equal(quiet[1:], noisy[1:])
        assert not np.allclose(quiet[0], noisy[0])

    def test_a_shifted_prior_stays_in_the_middle_and_the_rest_moves(
        self, samples: tuple[Sample, ...]
    ) -> None:
        moved, label = self.crop(samples[0], replace(STILL, prior_shift_mm=5.0), 1)
        still, label_still = self.crop(samples[0], STILL, 1)
        assert np.allclose(moved[1], still[1], atol=0.05)
        assert not np.allclose(label, label_still, atol=0.3)

    def test_growth_and_dropping(self, samples: tuple[Sample, ...]) -> None:
        volumes = {
            float(self.crop(samples[0], replace(STILL, prior_growth_mm=4), seed)[0][1].sum())
            for seed in range(4)
        }
        assert max(volumes) > 1.2 * min(volumes)
        dropped = self.crop(samples[0], replace(STILL, prior_dropped=1.0))[0]
        assert not dropped[[1, 3]].any()
        assert dropped[[0, 2, 4]].any(axis=(1, 2, 3)).all()


class TestChannels:
    def test_a_network_is_shown_what_was_asked_and_nothing_else(
        self, samples: tuple[Sample, ...]
    ) -> None:
        settings = replace(
            SETTINGS, channels=("cbct", "planning_ct"), augmentation=STILL, batch=len(samples)
        )
        x, _ = loop._batch(samples, settings, np.random.default_rng(0))
        assert x.shape[1] == 2
        drawn = [np.stack((s.scan, s.planning)) for s in samples]
        assert min(float(np.abs(np.mean(x[0, 1].numpy()) - d[1].mean())) for d in drawn) < 0.5

    @pytest.mark.parametrize("channels", [("r_ct", "cbct"), ("cbct", "mri"), ("cbct",)])
    def test_others_are_refused(self, channels: tuple[str, ...]) -> None:
        with pytest.raises(InputError, match="shown"):
            replace(SETTINGS, channels=channels)

    @pytest.mark.parametrize("more", [KNOWN_CHANNELS[2:3], KNOWN_CHANNELS[3:], KNOWN_CHANNELS[2:]])
    def test_a_model_with_the_planning_ct_draws_with_it_and_not_without(
        self, samples: tuple[Sample, ...], tmp_path: Path, more: tuple[str, ...]
    ) -> None:
        settings = replace(
            SETTINGS,
            config=replace(SETTINGS.config, channels_in=2 + len(more)),
            channels=("cbct", "r_ct", *more),
            epochs=1,
        )
        export(train(samples[:4], samples[4:], settings, tmp_path), tmp_path / "m", training={})
        network = load_network(tmp_path / "m")
        cbct, r_ct, _ = ball_case(seed=50)
        with_it = network.predict(cbct, r_ct, PLANNED).values
        emptied = replace(PLANNED, volume=PLANNED.volume.with_values(0 * PLANNED.volume.values))
        assert not np.array_equal(with_it, network.predict(cbct, r_ct, emptied).values)
        with pytest.raises(InputError, match="looks at the planning CT"):
            network.predict(cbct, r_ct)
        elsewhere = replace(PLANNED, moving_from_fixed=OTHER_FRAME)
        with pytest.raises(FrameMismatchError):
            network.predict(cbct, r_ct, elsewhere)


class TestStart:
    def wide(self, *channels: str) -> TrainSettings:
        config = replace(SETTINGS.config, channels_in=len(channels))
        return replace(SETTINGS, config=config, channels=channels, start="some", epochs=1)

    def test_new_channels_begin_with_nothing_to_say(self, samples: tuple[Sample, ...]) -> None:
        before = build("diff-umamba", SETTINGS.config).eval()
        settings = self.wide(*KNOWN_CHANNELS[:4])
        after = build("diff-umamba", settings.config).eval()
        weights = widened(before.state_dict(), shown=KNOWN_CHANNELS[:2], settings=settings)
        after.load_state_dict(weights)
        x = torch.randn(1, 4, *SAMPLES.patch_zyx)
        with torch.no_grad():
            assert torch.allclose(before(x[:, :2]), after(x), atol=1e-5)

    def test_a_run_begins_with_the_weights_that_it_is_given(
        self, samples: tuple[Sample, ...], tmp_path: Path
    ) -> None:
        weights = build("diff-umamba", SETTINGS.config).state_dict()
        still = replace(self.wide("cbct", "r_ct"), steps_per_epoch=1, learning_rate=0.0)
        trained = train(samples[:1], samples[1:2], still, tmp_path, start=weights)
        for key, value in trained.network.state_dict().items():
            assert torch.equal(value, weights[key])
        with pytest.raises(InputError, match="other settings"):
            train(samples[:1], samples[1:2], replace(still, start=""), tmp_path)

    def test_a_model_that_does_not_fit_is_refused(self) -> None:
        state = dict(build("diff-umamba", SETTINGS.config).state_dict())
        with pytest.raises(InputError, match="cannot begin with a model that is shown r_ct"):
            widened(state, shown=("r_ct",), settings=self.wide("cbct", "r_ct"))
        key = next(iter(state))
        less = {k: v for k, v in state.items() if k != key}
        with pytest.raises(InputError, match=f"has no {key}"):
            widened(less, shown=("cbct", "r_ct"), settings=self.wide("cbct", "r_ct"))
        wider = replace(TINY, features=(4, 8, 20))
        settings = replace(SETTINGS, config=replace(wider, nrm=NrmConfig(slabs=False)))
        with pytest.raises(InputError, match="needed is"):
            widened(state, shown=("cbct", "r_ct"), settings=settings)


class TestLoss:
    def test_certain_and_right_is_nothing_and_certain_and_wrong_is_much(self) -> None:
        label = torch.zeros(1, 4, 4, 4)
        label[:, 1:3, 1:3, 1:3] = 1
        logits = torch.stack((20 * (1 - 2 * label), -20 * (1 - 2 * label)), 1)
        assert float(segmentation_loss(logits, label)) == pytest.approx(0, abs=1e-4)
        assert float(segmentation_loss(-logits, label)) > 20

    def test_levels_weigh_half_of_the_finer_one_and_the_coarsest_nothing(self) -> None:
        label = torch.rand(1, 8, 8, 8)
        levels = [torch.randn(1, 2, n, n, n) for n in (8, 4, 2)]
        pooled = torch.nn.functional.avg_pool3d(label[:, None], 2)[:, 0]
        wanted = 2 / 3 * segmentation_loss(levels[0], label) + 1 / 3 * segmentation_loss(
            levels[1], pooled
        )
        assert torch.allclose(deep_loss(levels, label), wanted)


class TestRun:
    def test_it_learns_and_its_model_loads_and_draws(
        self, samples: tuple[Sample, ...], tmp_path: Path
    ) -> None:
        told: list[Epoch] = []
        fit, aside = split(samples, validation_cts=["ct-2"])
        trained = train(
            fit, aside, replace(SETTINGS, epochs=4, steps_per_epoch=15), tmp_path,
            on_epoch=told.append,
        )  # fmt: skip
        assert [e.epoch for e in told] == [0, 1, 2, 3]
        assert told[-1].loss < 0.5 * told[0].loss
        assert trained.best.validation_dice > 0.75
        with (tmp_path / "log.csv").open() as file:
            assert len(list(csv.DictReader(file))) == 4
        assert "<svg" in (tmp_path / "curve.svg").read_text()
        export(trained, tmp_path / "model", training={"data": "balls"})
        network = load_network(tmp_path / "model")
        assert network.card.training["validation_dice"] == round(trained.best.validation_dice, 4)
        cbct, r_ct, truth = ball_case(seed=50)
        drawn = network.predict(cbct, r_ct).mask().values
        dice = 2 * (drawn & truth.values).sum() / (drawn.sum() + truth.values.sum())
        prior = r_ct.mask().values
        assert dice > 2 * (prior & truth.values).sum() / (prior.sum() + truth.values.sum())

    def test_a_broken_run_goes_on_to_the_very_same_weights(
        self, samples: tuple[Sample, ...], tmp_path: Path
    ) -> None:
        fit, aside = samples[:4], samples[4:]
        whole = train(fit, aside, SETTINGS, tmp_path / "whole")

        class PowerCutError(Exception):
            pass

        def cut(epoch: Epoch) -> None:
            if epoch.epoch == 1:
                raise PowerCutError

        with pytest.raises(PowerCutError):
            train(fit, aside, SETTINGS, tmp_path / "broken", on_epoch=cut)
        early = best_so_far(tmp_path / "broken", SETTINGS)
        assert [e.epoch for e in early.log] == [0, 1]
        resumed = train(fit, aside, SETTINGS, tmp_path / "broken")
        assert [replace(e, seconds=0) for e in resumed.log] == [
            replace(e, seconds=0) for e in whole.log
        ]
        for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_a_run_may_be_ended_sooner_and_its_learning_rate_falls_by_then(
        self, samples: tuple[Sample, ...], tmp_path: Path
    ) -> None:
        long = replace(SETTINGS, epochs=9, steps_per_epoch=1)

        def stop(epoch: Epoch) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(samples[:1], samples[1:2], long, tmp_path, on_epoch=stop)
        log = train(samples[:1], samples[1:2], replace(long, epochs=3), tmp_path).log
        rates = [e.learning_rate / SETTINGS.learning_rate for e in log]
        assert rates == pytest.approx([1.0, (2 / 3) ** 0.9, (1 / 3) ** 0.9])

    def test_of_epochs_that_are_as_good_the_first_is_kept_and_named(
        self, samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scores = iter((0.2, 0.5, 0.5, 0.4))
        averages = []

        def validated(average: torch.nn.Module, *_: object) -> float:
            averages.append({key: value.clone() for key, value in average.state_dict().items()})
            return next(scores)

        monkeypatch.setattr(loop, "validate", validated)
        quick = replace(SETTINGS, epochs=4, steps_per_epoch=1)
        trained = train(samples[:1], samples[1:2], quick, tmp_path)
        assert trained.best.epoch == 1
        kept = trained.network.state_dict()
        assert all(torch.equal(kept[key], value) for key, value in averages[1].items())

    def test_other_settings_do_not_go_on(self, samples: tuple[Sample, ...], tmp_path: Path) -> None:
        quick = replace(SETTINGS, epochs=1, steps_per_epoch=1)
        train(samples[:1], samples[1:2], quick, tmp_path)
        with pytest.raises(InputError, match="other settings"):
            train(samples[:1], samples[1:2], replace(quick, seed=2), tmp_path)
        with pytest.raises(InputError, match="no epoch"):
            best_so_far(tmp_path / "empty", quick)

    def test_other_samples_do_not_go_on(self, samples: tuple[Sample, ...], tmp_path: Path) -> None:
        """Or what a run learned from could be what it is measured on."""
        quick = replace(SETTINGS, epochs=1, steps_per_epoch=1)
        train(samples[:1], samples[1:2], quick, tmp_path / "run")
        with pytest.raises(InputError, match=r"for training; run/settings\.json"):
            train(samples[2:3], samples[1:2], quick, tmp_path / "run")
        with pytest.raises(InputError, match="other samples for validation"):
            train(samples[:1], samples[2:3], quick, tmp_path / "run")
        train(samples[:1], samples[1:2], quick, tmp_path / "run")

    def test_the_best_network_lies_where_the_settings_say(
        self, samples: tuple[Sample, ...], tmp_path: Path
    ) -> None:
        quick = replace(SETTINGS, epochs=1, steps_per_epoch=1)
        train(samples[:1], samples[1:2], quick, tmp_path)
        found = best_so_far(tmp_path, replace(quick, device="meta"))
        assert {p.device.type for p in found.network.parameters()} == {"meta"}

    def test_numbers_that_are_not_finite_are_skipped_and_ten_in_a_row_end_the_run(
        self, samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = iter(range(1000))
        real = loop.deep_loss

        def sometimes(logits: list[torch.Tensor], label: torch.Tensor) -> torch.Tensor:
            return real(logits, label) * (torch.nan if next(calls) % 2 else 1.0)

        monkeypatch.setattr(loop, "deep_loss", sometimes)
        quick = replace(SETTINGS, epochs=1, steps_per_epoch=6)
        trained = train(samples[:1], samples[1:2], quick, tmp_path / "some")
        assert trained.log[0].skipped_steps == 3
        assert all(torch.isfinite(p).all() for p in trained.network.parameters())
        monkeypatch.setattr(loop, "deep_loss", lambda logits, label: logits[0].sum() * torch.nan)
        with pytest.raises(TrainingDivergedError, match="10 steps in a row"):
            train(samples[:1], samples[1:2], replace(quick, steps_per_epoch=12), tmp_path / "all")

    @pytest.mark.parametrize(
        ("asked", "made_for_it", "computed"),
        [
            ("auto", True, torch.bfloat16),
            ("auto", False, torch.float32),
            ("bf16", False, torch.bfloat16),
            ("fp32", True, torch.float32),
        ],
    )
    def test_bfloat16_is_for_processors_that_are_made_for_it(
        self,
        asked: Precision,
        made_for_it: bool,
        computed: torch.dtype,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: made_for_it)
        with loop.autocast("cpu", asked):
            assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == computed

    def test_a_card_says_in_what_its_network_was_computed(
        self, samples: tuple[Sample, ...], tmp_path: Path
    ) -> None:
        brief = replace(SETTINGS, precision="auto", epochs=1, steps_per_epoch=1)
        card = export(
            train(samples[:1], samples[1:2], brief, tmp_path), tmp_path / "m", training={}
        )
        assert card.training["settings"]["precision"] == loop.precision_on("cpu", "auto")

    def test_the_recurrence_is_not_decayed_unless_asked(self) -> None:
        network = build("diff-umamba", replace(TINY, nrm=NrmConfig(gate="scalar")))
        names = {id(p): n for n, p in network.named_parameters()}
        for asked in (False, True):
            groups = loop._optimiser(network, replace(SETTINGS, decay_ssm=asked)).param_groups
            free = {names[id(p)] for g in groups if not g["weight_decay"] for p in g["params"]}
            wanted = set() if asked else {
                "mamba_layer.mamba.A_log", "mamba_layer.mamba.D", "mamba_layer.mamba.dt_proj.bias",
                "nrm.mamba.mamba.A_log", "nrm.mamba.mamba.D", "nrm.mamba.mamba.dt_proj.bias",
                "nrm.lambdas", "nrm.gate",
            }  # fmt: skip
            assert free == wanted
