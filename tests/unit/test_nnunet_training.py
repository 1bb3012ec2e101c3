"""Plans, training, a kill in its midst, resumption, export, prediction: on toy data."""

from __future__ import annotations

import json
import os
import pydoc
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

pytest.importorskip("nnunetv2", reason="needs nnU-Net: pip install 'contourcast[train]'")

from contourcast.imaging.errors import InputError, WeightsError
from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import dice
from contourcast.imaging.volume import Mask, Probability, Volume
from contourcast.models.foreign import import_folder
from contourcast.models.foreign_child import read_checkpoint
from contourcast.models.networks import NETWORKS, entry
from contourcast.models.plans import class_name, config_of
from contourcast.models.predictor import Predictor, load_network
from contourcast.models.weights import load_model
from contourcast.training.loop import MAX_BAD_STEPS, TrainingDivergedError
from contourcast.training.nnunet.export import export
from contourcast.training.nnunet.plan import PlanSettings, keep_patients_apart, plan, plans_for
from contourcast.training.nnunet.progress import CURVE_FILE, FIGURES_FILE, EpochRow, read_rows
from contourcast.training.nnunet.recipe import PLANS_KEY, recipe_of
from contourcast.training.nnunet.run import FINAL, LATEST, RunSettings, fold_folder, run
from contourcast.training.nnunet.workplace import Workplace
from support.models import FRAME, ball
from support.nnunet import NAME, NUMBER, toy_dataset

# nnU-Net starts several processes that each import it: seconds alone, minutes on a busy machine.
pytestmark = pytest.mark.timeout(1800)
EPOCHS = 8
PLAN = PlanSettings(patch_zyx=(16, 16, 16), stages=3, width=4, workers=1, preset="house")
RUN = RunSettings(epochs=EPOCHS, iterations=3, validation_iterations=1, threads=1)
CHILD = """
import sys
from pathlib import Path
from contourcast.training.nnunet.run import RunSettings, run
from contourcast.training.nnunet.workplace import Workplace
settings = RunSettings(epochs={epochs}, iterations=3, validation_iterations=1, threads=1)
told = lambda row, epochs: print("epoch", row.epoch, file=sys.stderr, flush=True)
run(Workplace.at(Path(sys.argv[1])), {number}, settings, on_epoch=told)
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A toy data set, fingerprinted, planned and preprocessed by nnU-Net itself."""
    workplace = Workplace.at(tmp_path_factory.mktemp("nnunet"))
    toy_dataset(workplace.raw)
    plan(workplace, NUMBER, PLAN)
    return workplace


@pytest.fixture(scope="module")
def trained(planned: Workplace) -> tuple[Path, list[EpochRow]]:
    return run(planned, NUMBER, RUN)


