"""Our U-Mambas against the authors' own modules, by answers kept from one run of those."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from contourcast.imaging.errors import WeightsError
from contourcast.models.mamba import Mamba
from contourcast.models.weights import fill as take
from contourcast.models.weights import import_published
from support.golden import GOLDEN, fill, image, read
from support.golden_umamba import NETWORKS, PATCH

# How far theirs, of size one and in float32, lie from what we get in float64, which is the same on
# every processor: their rounding. Four LayerNorms in a row, over few channels, make it forty times
# as large in UMamba-Enc. An epsilon of 1e-6 in a norm, for 1e-5, is six times that and more.
WITHIN = {"bot": 3e-5, "enc": 1e-3, "diff": 3e-5, "diff_scalars": 3e-5}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_every_head_are_theirs(name: str) -> None:
    network: Any = NETWORKS[name]().eval()
    fill(network)
    network.double().decoder.deep_supervision = True
    wanted = read("umamba")
    with torch.no_grad():
        answers = network(image(2, *PATCH).double())
    assert len(answers) == 3
    for level, logits in enumerate(answers):
        theirs = wanted[f"{name}_{level}"]
        assert theirs.std() > 0.1
        away = float((logits[..., ::2, ::2] - theirs).abs().max())
        assert away < WITHIN[name], f"head {level}"


def test_the_layer_answers_as_mamba_ssm_does() -> None:
    """Its own layer, with its own reference of the scan."""
    layer = Mamba(24)
    fill(layer)
    wanted = read("umamba")
    with torch.no_grad():
        assert torch.allclose(layer(wanted["mamba_in"]), wanted["mamba_out"], rtol=1e-5, atol=1e-6)


def published(name: str) -> dict[str, torch.Tensor]:
    """A checkpoint with the authors' names: all of them, also those that come twice."""
    network = NETWORKS[name]()
    fill(network)
    ours = network.state_dict()
    with np.load(GOLDEN / "umamba.npz") as stored:
        keys = [str(key) for key in stored[f"{name}_keys"]]
    state = {}
    for key in keys:
        if key.startswith("lambda_"):
            state[key] = ours["nrm.lambdas"][int(key[-1]) - 1].clone()
            continue
        [kept] = import_published({_kept(key, keys): torch.empty(1)})
        state[key] = ours[kept]
    return state


def _kept(key: str, keys: list[str]) -> str:
    """Of the names of one tensor, that which the import keeps."""
    key = key.removeprefix("decoder.") if key.startswith("decoder.encoder.") else key
    for kind, place in (("conv", "0"), ("norm", "1")):
        key = key.replace(f".all_modules.{place}.", f".{kind}.")
    assert key in keys
    return key


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_with_all_the_authors_names_loads(name: str) -> None:
    theirs = published(name)
    assert any(".all_modules." in key for key in theirs)
    assert any(key.startswith("decoder.encoder.") for key in theirs)
    source, target = NETWORKS[name](), NETWORKS[name]()
    fill(source)
    take(target, import_published(theirs))
    x = image(2, *PATCH)
    assert torch.equal(source(x), target(x))


def test_every_missing_and_every_unknown_name_is_told() -> None:
    theirs = published("diff")
    gone = [k for k in theirs if k.startswith(("mamba_m_2.", "proj_convs."))]
    state = {k: v for k, v in theirs.items() if k not in gone}
    strange = [f"aspp.{i}.weight" for i in range(9)] + ["lambda_x", "conv3d_0.weight"]
    state |= {key: torch.ones(1) for key in strange}
    with pytest.raises(WeightsError) as refusal:
        take(NETWORKS["diff"](), import_published(state))
    told = str(refusal.value)
    assert len(gone) > 9
    assert all(key in told for key in strange)
    assert all(key in told for key in import_published(dict.fromkeys(gone, torch.ones(1))))
