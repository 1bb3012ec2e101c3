from __future__ import annotations

import pytest
import torch

from contourcast.models.blocks import initialise_he
from contourcast.models.mamba import Mamba, MambaConfig, MambaLayer
from contourcast.models.selective_scan import SCANS


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("width", "wanted"), [(256, 437_760), (320, 675_200), (768, 3_770_880)])
def test_parameters_are_those_of_mamba_ssm(width: int, wanted: int) -> None:
    assert count(Mamba(width)) == wanted


def test_names_and_shapes_are_those_of_mamba_ssm() -> None:
    d, inner, rank, n = 32, 64, 2, 16
    assert {k: tuple(v.shape) for k, v in Mamba(d).state_dict().items()} == {
        "A_log": (inner, n),
        "D": (inner,),
        "in_proj.weight": (2 * inner, d),
        "conv1d.weight": (inner, 1, 4),
        "conv1d.bias": (inner,),
        "x_proj.weight": (rank + 2 * n, inner),
        "dt_proj.weight": (inner, rank),
        "dt_proj.bias": (inner,),
        "out_proj.weight": (d, inner),
    }


def test_delta_at_birth_lies_between_a_thousandth_and_a_tenth() -> None:
    layer = Mamba(64)
    dt = torch.nn.functional.softplus(layer.dt_proj.bias)
    assert float(dt.detach().min()) >= 0.999e-3
    assert float(dt.detach().max()) <= 0.1001
    assert float(layer.dt_proj.weight.detach().abs().max()) <= 4**-0.5


def test_the_bias_of_delta_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the Δ rows of x_proj at zero, Δ is softplus of the bias, no more and no less."""
    layer = Mamba(16, MambaConfig(backend="chunked"))
    seen = {}

    def spy(x: torch.Tensor, dt: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen["dt"] = dt
        return x

    monkeypatch.setitem(SCANS, "chunked", spy)
    with torch.no_grad():
        layer.x_proj.weight[: layer.dt_rank] = 0
        layer(torch.randn(1, 7, 16))
    wanted = torch.nn.functional.softplus(layer.dt_proj.bias)
    assert torch.allclose(seen["dt"], wanted[None, :, None].expand_as(seen["dt"]))


def test_the_layer_equals_the_equations_written_out() -> None:
    """Token by token, with the letters of the equations and none of the layer's code."""
    layer = Mamba(8, MambaConfig(d_state=4)).double()
    h = torch.randn(2, 9, 8, dtype=torch.float64)
    p = dict(layer.named_parameters())
    inner, taps = 16, 4
    xz = h @ p["in_proj.weight"].T
    x, z = xz[..., :inner], xz[..., inner:]
    padded = torch.cat((torch.zeros(2, taps - 1, inner, dtype=torch.float64), x), 1)
    convolved = sum(padded[:, k : k + 9] * p["conv1d.weight"][:, 0, k] for k in range(taps))
    x = torch.nn.functional.silu(convolved + p["conv1d.bias"])
    dbc = x @ p["x_proj.weight"].T
    delta, B, C = dbc[..., :1], dbc[..., 1:5], dbc[..., 5:]
    dt = torch.log1p(torch.exp(delta @ p["dt_proj.weight"].T + p["dt_proj.bias"]))
    state = torch.zeros(2, inner, 4, dtype=torch.float64)
    out = []
    for t in range(9):
        decay = torch.exp(-dt[:, t, :, None] * p["A_log"].exp())
        state = decay * state + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        y = (state @ C[:, t, :, None])[..., 0] + p["D"] * x[:, t]
        out.append((y * torch.nn.functional.silu(z[:, t])) @ p["out_proj.weight"].T)
    assert torch.allclose(layer(h), torch.stack(out, 1), atol=1e-12)


def test_it_is_causal() -> None:
    layer = Mamba(16)
    h = torch.randn(1, 30, 16)
    later = h.clone()
    later[:, 10] += 1
    a, b = layer(h), layer(later)
    assert torch.equal(a[:, :10], b[:, :10])
    assert not torch.equal(a[:, 10:], b[:, 10:])


def test_tokens_are_voxels_with_x_fastest() -> None:
    """A voxel changed at (z, y, x) leaves every token before z·H·W + y·W + x as it was."""
    layer = MambaLayer(4)
    shape = (3, 4, 5)
    x = torch.randn(1, 4, *shape)
    changed = x.clone()
    changed[0, :, 1, 2, 3] += torch.randn(4)
    difference = (layer(changed) - layer(x)).abs().sum(1).flatten()
    assert int(difference.nonzero()[0]) == 1 * 20 + 2 * 5 + 3


def test_the_norm_is_over_channels_of_a_voxel() -> None:
    layer = MambaLayer(4)
    x = torch.randn(1, 4, 2, 3, 4)
    one_voxel, one_channel = x.clone(), x.clone()
    one_voxel[0, :, 0, 1, 2] += 3
    one_channel[0, 1] += 3
    assert torch.allclose(layer(one_voxel), layer(x), atol=1e-5)
    assert not torch.allclose(layer(one_channel), layer(x), atol=1e-2)


def test_scale_and_offset_of_all_tokens_do_not_matter_so_nothing_is_added_to_the_input() -> None:
    layer = MambaLayer(8)
    x = torch.randn(1, 8, 3, 3, 3)
    assert torch.allclose(layer(3 * x + 5), layer(x), atol=1e-4)


def test_zeros_give_exactly_zeros_at_birth() -> None:
    assert not MambaLayer(8)(torch.zeros(1, 8, 3, 4, 5)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision_comes_in_and_float32_goes_out(dtype: torch.dtype) -> None:
    layer = MambaLayer(16)
    x = torch.randn(1, 16, 4, 4, 4) * 1e3
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.to(dtype))
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert torch.equal(found, layer(x.to(dtype).float()))


def test_he_initialisation_leaves_the_recurrence_alone() -> None:
    layer = MambaLayer(16)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer.apply(initialise_he)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_backends_share_one_set_of_parameters() -> None:
    layer, other = Mamba(16), Mamba(16, MambaConfig(backend="reference"))
    other.load_state_dict(layer.state_dict())
    h = torch.randn(1, 50, 16)
    assert torch.allclose(layer(h), other(h), atol=1e-6)


@pytest.mark.peer
def test_mambapy_gives_the_same_answer() -> None:
    from support.data import require

    try:
        from mambapy.mamba import MambaBlock
        from mambapy.mamba import MambaConfig as PeerConfig
    except ImportError:
        require("peer", False, "mambapy is not installed: pip install contourcast[compare]")
        return
    layer = Mamba(32)
    peer = MambaBlock(PeerConfig(d_model=32, n_layers=1))
    peer.load_state_dict(layer.state_dict())
    h = torch.randn(2, 37, 32)
    with torch.no_grad():
        assert torch.allclose(layer(h), peer(h), atol=1e-5)
