from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from contourcast.imaging.errors import WeightsError
from contourcast.models.networks import build, entry
from contourcast.models.pretrained import load_pretrained

SMALL: dict[str, Any] = {"dims": (6, 8, 12), "depths": (1, 2, 1)}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def network(name: str = "swin-umamba-d", **changes: Any) -> Any:
    return build(name, entry(name).config_kind(**SMALL | changes))


def vmamba(source: Any) -> dict[str, torch.Tensor]:
    """An encoder's weights as the first release of VMamba calls them, and what is left there."""
    state = {}
    for key, value in source.vssm_encoder.state_dict().items():
        head, _, tail = key.removeprefix("downsamples.").partition(".")
        if key.startswith("downsamples."):
            key = f"layers.{head}.downsample.{tail}"
        state[key] = torch.randn_like(value)
    photographs = {"norm.weight": 12, "norm.bias": 12, "head.bias": 1000}
    return state | {key: torch.randn(n) for key, n in photographs.items()}


def written(path: Path, state: dict[str, torch.Tensor]) -> tuple[Path, str]:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 292}, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["swin-umamba", "swin-umamba-d"])
def test_every_tensor_of_the_encoder_but_its_patches_is_taken_and_counted(
    name: str, tmp_path: Path
) -> None:
    net = network(name)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = vmamba(net)
    path, sha256 = written(tmp_path / "vmamba.safetensors", state)
    # four blocks of 13 tensors and two mergings of 3
    assert load_pretrained(net, path, sha256=sha256) == 4 * 13 + 2 * 3
    after = net.state_dict()
    for key, value in state.items():
        if key.startswith(("patch_embed.", "norm.", "head.")):
            continue
        ours = key.replace("layers.0.downsample", "downsamples.0")
        ours = ours.replace("layers.1.downsample", "downsamples.1")
        assert torch.equal(after[f"vssm_encoder.{ours}"], value), key
    for key, value in before.items():
        if not key.startswith("vssm_encoder.") or ".patch_embed." in key:
            assert torch.equal(after[key], value), f"{key} is not the encoder's"


def test_of_the_published_sizes_204_tensors_are_taken() -> None:
    with torch.device("meta"):
        net: Any = build("swin-umamba", entry("swin-umamba").config_kind())
    names = [k for k in net.vssm_encoder.state_dict() if not k.startswith("patch_embed.")]
    assert len(names) == 15 * 13 + 3 * 3


def test_another_file_than_the_one_named_is_refused(tmp_path: Path) -> None:
    net = network()
    path, sha256 = written(tmp_path / "vmamba.safetensors", vmamba(net))
    with pytest.raises(WeightsError, match="not the one that was named"):
        load_pretrained(net, path, sha256="0" * 64)
    with pytest.raises(WeightsError, match="not there"):
        load_pretrained(net, tmp_path / "none.safetensors", sha256=sha256)
    with pytest.raises(WeightsError, match="began with"):
        load_pretrained(network(pretrained="1" * 64), path, sha256=sha256)
    assert load_pretrained(network(pretrained=sha256), path, sha256=sha256) == 58


def test_weights_of_another_encoder_are_refused_with_every_name_and_nothing_is_taken(
    tmp_path: Path,
) -> None:
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    later = {  # VMamba's later releases call a block's parts so
        k.replace("self_attention", "op").replace("ln_1", "norm"): v for k, v in vmamba(net).items()
    }
    photographs = {k: v for k, v in vmamba(net).items() if k.startswith(("norm.", "head."))}
    wider = vmamba(network(dims=(6, 8, 16)))
    for number, (state, word) in enumerate(
        ((later, "unknown"), (photographs, "of the file's 0 tensors"), (wider, "another shape"))
    ):
        path, sha256 = written(tmp_path / f"{number}.safetensors", state)
        with pytest.raises(WeightsError, match=word) as caught:
            load_pretrained(net, path, sha256=sha256)
        if state is later:
            notes = "\n".join(caught.value.__notes__)
            assert "layers.1.blocks.1.op.A_logs" in notes
            assert "layers.2.blocks.0.self_attention.out_proj.weight" in notes
    for key, value in net.state_dict().items():
        assert torch.equal(before[key], value), key


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    net = network()
    state = vmamba(net)
    state["layers.0.blocks.0.self_attention.Ds"][0] = torch.nan
    path, sha256 = written(tmp_path / "vmamba.safetensors", state)
    with pytest.raises(WeightsError, match="not finite"):
        load_pretrained(net, path, sha256=sha256)


def test_a_network_without_that_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no encoder"):
        load_pretrained(torch.nn.Linear(2, 2), tmp_path / "a.safetensors", sha256="")


def test_a_checkpoint_of_torch_is_read_by_another_process_its_settings_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VMamba's trainer keeps its settings, a dict of package yacs, beside the weights."""
    net = network()
    state = vmamba(net)
    yacs, config = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    settings = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    config.CfgNode = settings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", yacs)
    monkeypatch.setitem(sys.modules, "yacs.config", config)
    node = settings({"MODEL": settings({"NAME": "vssm_tiny"})})
    node.__dict__["__immutable__"] = True
    path = tmp_path / "vssmtiny_dp01_ckpt_epoch_292.pth"
    torch.save({"model": state, "config": node, "epoch": 292}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_pretrained(net, path, sha256=sha256) == 58
    own = net.state_dict()["vssm_encoder.downsamples.1.reduction.weight"]
    assert torch.equal(own, state["layers.1.downsample.reduction.weight"])


class Program:
    """What a hostile pickle does when it is opened."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


def test_a_pickle_that_holds_a_program_is_refused_and_nothing_of_it_runs(tmp_path: Path) -> None:
    net = network()
    trace, path = tmp_path / "it-ran", tmp_path / "evil.pth"
    torch.save({"model": vmamba(net), "more": Program(trace)}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match="program"):
        load_pretrained(net, path, sha256=sha256)
    assert not trace.exists()
    renamed = tmp_path / "evil.safetensors"
    path.rename(renamed)
    with pytest.raises(WeightsError, match="pickle"):
        load_pretrained(net, renamed, sha256=sha256)
    assert not trace.exists()


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {}}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match="no entry 'model'"):
        load_pretrained(network(), path, sha256=sha256)
