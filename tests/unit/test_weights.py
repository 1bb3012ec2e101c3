from __future__ import annotations

import hashlib
import json
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import torch
from torch import Tensor

from contourcast.imaging.errors import WeightsError
from contourcast.models import weights
from contourcast.models.diff_umamba import DiffUMamba
from contourcast.models.networks import build
from contourcast.models.umamba_bot import UMambaConfig
from contourcast.models.weights import (
    CARD_FILE,
    WEIGHTS_FILE,
    card_from_json,
    fill,
    import_published,
    load_model,
    save_model,
)
from support.models import TINY, tiny_card, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model(tmp_path / "model")
    return tmp_path / "model"


def edit_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    change(card)
    (folder / CARD_FILE).write_text(json.dumps(card))


def replace_weights(folder: Path, data: bytes) -> None:
    """Other bytes, with a card that vouches for them: what a forger would do."""
    (folder / WEIGHTS_FILE).write_bytes(data)
    edit_card(folder, lambda card: card.update(weights_sha256=hashlib.sha256(data).hexdigest()))


class TestRoundTrip:
    def test_the_same_network_comes_back(self, folder: Path) -> None:
        torch.manual_seed(0)
        before = DiffUMamba(TINY).eval()
        after, card, _ = load_model(folder)
        x = torch.randn(1, 2, 8, 9, 10)
        assert torch.equal(before(x), after(x))
        assert card.config == TINY
        assert not after.training

    def test_half_precision_is_half_the_size_and_close(self, folder: Path, tmp_path: Path) -> None:
        network, card, _ = load_model(folder)
        save_model(tmp_path / "half", network, card, dtype=torch.float16)
        half, _, _ = load_model(tmp_path / "half")
        sizes = [(f / WEIGHTS_FILE).stat().st_size for f in (folder, tmp_path / "half")]
        assert sizes[1] < 0.6 * sizes[0]
        x = torch.randn(1, 2, 8, 9, 10)
        assert float((network(x) - half(x)).detach().abs().max()) < 0.05

    def test_the_digest_is_of_everything(self, folder: Path, tmp_path: Path) -> None:
        _, _, digest = load_model(folder)
        tiny_model(tmp_path / "same")
        tiny_model(tmp_path / "other", seed=1)
        assert load_model(tmp_path / "same")[2] == digest
        assert load_model(tmp_path / "other")[2] != digest
        edit_card(folder, lambda card: card.update(margin_mm=10.0))
        assert load_model(folder)[2] != digest

    def test_the_card_states_every_switch(self, folder: Path) -> None:
        card = json.loads((folder / CARD_FILE).read_text())
        assert set(card["config"]["nrm"]) == {
            "levels",
            "detach",
            "lambda_init",
            "lambda_trainable",
            "second_mamba",
            "gate",
            "slabs",
            "pool",
        }
        assert set(card["config"]["mamba"]) == {"d_state", "d_conv", "expand", "dt_rank", "backend"}
        assert card["config"]["bottleneck"] == "mamba"


class TestCard:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda c: c["config"]["nrm"].update(soft=1), "nrm.soft"),
            (lambda c: c["config"].update(dropout=0.1), "dropout"),
            (lambda c: c.update(tta=True), "tta"),
            (lambda c: c["config"]["nrm"].pop("gate"), "nrm.gate"),
            (lambda c: c["config"].pop("features"), "features"),
            (lambda c: c.pop("spacing_zyx_mm"), "spacing_zyx_mm"),
            (lambda c: c["config"]["nrm"].update(detach="yes"), "nrm.detach"),
            (lambda c: c["config"]["nrm"].update(second_mamba="gru"), "nrm.second_mamba"),
            (lambda c: c["config"].update(blocks=[1, 10**9, 1]), "no network has"),
            (lambda c: c["config"].update(blocks=[1]), "one entry for each stage"),
            (lambda c: c.update(network="diff-unamba"), "nearest is 'diff-umamba'"),
            (lambda c: c.update(format=2), "format"),
            (lambda c: c.update(patch_zyx=[0, 1, 1]), "sizes"),
            (lambda c: c.update(spacing_zyx_mm=[1e-3] * 3), "spacing of 0.001, 0.001, 0.001 mm"),
            (lambda c: c.update(spacing_zyx_mm=[2.0, math.nan, 2.0]), "spacing"),
            (lambda c: c.update(spacing_zyx_mm=[math.inf] * 3), "spacing"),
            (lambda c: c["normalisation"].update(lower_percentile=-5.0), "percentiles -5 and 99"),
            (lambda c: c["normalisation"].update(lower_percentile=math.nan), "percentiles"),
            (
                lambda c: c["normalisation"].update(lower_percentile=99.0, upper_percentile=1.0),
                "percentiles 99 and 1",
            ),
            (lambda c: c["normalisation"].update(kind="ct"), "normalisation.kind"),
            (lambda c: c["normalisation"].update(kind="mr"), "normalisation.kind"),
            (lambda c: c["normalisation"].update(lower_hu=-1e3), "no numbers of HU"),
            (
                lambda c: c["normalisation"].update(
                    kind="ct", lower_hu=9.0, upper_hu=1.0, mean_hu=0.0, sd_hu=1.0
                ),
                "window is empty",
            ),
        ],
    )
    def test_what_it_does_not_know_or_misses_is_named(
        self, folder: Path, change: Callable[[dict[str, Any]], object], said: str
    ) -> None:
        edit_card(folder, change)
        with pytest.raises(WeightsError, match=said):
            load_model(folder)

    def test_text_that_is_not_json(self) -> None:
        with pytest.raises(WeightsError, match="card cannot be used"):
            card_from_json("{")

    def test_it_survives_its_own_file(self) -> None:
        card = tiny_card()
        assert card_from_json(card.to_json()) == card