@pytest.fixture(scope="module")
def model(planned: Workplace, trained: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    export(planned, NUMBER, RUN, out)
    return out


def elsewhere(workplace: Workplace, folder: Path) -> Workplace:
    """The same data, with results of its own."""
    return Workplace(raw=workplace.raw, preprocessed=workplace.preprocessed, results=folder)


def plans_of(workplace: Workplace, name: str = "nnUNetPlans_diff-umamba") -> dict[str, Any]:
    path = workplace.preprocessed / NAME / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def scene() -> tuple[Volume, Probability, Mask]:
    """A scan like those of the toy data, on a grid of its own."""
    grid = Grid.even(
        shape_zyx=(30, 32, 34), spacing_xyz_mm=(2.5,) * 3, origin_xyz_mm=(-41.0, -39.0, -36.0)
    )
    depth, _ = ball(grid, center_xyz_mm=(3.0, -2.0, 1.0), radius_mm=14.0)
    _, prior = ball(grid, center_xyz_mm=(0.0, 0.0, 0.0), radius_mm=15.0)
    noise = np.random.default_rng(5).normal(0, 60, depth.shape)
    place: dict[str, Any] = {"grid": grid, "frame_of_reference": FRAME}
    return (
        Volume(values=-700 + 720 / (1 + np.exp(-depth / 1.5)) + noise, **place),
        Probability(values=prior, name="GTV", **place),
        Mask(values=depth > 0, name="GTV", **place),
    )


class TestPlan:
    def test_the_plans_name_our_class_and_hold_the_recipe(self, planned: Workplace) -> None:
        plans = plans_of(planned)
        chosen = plans["configurations"]["3d_fullres"]
        assert chosen["architecture"]["network_class_name"] == "contourcast.DiffUMamba"
        assert chosen["architecture"]["arch_kwargs"]["nrm"]["gate"] == "scalar"
        assert chosen["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 8, 16]
        assert chosen["patch_size"] == [16, 16, 16]
        assert chosen["normalization_schemes"] == ["CTNormalization", "NoNormalization"]
        recipe = recipe_of(plans)
        assert (recipe.preset, recipe.decay_ssm, recipe.epochs) == ("house", False, 1000)
        assert recipe.prior is not None

    def test_the_paper_decays_all_and_trusts_the_prior(self, planned: Workplace) -> None:
        stock = plans_of(planned, "nnUNetPlans")
        plans = plans_for(stock, PlanSettings(stages=2), {"channel_names": "ab", "labels": "ab"})
        recipe = recipe_of(plans)
        assert (recipe.decay_ssm, recipe.prior, recipe.precision) == (True, None, "fp16")
        arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        assert arguments["features_per_stage"] == [32, 64]
        assert arguments["nrm"]["gate"] == "none"

    def test_nnunet_builds_from_plans_and_leaves_them_as_they_are(self, planned: Workplace) -> None:
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        architecture = plans_of(planned)["configurations"]["3d_fullres"]["architecture"]
        before = json.dumps(architecture)
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            2,
            2,
            deep_supervision=True,
        )
        assert json.dumps(architecture) == before
        assert len(network(torch.zeros(1, 2, 16, 16, 16))) == 2

    @pytest.mark.parametrize(
        "network",
        [n for n, e in NETWORKS.items() if e.task == "segmentation" and "monai" not in e.needs],
    )
    def test_every_network_can_be_planned(self, planned: Workplace, network: str) -> None:
        """(Those of MONAI too; their import costs seconds.)"""
        axes = entry(network).config_kind().axes
        configuration: Literal["2d", "3d_fullres"] = "2d" if axes == 2 else "3d_fullres"
        settings = PlanSettings(
            network=network,
            configuration=configuration,
            patch_zyx=(64,) * axes,
        )
        channels = {"channel_names": "ab", "labels": "ab"}
        chosen = plans_for(plans_of(planned, "nnUNetPlans"), settings, channels)
        architecture = chosen["configurations"][configuration]["architecture"]
        config = config_of(network, architecture["arch_kwargs"], input_channels=2, num_classes=2)
        config.require_patch((64,) * axes)
        assert architecture["network_class_name"] == class_name(network)

    def test_the_folds_keep_patients_apart(self, planned: Workplace) -> None:
        folds = json.loads((planned.preprocessed / NAME / "splits_final.json").read_text())
        assert folds
        for fold in folds:
            assert not set(fold["train"]) & set(fold["val"])

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"switches": {"nrm": {"soft": 1}}}, "nrm.soft"),
            ({"switches": {"widht": 3}}, "no argument 'widht'"),
            ({"stages": 9}, "9 stages"),
            ({"configuration": "2d"}, "has 3 axes"),
            ({"network": "segmamba", "stages": 3}, "stages of segmamba are its own"),
            ({"patch_zyx": (16, 16)}, "patch of 3 sizes"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, planned: Workplace, change: dict[str, Any], said: str
    ) -> None:
        stock = plans_of(planned, "nnUNetPlans")
        with pytest.raises(InputError, match=said):
            plans_for(stock, PlanSettings(**change), {"channel_names": "ab", "labels": "ab"})

    def test_a_patient_on_both_sides_is_named_before_any_work(
        self, planned: Workplace, tmp_path: Path
    ) -> None:
        workplace = Workplace.at(tmp_path)
        raw = workplace.raw / NAME
        raw.parent.mkdir()
        shutil.copytree(planned.raw / NAME, raw)
        patients = json.loads((raw / "patients.json").read_text())
        patients |= {"toy-0": "same", "toy-1": "same", "toy-2": "same"}
        (raw / "patients.json").write_text(json.dumps(patients))
        with pytest.raises(InputError, match="patient same stands in two parts"):
            plan(workplace, NUMBER, PLAN)
        assert not (workplace.preprocessed / NAME / "dataset_fingerprint.json").exists()

    def test_a_data_set_that_says_nothing_of_patients_needs_your_word(
        self, planned: Workplace, tmp_path: Path
    ) -> None:
        raw, ready = tmp_path / "raw", tmp_path / "ready"
        shutil.copytree(planned.raw / NAME, raw)
        ready.mkdir()
        (raw / "patients.json").unlink()
        with pytest.raises(InputError, match="which case is of which patient"):
            keep_patients_apart(raw, ready, PlanSettings())
        keep_patients_apart(raw, ready, PlanSettings(each_case_a_patient=True))
        assert json.loads((ready / "patients.json").read_text())["toy-3"] == "toy-3"

    def test_a_data_set_that_was_prepared_anew_is_not_taken_for_the_old_one(
        self, planned: Workplace, tmp_path: Path
    ) -> None:
        workplace = Workplace(
            raw=tmp_path, preprocessed=planned.preprocessed, results=planned.results
        )
        toy_dataset(tmp_path, seed=1)
        with pytest.raises(InputError, match="another one than nnU-Net has preprocessed"):
            plan(workplace, NUMBER, PLAN)

    def test_a_network_that_segments_nothing_is_refused_at_once(self, planned: Workplace) -> None:
        with pytest.raises(InputError, match="is for classification"):
            plan(planned, NUMBER, PlanSettings(network="nnmamba-classifier"))

    def test_no_such_data_set(self, planned: Workplace) -> None:
        with pytest.raises(InputError, match="0 data sets of number 902"):
            plan(planned, 902, PLAN)


