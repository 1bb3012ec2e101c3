"""Model folders of nnU-Net that somebody else made: what is read, and what is refused unread."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contourcast.imaging.errors import WeightsError
from contourcast.imaging.grid import Grid
from contourcast.imaging.volume import Volume
from contourcast.models.foreign import ImportSettings, import_folder, is_foreign, ours, read_apart
from contourcast.models.foreign_child import read_checkpoint
from contourcast.models.networks import build
from contourcast.models.plain_conv import PlainConvConfig
from contourcast.models.predictor import load_network
from contourcast.models.region import scaling
from contourcast.models.weights import Normalisation, load_model
from contourcast.service.jobs.network import served_model
from contourcast.service.settings import ServiceSettings
from support.models import FRAME

STOCK_CLASS = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
CONFIG = PlainConvConfig(
    features=(2, 4, 4),
    kernels=tuple(tuple(k) for k in KERNELS),
    strides=tuple(tuple(s) for s in STRIDES),
    blocks=(1, 1, 1),
    decoder_blocks_asked=(1, 1),
)


def plans() -> dict[str, Any]:
    """As nnU-Net 2.8 writes them, of a network of a few hundred weights."""
    return {
        "dataset_name": "Dataset902_Toy",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "original_median_spacing_after_transp": [3.0, 2.0, 2.0],
        "foreground_intensity_properties_per_channel": {
            "0": {
                "percentile_00_5": -900.0,
                "percentile_99_5": 200.0,
                "mean": -300.0,
                "std": 250.0,
            }
        },
        "configurations": {
            "3d_fullres": {
                "spacing": [3.0, 2.0, 2.0],
                "patch_size": [8, 16, 12],
                "normalization_schemes": ["CTNormalization", "NoNormalization"],
                "use_mask_for_norm": [False, False],
                "architecture": {
                    "network_class_name": STOCK_CLASS,
                    "arch_kwargs": {
                        "n_stages": 3,
                        "features_per_stage": [2, 4, 4],
                        "conv_op": "torch.nn.modules.conv.Conv3d",
                        "kernel_sizes": KERNELS,
                        "strides": STRIDES,
                        "n_conv_per_stage": [1, 1, 1],
                        "n_conv_per_stage_decoder": [1, 1],
                        "conv_bias": True,
                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            }
        },
    }


def dataset() -> dict[str, Any]:
    return {
        "channel_names": {"0": "CT", "1": "noNorm"},
        "labels": {"background": 0, "GTV": 1},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(build("nnunet-plainconv", CONFIG).state_dict())


def checkpoint(**changes: object) -> dict[str, Any]:
    """All that nnU-Net puts into one, its log of NumPy's numbers too."""
    return {
        "network_weights": state(),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"train_losses": [np.float32(0.5), np.float64(0.25)], "lrs": [0.01]},
        "_best_ema": np.float32(0.75),
        "current_epoch": 3,
        "init_args": {
            "configuration": "3d_fullres",
            "fold": 0,
            "device": torch.device("cpu"),
            "plans": {"any": [1, 2.0, None]},
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    } | changes


def written(folder: Path, content: object = None, *, fold: int = 0) -> Path:
    (folder / f"fold_{fold}").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans()))
    (folder / "dataset.json").write_text(json.dumps(dataset()))
    path = folder / f"fold_{fold}" / "checkpoint_final.pth"
    torch.save(checkpoint() if content is None else content, path)
    return folder


