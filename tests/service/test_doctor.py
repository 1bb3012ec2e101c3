"""What `contourcast doctor` says of the service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from contourcast.cli import app


def findings() -> dict[str, str]:
    ran = CliRunner().invoke(app, ["doctor", "--json"])
    assert ran.exit_code == 0, ran.output
    told: dict[str, str] = json.loads(ran.output)
    return told


def test_it_says_where_patients_will_lie_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTOURCAST_DATA_FOLDER", str(tmp_path / "data"))
    told = findings()
    assert told["data"].startswith(f"{tmp_path}: ")
    assert told["database"] == "SQLite, embedded"
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTOURCAST_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:9/none")
    assert "does not answer" in findings()["database"]