class Bomb:
    """A pickle that writes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


class TestHostile:
    @pytest.mark.parametrize("protocol", [2, 4, 5])
    def test_a_pickle_is_refused_and_not_run(
        self, folder: Path, tmp_path: Path, protocol: int
    ) -> None:
        mark = tmp_path / "ran"
        replace_weights(folder, pickle.dumps(Bomb(mark), protocol=protocol))
        with pytest.raises(WeightsError, match="pickle"):
            load_model(folder)
        assert not mark.exists()

    def test_a_torch_checkpoint_is_refused(self, folder: Path) -> None:
        torch.save(DiffUMamba(TINY).state_dict(), folder / "checkpoint.pt")
        replace_weights(folder, (folder / "checkpoint.pt").read_bytes())
        with pytest.raises(WeightsError, match="pickle"):
            load_model(folder)

    def test_a_folder_with_nothing_but_a_checkpoint_says_what_to_do(self, folder: Path) -> None:
        (folder / WEIGHTS_FILE).rename(folder / "checkpoint_final.pth")
        with pytest.raises(WeightsError, match="convert it to safetensors") as refused:
            load_model(folder)
        assert refused.value.file == "checkpoint_final.pth"

    @pytest.mark.parametrize("claimed", [2**32, 2**63, 2**23])
    def test_a_header_larger_than_the_file_is_refused(self, folder: Path, claimed: int) -> None:
        replace_weights(folder, struct.pack("<Q", claimed) + b"{}" * 50)
        with pytest.raises(WeightsError, match=f"header of {claimed}"):
            load_model(folder)

    @pytest.mark.parametrize("data", [b"", b"1234", struct.pack("<Q", 9) + b'{"a": [1}'])
    def test_a_broken_header_is_refused(self, folder: Path, data: bytes) -> None:
        replace_weights(folder, data)
        with pytest.raises(WeightsError, match=r"safetensors|header"):
            load_model(folder)

    def test_a_truncated_file_is_refused(self, folder: Path) -> None:
        replace_weights(folder, (folder / WEIGHTS_FILE).read_bytes()[:-100])
        with pytest.raises(WeightsError, match="not a readable"):
            load_model(folder)

    def test_other_weights_than_the_card_names_are_refused(self, folder: Path) -> None:
        data = bytearray((folder / WEIGHTS_FILE).read_bytes())
        data[-1] ^= 1
        (folder / WEIGHTS_FILE).write_bytes(data)
        with pytest.raises(WeightsError, match="not those of the card"):
            load_model(folder)

    def test_files_that_are_too_large_are_not_read(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(weights, "MAX_WEIGHTS_BYTES", 1000)
        with pytest.raises(WeightsError, match="limit is 1000"):
            load_model(folder)

    @pytest.mark.parametrize("name", [CARD_FILE, WEIGHTS_FILE])
    def test_a_link_that_leaves_the_folder_is_refused(
        self, folder: Path, tmp_path: Path, name: str
    ) -> None:
        (folder / name).rename(tmp_path / "elsewhere")
        (folder / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(WeightsError, match="leaves the model folder"):
            load_model(folder)

    @pytest.mark.parametrize("missing", ["no-such-folder", "."])
    def test_a_folder_that_is_no_model_is_refused(self, tmp_path: Path, missing: str) -> None:
        with pytest.raises(WeightsError, match=r"no card\.json"):
            load_model(tmp_path / missing)

    def test_a_card_that_claims_a_huge_network_allocates_nothing(self, folder: Path) -> None:
        edit_card(folder, lambda card: card["config"].update(features=[4096, 4096, 4096]))
        with pytest.raises(WeightsError, match="needed is"):  # 5 GB, had it been built
            load_model(folder)

    def test_numbers_that_are_not_finite_are_refused(self, folder: Path) -> None:
        state = DiffUMamba(TINY).state_dict()
        state["nrm.lambdas"] = torch.tensor([0.5, torch.nan])
        replace_weights(folder, safetensors.torch.save(state))
        with pytest.raises(WeightsError, match=r"nrm\.lambdas.*not finite"):
            load_model(folder)


class TestFill:
    def test_unknown_and_missing_tensors_are_both_listed(self) -> None:
        state = DiffUMamba(TINY).state_dict()
        state["encoder.extra"] = state.pop("nrm.lambdas")
        with pytest.raises(WeightsError, match=r"unknown encoder\.extra; missing nrm\.lambdas"):
            fill(DiffUMamba(TINY), state)

    def test_another_shape_is_named(self) -> None:
        state = DiffUMamba(TINY).state_dict()
        state["nrm.lambdas"] = torch.ones(5)
        with pytest.raises(WeightsError, match=r"nrm\.lambdas has shape \(5,\)"):
            fill(DiffUMamba(TINY), state)


def published(state: dict[str, Tensor], *, diff: str) -> dict[str, Tensor]:
    """Our tensors under the names of the authors' checkpoints, duplicates included."""
    theirs: dict[str, Tensor] = {}
    for key, value in state.items():
        head, _, tail = key.partition(".")
        if key == "nrm.lambdas":
            if diff == "scalars":
                theirs |= {f"lambda_{i}": v for i, v in enumerate(value, 1)}
            else:
                theirs["lambdas"] = value
        elif key.startswith("nrm.proj."):
            i, _, rest = key.removeprefix("nrm.proj.").partition(".")
            scalars = diff == "scalars"
            theirs[f"conv3d_{int(i) + 1}.{rest}" if scalars else f"proj_convs.{i}.{rest}"] = value
        elif key.startswith("nrm.mamba."):
            theirs["mamba_m_2." + key.removeprefix("nrm.mamba.")] = value
        elif head == "mamba_layer":
            theirs[f"mamba_m_1.{tail}" if diff else key] = value
        else:
            # the second block of a stage is a BasicBlockD, with its convolution and norm wrapped
            parts = key.split(".")
            if len(parts) >= 2 and parts[-3].isdigit() and parts[-3] != "0" and "layers" not in key:
                kind, n = parts[-2][:-1], parts[-2][-1]
                block, last = ".".join([*parts[:-2], f"conv{n}"]), parts[-1]
                theirs[f"{block}.{kind}.{last}"] = value
                theirs[f"{block}.all_modules.{int(kind == 'norm')}.{last}"] = value
            else:
                theirs[key] = value
    theirs |= {f"decoder.{k}": v for k, v in theirs.items() if k.startswith("encoder.")}
    return theirs