def edited(folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def architecture(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["configurations"]["3d_fullres"]["architecture"]
    return found


class Bomb:
    """A pickle that writes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.mark, "w"))


class TestImport:
    def test_a_stock_folder_becomes_one_of_ours(self, tmp_path: Path) -> None:
        folder = written(tmp_path / "theirs")
        card = import_folder(folder, tmp_path / "model")
        network, again, _ = load_model(tmp_path / "model")
        assert again == card
        assert card.network == "nnunet-plainconv"
        assert card.config == CONFIG
        assert card.channels == ("cbct", "r_ct")
        assert card.spacing_zyx_mm == (3.0, 2.0, 2.0)
        assert card.patch_zyx == (8, 16, 12)
        assert card.normalisation == Normalisation(
            kind="ct", lower_hu=-900.0, upper_hu=200.0, mean_hu=-300.0, sd_hu=250.0
        )
        assert card.training["validation_dice_of_patches"] == 0.75
        assert card.training["trainer"] == "nnUNetTrainer"
        assert all(torch.equal(network.state_dict()[k], v) for k, v in state().items())

    def test_propagate_takes_the_folder_as_it_is(self, tmp_path: Path) -> None:
        folder = written(tmp_path / "theirs")
        predictor = load_network(folder)
        assert predictor.name == "nnunet-plainconv"
        assert sorted(p.name for p in folder.iterdir()) == ["dataset.json", "fold_0", "plans.json"]
        import_folder(folder, tmp_path / "model")
        assert load_network(tmp_path / "model").digest == predictor.digest

    def test_second_names_and_a_wrapper_of_parallel_training_are_taken_off(
        self, tmp_path: Path
    ) -> None:
        twice = {f"module.{key}": value for key, value in state().items()}
        some = next(iter(state()))
        twice["module.decoder." + some] = twice["module." + some]
        folder = written(tmp_path / "theirs", checkpoint(network_weights=twice))
        import_folder(folder, tmp_path / "model")
        assert set(load_model(tmp_path / "model")[0].state_dict()) == set(state())

    def test_exchanged_axes_turn_the_network_and_not_the_image(self, tmp_path: Path) -> None:
        """nnU-Net puts the axis of largest spacing first: here y."""
        order = [1, 0, 2]
        folder = edited(
            written(tmp_path / "theirs"), "plans.json", lambda p: p.update(transpose_forward=order)
        )
        card = import_folder(folder, tmp_path / "model")
        assert card.spacing_zyx_mm == (2.0, 3.0, 2.0)
        assert card.patch_zyx == (16, 8, 12)
        turned, _, _ = load_model(tmp_path / "model")
        theirs: Any = build("nnunet-plainconv", CONFIG).eval()
        theirs.load_state_dict(state())
        image = torch.randn(1, 2, 16, 8, 12)  # z y x
        with torch.no_grad():
            expected = theirs(image.permute(0, 1, 3, 2, 4)).permute(0, 1, 3, 2, 4)
            assert torch.allclose(turned(image), expected, atol=1e-5)

    def test_z_score_is_of_the_whole_scan_or_of_the_region(self, tmp_path: Path) -> None:
        def z_score(p: dict[str, Any]) -> None:
            p["configurations"]["3d_fullres"]["normalization_schemes"][0] = "ZScoreNormalization"

        folder = edited(written(tmp_path / "theirs"), "plans.json", z_score)
        card = import_folder(folder, tmp_path / "whole")
        assert card.normalisation.kind == "scan-zscore"
        card = import_folder(folder, tmp_path / "region", ImportSettings(region=True))
        assert card.normalisation.kind == "crop-zscore"

    def test_of_several_folds_one_is_chosen(self, tmp_path: Path) -> None:
        folder = written(tmp_path / "theirs")
        (folder / "fold_1").mkdir()
        with pytest.raises(WeightsError, match="folds 0, 1"):
            import_folder(folder, tmp_path / "model")
        with pytest.raises(WeightsError, match="fold 1 has no checkpoint_final"):
            import_folder(folder, tmp_path / "model", ImportSettings(fold="1"))
        assert import_folder(folder, tmp_path / "model", ImportSettings(fold="0"))

    def test_what_is_ours_stays_as_it_is(self, tmp_path: Path) -> None:
        assert not is_foreign(tmp_path)
        with ours(tmp_path) as place:
            assert place == tmp_path


class TestServed:
    """What the API is told of such a folder, by a process that may load torch."""

    def test_it_is_known_as_what_it_is_converted_to(self, tmp_path: Path) -> None:
        folder = written(tmp_path / "theirs")
        loaded = load_network(folder)
        model = served_model(ServiceSettings(weights=folder))()
        assert (model.name, model.digest) == (loaded.name, loaded.digest)
        assert model.card["patch_zyx"] == [8, 16, 12]

    def test_one_that_is_refused_is_refused_in_the_same_words(self, tmp_path: Path) -> None:
        folder = written(tmp_path / "theirs")
        (folder / "fold_0" / "checkpoint_final.pth").unlink()
        with pytest.raises(WeightsError) as here:
            load_network(folder)
        with pytest.raises(WeightsError) as there:
            served_model(ServiceSettings(weights=folder))()
        assert str(there.value) == str(here.value)

    def test_one_that_takes_too_long_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = written(tmp_path / "theirs")
        monkeypatch.setattr("contourcast.service.jobs.network.CONVERTING_S", 0.01)
        with pytest.raises(WeightsError, match="could not be converted"):
            served_model(ServiceSettings(weights=folder))()


class TestNormalisation:
    def values(self) -> tuple[Volume, np.ndarray, np.ndarray]:
        values = np.random.default_rng(1).normal(-300, 400, (6, 7, 8))
        grid = Grid.even(
            shape_zyx=(6, 7, 8), spacing_xyz_mm=(1, 1, 1), origin_xyz_mm=(0.0, 0.0, 0.0)
        )
        scan = Volume(values=values, grid=grid, frame_of_reference=FRAME)
        part = values[1:4, 2:5, 2:6]
        return scan, part, np.ones(part.shape, bool)

    def test_ct_clips_and_scales_by_the_training_datas_numbers(self) -> None:
        _, part, seen = self.values()
        window = Normalisation(
            kind="ct", lower_hu=-500.0, upper_hu=100.0, mean_hu=-200.0, sd_hu=50.0
        )
        expected = (part.clip(-500, 100) + 200) / 50
        assert np.allclose(scaling(part, seen, window).apply(part), expected, atol=1e-5)

    def test_scan_z_score_looks_at_the_whole_scan(self) -> None:
        scan, part, seen = self.values()
        found = scaling(part, seen, Normalisation(kind="scan-zscore"), scan=scan).apply(part)
        expected = (part - scan.values.mean()) / scan.values.std()
        assert np.allclose(found, expected, atol=1e-4)

    def test_crop_z_score_looks_at_the_region_alone(self) -> None:
        scan, part, seen = self.values()
        found = scaling(part, seen, Normalisation(kind="crop-zscore"), scan=scan).apply(part)
        assert abs(float(found.mean())) < 1e-4
        assert float(found.std()) == pytest.approx(1, abs=1e-4)


class TestHostileCheckpoint:
    @pytest.mark.parametrize("where", ["network_weights", "logging", "trainer_name"])
    def test_a_program_in_it_is_refused_and_not_run(self, tmp_path: Path, where: str) -> None:
        mark = tmp_path / "ran"
        path = tmp_path / "checkpoint_final.pth"
        torch.save(checkpoint(**{where: Bomb(mark)}), path)
        with pytest.raises(WeightsError, match=r"open.* holds a program"):
            read_checkpoint(path)
        assert not mark.exists()

    def test_a_program_is_refused_by_the_import_in_one_sentence(self, tmp_path: Path) -> None:
        mark = tmp_path / "ran"
        folder = written(tmp_path / "theirs", checkpoint(extra=Bomb(mark)))
        with pytest.raises(WeightsError, match="holds a program, and none was run") as refused:
            load_network(folder)
        assert refused.value.file == "checkpoint_final.pth"
        assert not mark.exists()

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ([1, 2], "no checkpoint"),
            ({"state_dict": {}}, "no checkpoint"),
        ],
    )
    def test_what_is_no_checkpoint(self, tmp_path: Path, content: object, said: str) -> None:
        torch.save(content, tmp_path / "c.pth")
        with pytest.raises(WeightsError, match=said):
            read_checkpoint(tmp_path / "c.pth")

    def test_a_truncated_one_and_one_of_noise(self, tmp_path: Path) -> None:
        torch.save(checkpoint(), tmp_path / "c.pth")
        whole = (tmp_path / "c.pth").read_bytes()
        for data in (whole[: len(whole) // 2], b"PK\x03\x04", b"noise", b""):
            (tmp_path / "c.pth").write_bytes(data)
            with pytest.raises(WeightsError):
                read_checkpoint(tmp_path / "c.pth")

    def test_a_reader_that_does_not_end_is_ended(self, tmp_path: Path) -> None:
        torch.save(checkpoint(), tmp_path / "c.pth")
        endless = (sys.executable, "-c", "import signal; signal.pause()")
        with pytest.raises(WeightsError, match="did not end"):
            read_apart(tmp_path / "c.pth", program=endless, seconds=0.2)

    def test_a_reader_that_is_killed_costs_one_error(self, tmp_path: Path) -> None:
        torch.save(checkpoint(), tmp_path / "c.pth")
        killed = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
        with pytest.raises(WeightsError, match="ended by SIGKILL"):
            read_apart(tmp_path / "c.pth", program=killed)


class TestHostilePlans:
    """Refused before the checkpoint is looked at: there is none in these folders."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return written(tmp_path / "Trainer__nnUNetPlans__3d_fullres", {})

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                lambda p: architecture(p).update(network_class_name="os.system"),
                "names the network os.system, which is not one of the table|name the network",
            ),
            (lambda p: architecture(p)["arch_kwargs"].update(evil=1), "no argument 'evil'"),
            (
                lambda p: architecture(p)["arch_kwargs"].update(dropout_op="torch.nn.Dropout3d"),
                "dropout_op",
            ),
            (lambda p: architecture(p)["arch_kwargs"].pop("nonlin"), "leave out one of"),
            (lambda p: architecture(p)["arch_kwargs"].update(strides="x"), "strides"),
            (lambda p: p["configurations"]["3d_fullres"].update(spacing=["a"]), "not whole"),
            (
                lambda p: p["configurations"]["3d_fullres"].update(spacing=[0.0, 1.0, 1.0]),
                "sizes that no image has",
            ),
            (lambda p: p["configurations"]["3d_fullres"].pop("spacing"), "leave out spacing"),
            (
                lambda p: p["configurations"]["3d_fullres"].update(patch_size=[7, 16, 12]),
                "multiple|cannot be taken",
            ),
            (lambda p: p.update(transpose_forward=[0, 0, 2]), "not whole"),
            (
                lambda p: p["configurations"]["3d_fullres"].update(inherits_from="3d_fullres"),
                "inherit in a circle",
            ),
            (
                lambda p: p["configurations"]["3d_fullres"].update(previous_stage="3d_lowres"),
                "cascade",
            ),
            (
                lambda p: p["configurations"]["3d_fullres"].update(
                    normalization_schemes=["RescaleTo01Normalization", "NoNormalization"]
                ),
                "RescaleTo01Normalization",
            ),
            (
                lambda p: p["configurations"]["3d_fullres"].update(use_mask_for_norm=[True, False]),
                "within a mask",
            ),
            (lambda p: p.pop("foreground_intensity_properties_per_channel"), "normalised"),
            (lambda p: p.update(configurations=[]), "no configuration"),
        ],
    )
    def test_what_the_plans_cannot_say(
        self, folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
    ) -> None:
        edited(folder, "plans.json", change)
        with pytest.raises(WeightsError, match=said):
            import_folder(folder, tmp_path / "model")
        assert not (tmp_path / "model").exists()

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda d: d["labels"].update(lung=2), "draws 2 labels"),
            (lambda d: d["labels"].update(GTV=[1]), "here one is drawn"),
            (lambda d: d.pop("labels"), "not whole"),
            (lambda d: d["channel_names"].update({"2": "CT"}), "3 channels"),
        ],
    )
    def test_what_the_data_set_cannot_be(
        self, folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
    ) -> None:
        edited(folder, "dataset.json", change)
        with pytest.raises(WeightsError, match=said):
            import_folder(folder, tmp_path / "model")

    def test_text_that_is_not_json(self, folder: Path, tmp_path: Path) -> None:
        (folder / "plans.json").write_text("{")
        with pytest.raises(WeightsError, match=r"plans\.json is not JSON"):
            import_folder(folder, tmp_path / "model")

    def test_weights_of_another_config(self, tmp_path: Path) -> None:
        wide = {k: torch.cat((v, v)) for k, v in state().items()}
        folder = written(tmp_path / "theirs", checkpoint(network_weights=wide))
        with pytest.raises(WeightsError, match="has shape"):
            import_folder(folder, tmp_path / "model")
        assert not (tmp_path / "model").exists()
