from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contourcast.imaging.errors import InputError
from contourcast.models.arbiter import CHANNELS, FOLLOWED, Arbiter, asked, logit
from contourcast.models.diff_umamba import DiffUMamba
from contourcast.models.networks import build
from contourcast.models.noise_reduction import NrmConfig
from contourcast.models.predictor import Predictor, load_network
from contourcast.models.umamba_bot import UMambaConfig
from contourcast.models.weights import KNOWN_CHANNELS, load_model, save_model
from contourcast.models.windows import Windows
from contourcast.training.arbitrate import ArbiterSettings, Lesson, learn, teach
from contourcast.training.samples import SampleSettings
from support.evidence import patch_sample
from support.models import TINY, ball_case, ball_planned, tiny_card, tiny_model

WITH = replace(TINY, channels_in=CHANNELS, arbiter=4, nrm=NrmConfig(slabs=False))
PATCH = (16, 20, 20)


def seen(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(1, CHANNELS, *PATCH, generator=g)
    return x, 3 * torch.randn(1, 2, *PATCH, generator=g)


def difference(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 1] - logits[:, 0]


def test_at_birth_it_is_undecided() -> None:
    x, logits = seen()
    wanted = (difference(logits).clamp(-8, 8) + logit(x[:, FOLLOWED])) / 2
    assert torch.allclose(difference(Arbiter(4)(x, logits)), wanted, atol=1e-5)


@pytest.mark.parametrize(("says", "who"), [(-20.0, "drawn"), (20.0, "followed")])
def test_it_takes_whom_it_decides_for(says: float, who: str) -> None:
    arbiter = Arbiter(4)
    torch.nn.init.constant_(arbiter.share.bias, says)  # type: ignore[arg-type]
    x, logits = seen()
    wanted = logit(x[:, FOLLOWED]) if who == "followed" else difference(logits).clamp(-8, 8)
    assert torch.allclose(difference(arbiter(x, logits)), wanted, atol=1e-4)


def test_half_the_size_is_enough_for_odd_sizes_and_float16() -> None:
    x, logits = (part[..., :15, :19, :17] for part in seen())
    whole = Arbiter(4)(x, logits)
    assert whole.shape == logits.shape
    assert whole.dtype == torch.float32
    half = Arbiter(4)(x.half(), logits.half())
    assert torch.allclose(half, whole, atol=0.05)


def test_the_network_draws_and_the_arbiter_decides() -> None:
    torch.manual_seed(0)
    network: Any = DiffUMamba(WITH).eval()
    bare: Any = DiffUMamba(replace(WITH, arbiter=0)).eval()
    bare.load_state_dict({k: v for k, v in network.state_dict().items() if "arbiter" not in k})
    x, _ = seen()
    with torch.no_grad():
        assert torch.equal(network(x), network.arbiter(x, bare(x)))
        network.decoder.deep_supervision = bare.decoder.deep_supervision = True
        ours, theirs = network(x), bare(x)
    assert torch.equal(ours[0], network.arbiter(x, theirs[0]))
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(
    "changes",
    [{"arbiter": -1}, {"arbiter": 1000}, {"arbiter": 4, "channels_in": 2}],
)
def test_one_that_cannot_be_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="arbiter"):
        replace(TINY, **changes)  # type: ignore[arg-type]


