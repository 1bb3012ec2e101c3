from __future__ import annotations

import copy

import pytest
import torch

from contourcast.models.mamba import MambaConfig
from contourcast.models.selective_scan import scan_reference
from contourcast.models.vssm import (
    SS2D,
    DropPath,
    PatchMerging,
    VssmEncoder,
    back_in_place,
    in_four_orders,
)

CONFIG = MambaConfig(d_state=4, d_conv=3, backend="reference")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def lively(width: int = 6) -> SS2D:
    """With parameters that differ in every direction, away from their start."""
    layer = SS2D(width, CONFIG).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def test_the_four_orders_of_an_image_that_is_not_square() -> None:
    image = torch.tensor([[0.0, 1, 2], [3, 4, 5]])[None, None]  # (y x) = (2 3)
    rows, columns, rows_back, columns_back = in_four_orders(image)[0, :, 0].tolist()
    assert rows == [0, 1, 2, 3, 4, 5]
    assert columns == [0, 3, 1, 4, 2, 5]
    assert rows_back == [5, 4, 3, 2, 1, 0]
    assert columns_back == [5, 2, 4, 1, 3, 0]


def test_every_order_comes_back_to_its_place() -> None:
    image = torch.randn(2, 3, 4, 7)
    orders = in_four_orders(image)
    for k in range(4):
        alone = torch.zeros_like(orders)
        alone[:, k] = orders[:, k]
        assert torch.equal(back_in_place(alone, height=4), image), f"order {k}"


def test_it_is_the_sum_of_four_plain_scans_written_out() -> None:
    layer = lively()
    x = torch.randn(1, 12, 3, 5, dtype=torch.float64)
    total = torch.zeros_like(x)
    for k in range(4):
        line = (x if k % 2 == 0 else x.transpose(2, 3)).flatten(2)
        line = line if k < 2 else line.flip(-1)
        projected = torch.einsum("bdl,cd->bcl", line, layer.x_proj_weight[k])
        delta, B, C = torch.split(projected, [layer.dt_rank, 4, 4], 1)
        dt = torch.nn.functional.softplus(
            torch.einsum("brl,dr->bdl", delta, layer.dt_projs_weight[k])
            + layer.dt_projs_bias[k][:, None]
        )
        own = slice(12 * k, 12 * (k + 1))
        y = scan_reference(line, dt, -layer.A_logs[own].exp(), B, C, layer.Ds[own])
        y = y if k < 2 else y.flip(-1)
        total += y.reshape(1, 12, 3, 5) if k % 2 == 0 else y.reshape(1, 12, 5, 3).transpose(2, 3)
    assert torch.allclose(layer.scan(x), total, rtol=1e-12, atol=1e-12)


def test_a_transposed_image_with_rows_and_columns_exchanged_gives_the_transposed_answer() -> None:
    layer = lively()
    exchanged = copy.deepcopy(layer)
    order = torch.tensor([1, 0, 3, 2])
    with torch.no_grad():
        for name in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias"):
            parameter = getattr(exchanged, name)
            parameter.copy_(parameter[order].clone())
        for name in ("A_logs", "Ds"):
            parameter = getattr(exchanged, name)
            parameter.copy_(torch.cat([parameter.chunk(4)[k] for k in order]).clone())
        exchanged.conv2d.weight.copy_(exchanged.conv2d.weight.transpose(2, 3).clone())
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    there, back = layer(x), exchanged(x.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(there, back, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(there, layer(x.transpose(1, 2)).transpose(1, 2), atol=1e-3)


def test_every_direction_has_parameters_of_its_own_and_uses_them() -> None:
    layer = lively()
    layer(torch.randn(1, 4, 5, 6, dtype=torch.float64)).square().sum().backward()
    for name in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds"):
        gradient = getattr(layer, name).grad
        assert gradient is not None
        for k, own in enumerate(gradient.chunk(4)):
            assert own.any(), f"{name}, direction {k}"


def test_at_birth_delta_lies_between_a_thousandth_and_a_tenth() -> None:
    delta = torch.nn.functional.softplus(SS2D(64, MambaConfig(d_conv=3)).dt_projs_bias.detach())
    assert 0.00099 < float(delta.min()) < 0.01
    assert 0.01 < float(delta.max()) < 0.1001


def test_it_computes_in_float32_whatever_comes_in() -> None:
    layer = SS2D(6, CONFIG)
    x = 1e3 * torch.randn(1, 4, 5, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = layer(x.bfloat16())
    assert low.dtype == torch.float32
    assert torch.allclose(low, layer(x.bfloat16().float()), rtol=1e-5)


def test_merging_joins_a_square_of_tokens_column_by_column() -> None:
    """The order of VMamba's weights: (y, x) = 00, 10, 01, 11."""
    merge = PatchMerging(1, 4)
    merge.norm = torch.nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        merge.reduction.weight.copy_(torch.eye(4))
    image = torch.arange(8.0).reshape(1, 2, 4, 1)
    assert merge(image)[0, 0].tolist() == [[0, 4, 1, 5], [2, 6, 3, 7]]


def test_skipped_branches_keep_the_mean_and_rest_at_inference() -> None:
    drop = DropPath(0.25)
    ones = torch.ones(4000, 2)
    dropped = drop(ones)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(ones), ones)


def test_blocks_are_skipped_more_often_the_deeper_they_lie() -> None:
    encoder = VssmEncoder(
        1, patch=2, dims=(4, 8), depths=(2, 3), drop_path=0.2, mamba=MambaConfig(d_conv=3)
    )
    shares = [m.share for m in encoder.modules() if isinstance(m, DropPath)]
    assert shares == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