class TestRun:
    def test_it_learns_and_tells(self, trained: tuple[Path, list[EpochRow]]) -> None:
        folder, rows = trained
        assert [row.epoch for row in rows] == list(range(EPOCHS))
        assert rows[-1].loss < rows[0].loss - 0.2
        assert rows[-1].learning_rate < rows[0].learning_rate
        assert {"gamma", "ratio"} <= set(rows[0].figures)
        assert read_rows(folder) == rows
        for name in (CURVE_FILE, FIGURES_FILE):
            assert (folder / name).read_text().startswith("<?xml")

    def test_killed_and_resumed_it_ends_as_an_unbroken_run(
        self, planned: Workplace, trained: tuple[Path, list[EpochRow]], tmp_path: Path
    ) -> None:
        """Same data, same seed: every loss of the resumed run is that of the unbroken one."""
        for name in ("nnUNet_raw", "nnUNet_preprocessed"):
            (tmp_path / name).symlink_to(planned.raw.parent / name)
        workplace = Workplace.at(tmp_path)
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(epochs=EPOCHS, number=NUMBER), str(tmp_path)],
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 2"):
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        folder = fold_folder(workplace, NUMBER, RUN)
        assert (folder / LATEST).exists()
        assert not (folder / FINAL).exists()

        told: list[int] = []
        _, rows = run(workplace, NUMBER, RUN, on_epoch=lambda row, epochs: told.append(row.epoch))
        assert told[0] in (2, 3)
        assert told[-1] == EPOCHS - 1
        unbroken = trained[1]
        assert [row.epoch for row in rows] == [row.epoch for row in unbroken]
        for again, once in zip(rows, unbroken, strict=True):
            assert again.loss == pytest.approx(once.loss, abs=1e-6)
        ended = read_checkpoint(folder / FINAL)["network_weights"]
        for key, value in read_checkpoint(trained[0] / FINAL)["network_weights"].items():
            assert torch.allclose(ended[key], value, atol=1e-6), key

    def test_a_finished_run_is_not_run_again(
        self, planned: Workplace, trained: tuple[Path, list[EpochRow]]
    ) -> None:
        told: list[int] = []
        _, rows = run(planned, NUMBER, RUN, on_epoch=lambda row, epochs: told.append(row.epoch))
        assert rows == trained[1]
        assert not told

    def test_other_settings_do_not_mix_into_a_run(
        self, planned: Workplace, trained: object
    ) -> None:
        with pytest.raises(InputError, match="other settings"):
            run(planned, NUMBER, RunSettings(epochs=3))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"plans": "nnUNetPlans_none"}, "no plans nnUNetPlans_none"),
            ({"configuration": "3d_lowres"}, "have no 3d_lowres"),
            ({"epochs": 0}, "at least one epoch"),
            ({"learning_rate": -1.0}, "learning rate"),
        ],
    )
    def test_what_cannot_be_run_is_named(
        self, planned: Workplace, change: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(InputError, match=said):
            run(planned, NUMBER, RunSettings(**change))

    def test_a_fold_that_is_not_there_is_not_made_up(
        self, planned: Workplace, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match="no fold 7"):
            run(elsewhere(planned, tmp_path), NUMBER, RunSettings(fold=7, epochs=1, iterations=1))

    def test_the_environment_is_as_it_was(self, trained: object) -> None:
        assert not {"nnUNet_raw", "nnUNet_results", "nnUNet_n_proc_DA"} & set(os.environ)


def toy_trainer(planned: Workplace, **changes: Any) -> Any:
    """The trainer of the toy plans, ready for a step."""
    from contourcast.training.nnunet.trainer import ContourcastTrainer

    plans = plans_of(planned)
    plans[PLANS_KEY] |= changes
    trainer = ContourcastTrainer(
        plans=plans | {"continue_training": False},
        configuration="3d_fullres",
        fold=0,
        dataset_json=json.loads((planned.raw / NAME / "dataset.json").read_text()),
        device=torch.device("cpu"),
    )
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    return trainer


def toy_batch() -> dict[str, Any]:
    target = [torch.zeros(2, 1, n, n, n, dtype=torch.int16) for n in (16, 8)]
    return {"data": torch.randn(2, 2, 16, 16, 16), "target": target}


class TestTrainer:
    def test_a_loss_that_is_no_number_is_skipped_and_ten_end_the_run(
        self, planned: Workplace, tmp_path: Path
    ) -> None:
        with elsewhere(planned, tmp_path).at_work():
            trainer = toy_trainer(planned)
            before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
            bad = toy_batch()
            bad["data"][0, 0, 0, 0, 0] = torch.nan
            for _ in range(MAX_BAD_STEPS - 1):
                assert np.isnan(trainer.train_step(bad)["loss"])
            assert trainer.skipped == MAX_BAD_STEPS - 1
            after = trainer.network.state_dict()
            assert all(torch.equal(after[key], value) for key, value in before.items())
            assert np.isfinite(trainer.train_step(toy_batch())["loss"])
            assert trainer.bad_in_a_row == 0
            for _ in range(MAX_BAD_STEPS - 1):
                trainer.train_step(bad)
            with pytest.raises(TrainingDivergedError, match=r"largest activations: .*stem"):
                trainer.train_step(bad)

    @pytest.mark.parametrize(("decay_ssm", "spared"), [(False, 8), (True, 0)])
    def test_the_recurrence_decays_or_not(
        self, planned: Workplace, tmp_path: Path, decay_ssm: bool, spared: int
    ) -> None:
        """Two Mamba layers with A, D and Δ bias each; λ and γ."""
        with elsewhere(planned, tmp_path).at_work():
            trainer = toy_trainer(planned, decay_ssm=decay_ssm)
        groups = trainer.optimizer.param_groups
        free = [p for group in groups if group["weight_decay"] == 0 for p in group["params"]]
        assert len(free) == spared
        assert sum(len(group["params"]) for group in groups) == len(
            list(trainer.network.parameters())
        )

    def test_a_checkpoint_is_whole_or_not_there(
        self, planned: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with elsewhere(planned, tmp_path).at_work():
            trainer = toy_trainer(planned)
            path = tmp_path / "checkpoint_latest.pth"
            trainer.save_checkpoint(str(path))
            whole = path.read_bytes()

            def cut_short(content: object, file: str) -> None:
                Path(file).write_bytes(b"half")
                raise KeyboardInterrupt

            monkeypatch.setattr(torch, "save", cut_short)
            with pytest.raises(KeyboardInterrupt):
                trainer.save_checkpoint(str(path))
        assert path.read_bytes() == whole

    def test_a_checkpoint_with_a_program_is_not_resumed(
        self, planned: Workplace, tmp_path: Path
    ) -> None:
        mark = tmp_path / "ran"
        torch.save({"network_weights": {}, "more": Bomb(mark)}, tmp_path / "c.pth")
        with elsewhere(planned, tmp_path).at_work():
            trainer = toy_trainer(planned)
            with pytest.raises(WeightsError, match="holds a program"):
                trainer.load_checkpoint(str(tmp_path / "c.pth"))
        assert not mark.exists()


class Bomb:
    """A pickle that writes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.mark, "w"))


class TestOneHead:
    def test_a_network_without_coarser_heads_is_trained_and_exported(
        self, planned: Workplace, tmp_path: Path
    ) -> None:
        switches = {"features": [2, 2, 4, 4], "hidden": 4, "depths": [1, 1, 1, 1]}
        settings = PlanSettings(
            network="segmamba", patch_zyx=(16, 16, 32), batch=1, switches=switches
        )
        workplace = elsewhere(planned, tmp_path)
        plan(workplace, NUMBER, settings)
        running = RunSettings(
            network="segmamba", epochs=1, iterations=1, validation_iterations=1, threads=1
        )
        _, rows = run(workplace, NUMBER, running)
        assert np.isfinite(rows[0].loss)
        card = export(workplace, NUMBER, running, tmp_path / "model")
        assert card.network == "segmamba"


class TestExport:
    def test_the_model_holds_what_was_trained(
        self, model: Path, trained: tuple[Path, list[EpochRow]]
    ) -> None:
        network, card, _ = load_model(model)
        weights = read_checkpoint(trained[0] / FINAL)["network_weights"]
        state = network.state_dict()
        assert set(state) == set(weights)
        assert all(torch.equal(state[key], value) for key, value in weights.items())
        assert card.channels == ("cbct", "r_ct")
        assert card.spacing_zyx_mm == (3.0, 3.0, 3.0)
        assert card.patch_zyx == (16, 16, 16)
        assert card.training["recipe"]["epochs"] == EPOCHS
        assert card.training["trainer"] == "ContourcastTrainer"
        assert card.training["cases"] == 4

    def test_the_scan_is_normalised_as_nnunet_did(self, model: Path, planned: Workplace) -> None:
        found = plans_of(planned)["foreground_intensity_properties_per_channel"]["0"]
        normalisation = load_model(model)[1].normalisation
        assert normalisation.kind == "ct"
        assert normalisation.lower_hu == found["percentile_00_5"]
        assert normalisation.mean_hu == found["mean"]
        assert normalisation.sd_hu == found["std"]

    def test_the_predictor_draws_with_it(self, model: Path) -> None:
        cbct, r_ct, truth = scene()
        drawn = load_network(model).predict(cbct, r_ct)
        assert dice(drawn.mask(), truth) > 0.6

    def test_an_unfinished_training_is_not_exported(
        self, planned: Workplace, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match="not been trained to its end"):
            export(planned, NUMBER, RunSettings(fold=1), tmp_path)


class TestStock:
    def test_a_stock_model_folder_draws_the_same_after_its_import(
        self, planned: Workplace, tmp_path: Path
    ) -> None:
        """nnU-Net's own trainer and network; the converted one gives the very same logits."""
        folder, library = stock_model(planned, tmp_path / "results")
        card = import_folder(folder, tmp_path / "model")
        assert (card.network, card.channels) == ("nnunet-plainconv", ("cbct", "r_ct"))
        network, card, digest = load_model(tmp_path / "model")
        x = torch.randn(1, 2, 16, 16, 16)
        with torch.no_grad():
            assert torch.allclose(network(x), library(x), atol=1e-5)
        cbct, r_ct, _ = scene()
        drawn = Predictor(network=network, card=card, digest=digest).predict(cbct, r_ct)
        assert np.isfinite(drawn.values).all()


def stock_model(planned: Workplace, results: Path) -> tuple[Path, Any]:
    """A model folder that nnU-Net's own trainer made with its own network, and that network."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = plans_of(planned, "nnUNetPlans")
    configuration = plans["configurations"]["3d_fullres"]
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments |= {
        "features_per_stage": [4, 8, 16],
        "n_stages": 3,
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "strides": arguments["strides"][:3],
        "kernel_sizes": arguments["kernel_sizes"][:3],
    }
    configuration["patch_size"] = [16, 16, 16]
    with elsewhere(planned, results).at_work():
        trainer = nnUNetTrainer(
            plans=plans | {"continue_training": False},
            configuration="3d_fullres",
            fold=0,
            dataset_json=json.loads((planned.raw / NAME / "dataset.json").read_text()),
            device=torch.device("cpu"),
        )
        trainer.num_epochs = trainer.num_iterations_per_epoch = 1
        trainer.num_val_iterations_per_epoch = 1
        trainer.run_training()
        trainer.set_deep_supervision_enabled(False)
    return Path(trainer.output_folder_base), trainer.network.eval()


def test_nnunets_own_search_finds_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    import contourcast.training.nnunet.external as external
    from contourcast.training.nnunet.trainer import ContourcastTrainer

    folder = next(iter(external.__path__))
    found = recursive_find_python_class(
        folder,
        "ContourcastTrainer",
        None,
        base_folder=folder,
        cleanup_imports_from_base_folder=True,
    )
    assert found is ContourcastTrainer


def test_every_planned_class_is_what_nnunet_locates() -> None:
    kind = pydoc.locate("contourcast.SegResNet")
    assert isinstance(kind, type)
    assert issubclass(kind, torch.nn.Module)
