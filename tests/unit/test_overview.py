from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from contourcast.cli.networks import networks
from contourcast.imaging.errors import InputError
from contourcast.models import overview as module
from contourcast.models.config import NetworkConfig
from contourcast.models.networks import NETWORKS, Entry
from contourcast.models.overview import next_taken, overview, sizes_taken
from contourcast.models.profile import Measured
from contourcast.models.umamba_bot import UMambaConfig
from contourcast.models.umamba_enc import UMambaEncConfig

app = typer.Typer()
app.command()(networks)


class Multiples(NetworkConfig):
    def require_patch(self, shape: tuple[int, ...]) -> None:
        self._require_multiple(shape, 16)
        if shape[0] < 32:
            raise InputError("too small")


class Odd(NetworkConfig):
    def require_patch(self, shape: tuple[int, ...]) -> None:
        if shape[0] not in (7, 9, 20):
            raise InputError("odd tastes")


class Fussy(NetworkConfig):
    def require_patch(self, shape: tuple[int, ...]) -> None:
        raise InputError("no")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (NetworkConfig(), "any from 1"),
        (UMambaConfig(), "any from 33"),
        (UMambaEncConfig(), "128 x 128 x 128 only"),
        (Multiples(), "multiples of 16 from 32"),
        (Odd(), "sides 7, 9, 20 …"),
        (Fussy(), "no cube up to 256"),
    ],
)
def test_what_a_network_takes_is_found_by_asking(config: NetworkConfig, words: str) -> None:
    assert sizes_taken(config) == words


def test_costs_are_told_for_the_next_size_that_is_taken() -> None:
    assert next_taken(Multiples(), 33) == 48
    with pytest.raises(InputError, match="no image of a side from 21"):
        next_taken(Odd(), 21)


def test_the_row_of_a_network_that_belongs_to_its_patch_is_of_the_patch_asked_for() -> None:
    (row,) = overview(["umamba-enc"], side=64)
    assert row.parameters == 42_077_290
    assert row.takes == "64 x 64 x 64 only"


def test_a_network_is_weighed_and_run_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(network: Any, shape: tuple[int, ...]) -> Measured:
        assert shape == (1, 2, 64, 64, 64)
        assert {p.device.type for p in network.parameters()} == {"cpu"}
        return Measured(seconds=1.5, peak_mb=300.0)

    monkeypatch.setattr(module, "measured", run)
    (bare,) = overview(["umamba-bot"], side=64)
    assert (bare.parameters, bare.seconds, bare.peak_mb) == (42_121_290, None, None)
    assert bare.gigaflops == pytest.approx(243, rel=0.02)  # NETWORKS §1; ours does 1 x 1 earlier
    (run_too,) = overview(["umamba-bot"], side=64, measure=True)
    assert (run_too.seconds, run_too.peak_mb) == (1.5, 300.0)


def test_a_package_that_is_missing_is_named_and_the_other_rows_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: Entry) -> type[NetworkConfig]:
        if self.needs:
            raise InputError(f"this network needs the package {self.needs}")
        return UMambaConfig

    monkeypatch.setattr(Entry, "config_kind", property(refuse))
    result = CliRunner().invoke(app, ["segresnet", "--side", "64"])
    assert result.exit_code == 0
    assert "(needs monai)" in result.stdout


def test_the_table_has_a_line_for_each_and_json_the_same_figures() -> None:
    table = CliRunner().invoke(app, ["umamba-bot", "diff-umamba", "--side", "64"]).stdout
    heading, bot, diff = table.splitlines()
    assert heading.split()[:3] == ["network", "status", "parameters"]
    assert bot.split()[:3] == ["umamba-bot", "peer", "42,121,290"]
    assert diff.split()[:3] == ["diff-umamba", "main", "43,054,735"]
    assert diff.endswith("any from 33")
    rows = json.loads(CliRunner().invoke(app, ["umamba-bot", "--side", "64", "--json"]).stdout)
    assert [row["parameters"] for row in rows] == [42_121_290]


def test_every_network_of_the_table_says_what_it_is_for() -> None:
    assert {line.status for line in NETWORKS.values()} <= {"main", "peer", "experimental"}
    assert [name for name, line in NETWORKS.items() if line.status == "main"] == ["diff-umamba"]