def test_it_survives_its_files_and_draws(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build("diff-umamba", WITH).eval()
    card = tiny_card(config=WITH, channels=KNOWN_CHANNELS)
    save_model(tmp_path, network, card, dtype=torch.float32)
    predictor = load_network(tmp_path)
    x, _ = seen()
    with torch.no_grad():
        assert torch.equal(predictor.network(x), network(x))
    cbct, r_ct, _ = ball_case()
    planned = ball_planned(offset_xyz_mm=(7.0, -5.0, 11.0))
    drawn = predictor.predict(cbct, r_ct, planned).values
    assert np.isfinite(drawn).all()
    assert drawn.max() > 0.5  # undecided, it draws at least where both would


def test_it_decides_once_on_what_was_drawn_in_every_window() -> None:
    """Two windows see other parts of a border, and it looks at the whole of it."""
    torch.manual_seed(0)
    network: Any = DiffUMamba(WITH).eval()
    network.arbiter.load_state_dict(undecided_no_more(network.arbiter.state_dict()))
    bare: Any = DiffUMamba(replace(WITH, arbiter=0)).eval()
    bare.load_state_dict({k: v for k, v in network.state_dict().items() if "arbiter" not in k})
    x, _ = seen()
    wide = torch.cat((x, x.flip(2)), 2)
    cards = tiny_card(config=WITH, channels=KNOWN_CHANNELS, patch_zyx=tuple(x.shape[2:]))
    one, other = (Predictor(network=n, card=cards, digest="0" * 64) for n in (network, bare))
    shown = wide[0].numpy()
    windows = Windows.over(shown.shape[1:], cards.patch_zyx)
    found = one._logits(shown, windows, None, lambda note: None)
    drawn = torch.from_numpy(other._logits(shown, windows, None, lambda note: None))[None, None]
    with torch.no_grad():
        wanted = difference(network.arbiter(wide, torch.cat((-drawn, drawn), 1) / 2))
        apart = difference(network(x))
    assert np.allclose(found, wanted[0].numpy(), atol=1e-5)
    assert not np.allclose(found[: x.shape[2] // 2], apart[0, : x.shape[2] // 2], atol=1e-3)


def undecided_no_more(state: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.randn_like(value) * 0.3 for name, value in state.items()}


def lessons(*, followed_is_right: bool) -> list[Lesson]:
    """Of two balls one is the label: the one that follows, or the one that was drawn."""
    found = []
    for seed in range(6):
        g = np.random.default_rng(seed)
        axes = np.meshgrid(*(np.arange(n) - n / 2 for n in PATCH), indexing="ij")
        one, other = (
            5
            - np.sqrt(
                sum((axis - at) ** 2 for axis, at in zip(axes, g.normal(0, 2, 3), strict=True))
            )
            for _ in range(2)
        )
        x = torch.from_numpy(g.normal(0, 0.3, (1, CHANNELS, *PATCH)).astype(np.float32))
        x[0, FOLLOWED] = torch.from_numpy(one).sigmoid()
        drawn = torch.from_numpy(np.stack((-other, other)) / 2)[None].float()
        label = torch.from_numpy((one if followed_is_right else other) > 0)[None].float()
        question = tuple(part.half() for part in asked(x, drawn))
        found.append(Lesson(asked=question, label=label))
    return found


@pytest.mark.parametrize("followed_is_right", [True, False])
def test_it_learns_who_is_right(followed_is_right: bool) -> None:
    settings = ArbiterSettings(width=4, steps=60, learning_rate=0.1, average=0.8)
    taught = lessons(followed_is_right=followed_is_right)
    arbiter = learn(taught, settings)
    again = learn(taught, settings)
    for one, other in zip(arbiter.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    for lesson in taught:
        seen_by_it, drawn, followed = (part.float() for part in lesson.asked)
        with torch.no_grad():
            decided = arbiter.decide(seen_by_it, drawn, followed)
        right, wrong = (followed, drawn) if followed_is_right else (drawn, followed)
        border = (right - wrong).abs() > 1
        away = ((decided - right) / (wrong - right))[border]
        assert float(away.median()) < 0.3  # at birth: a half


def test_it_is_made_surer_of_what_it_learned() -> None:
    taught = lessons(followed_is_right=True)
    as_learned, surer = (
        learn(taught, ArbiterSettings(width=4, steps=5, sharpness=sharpness))
        for sharpness in (1.0, 2.0)
    )
    for (name, one), other in zip(as_learned.named_parameters(), surer.parameters(), strict=True):
        assert torch.equal(other, one * (2.0 if name.startswith("share") else 1.0))


def test_a_model_with_one_is_made_of_a_model_without(tmp_path: Path) -> None:
    tiny_model(tmp_path / "first")
    settings = ArbiterSettings(
        width=4,
        steps=3,
        samples=SampleSettings(spacing_zyx_mm=(3.0,) * 3, patch_zyx=PATCH, margin_mm=9.0),
    )
    samples = [patch_sample(seed=seed) for seed in range(2)]
    made = teach(tmp_path / "first", samples, settings, tmp_path / "out", facts={"samples": 2})
    network, card, _ = load_model(tmp_path / "out")
    assert card.channels == KNOWN_CHANNELS
    assert card.weights_sha256 == made.weights_sha256
    assert card.training["arbiter"]["samples"] == 2
    before, before_card, digest = load_model(tmp_path / "first")
    assert card.training["arbiter"]["beside"] == digest
    assert card.training["cts"] == ["ct-0"]
    assert card.training["data"] == before_card.training["data"]
    x, _ = seen()
    drawing: Any = network
    with torch.no_grad():
        wanted = drawing.arbiter(x, before(x[:, :2]))
        assert torch.allclose(network(x), wanted, atol=2e-2)  # weights went through float16
    there = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    with pytest.raises(OSError, match="not empty"):
        teach(tmp_path / "first", samples, settings, tmp_path / "first", facts={})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == there
    with pytest.raises(InputError, match="without one"):
        teach(tmp_path / "out", samples, settings, tmp_path / "again", facts={})


def test_another_networks_model_is_refused(tmp_path: Path) -> None:
    bot = UMambaConfig(
        features=TINY.features,
        kernels=TINY.kernels,
        strides=TINY.strides,
        blocks=TINY.blocks,
        decoder_blocks_asked=TINY.decoder_blocks_asked,
    )
    card = tiny_card(network="umamba-bot", config=bot)
    save_model(tmp_path, build("umamba-bot", bot), card, dtype=torch.float32)
    with pytest.raises(InputError, match="this is a umamba-bot"):
        teach(tmp_path, [], ArbiterSettings(), tmp_path / "out", facts={})