class TestPublishedCheckpoints:
    DEEP: ClassVar[Any] = {
        "features": (4, 8, 16),
        "kernels": ((3, 3, 3),) * 3,
        "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        "blocks": (2,) * 3,
        "decoder_blocks_asked": (2,) * 2,
    }

    @pytest.mark.parametrize("diff", ["vector", "scalars"])
    def test_both_key_sets_of_diff_umamba_load(self, diff: str) -> None:
        torch.manual_seed(3)
        source = DiffUMamba(type(TINY)(**self.DEEP))
        torch.nn.init.normal_(source.nrm.lambdas)  # type: ignore[union-attr]
        target = DiffUMamba(type(TINY)(**self.DEEP))
        theirs = published(source.state_dict(), diff=diff)
        assert any(".all_modules." in key for key in theirs)
        fill(target, import_published(theirs))
        x = torch.randn(1, 2, 8, 8, 8)
        assert torch.equal(source(x), target(x))

    def test_umamba_bot_loads(self) -> None:
        source, target = (build("umamba-bot", UMambaConfig(**self.DEEP)) for _ in range(2))
        fill(target, import_published(published(source.state_dict(), diff="")))
        assert torch.equal(
            source.state_dict()["mamba_layer.norm.weight"],
            target.state_dict()["mamba_layer.norm.weight"],
        )

    def test_a_key_that_neither_has_is_refused(self) -> None:
        theirs = published(DiffUMamba(TINY).state_dict(), diff="vector")
        theirs["aspp.conv.weight"] = torch.ones(1)
        with pytest.raises(WeightsError, match=r"unknown aspp\.conv\.weight"):
            fill(DiffUMamba(TINY), import_published(theirs))
