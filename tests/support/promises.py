"""What every network of the table promises, as checks that the tests of each call."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contourcast.models.config import NetworkConfig
from contourcast.models.networks import build
from contourcast.models.weights import load_model, save_model
from support.models import tiny_card


def at_birth(name: str, config: NetworkConfig, *, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build(name, config)


def image(config: NetworkConfig, shape: tuple[int, ...], *, batch: int = 1) -> Tensor:
    return torch.randn(
        batch, config.channels_in, *shape, generator=torch.Generator().manual_seed(3)
    )


def answers_in_its_size(name: str, config: NetworkConfig, shape: tuple[int, ...]) -> None:
    logits = at_birth(name, config)(image(config, shape, batch=2))
    assert logits.shape == (2, config.channels_out, *shape)


def without_gradient(network: Any, shape: tuple[int, ...]) -> list[str]:
    """Parameters that a step with all heads leaves as they are.

    A bias before a norm of the same channels changes nothing; biases are not in the answer.
    """
    network.decoder.deep_supervision = True
    with torch.no_grad():  # a norm that begins at zero hides what is before it
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    logits = network(image(network.config, shape))
    torch.autograd.backward(sum(v.square().mean() for v in logits))
    return [
        name
        for name, p in network.named_parameters()
        if not name.endswith("bias") and (p.grad is None or not p.grad.any())
    ]


def one_head_answers_as_a_list_when_supervised(
    name: str, config: NetworkConfig, shape: tuple[int, ...]
) -> None:
    network = at_birth(name, config).eval()
    x = image(config, shape)
    with torch.no_grad():
        plain = network(x)
        network.decoder.deep_supervision = True
        supervised = network(x)
    assert [v.shape for v in supervised] == [plain.shape]
    assert torch.equal(supervised[0], plain)


def survives_saving(name: str, config: NetworkConfig, shape: tuple[int, ...], folder: Path) -> None:
    """The weights on disk, each once, give the same logits bit for bit; so does a pickled copy."""
    network = at_birth(name, config).eval()
    places = [v.data_ptr() for v in network.state_dict().values()]
    assert len(set(places)) == len(places)
    card = tiny_card(network=name, config=config)
    save_model(folder, network, card, dtype=torch.float32)
    loaded, _, _ = load_model(folder)
    x = image(config, shape)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))
        assert torch.equal(pickle.loads(pickle.dumps(network))(x), network(x))


def stays_close_in_bfloat16(
    name: str, config: NetworkConfig, shape: tuple[int, ...], *, within: float = 0.05
) -> None:
    network = at_birth(name, config).eval()
    x = image(config, shape)
    with torch.no_grad():
        full = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(x.bfloat16()).float()
    assert torch.isfinite(low).all()
    assert float((low - full).norm() / full.norm()) < within
