"""Settings come from code, then the environment, then a file; a word that means nothing is told."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from contourcast.service.settings import FILE_VARIABLE, ServiceSettings


def test_code_wins_over_environment_wins_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "contourcast.toml"
    file.write_text('port = 1111\nfiles_limit = 7\ndata_folder = "/srv/scans"\n')
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    monkeypatch.setenv("CONTOURCAST_PORT", "2222")
    found = ServiceSettings(host="::1")
    assert (found.host, found.port, found.files_limit) == ("::1", 2222, 7)
    assert found.data_folder == Path("/srv/scans")


def test_a_misspelt_setting_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "contourcast.toml"
    file.write_text("prot = 1111\n")
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    with pytest.raises(ValidationError, match="prot"):
        ServiceSettings()


def test_settings_cross_to_the_worker_unchanged() -> None:
    settings = ServiceSettings(data_folder=Path("/srv/x"), device="cpu", jobs_at_once=3)
    assert ServiceSettings.model_validate_json(settings.model_dump_json()) == settings


def test_a_zone_is_one_of_the_world_s_and_is_known_by_its_name() -> None:
    settings = ServiceSettings(time_zone="Europe/Zurich")
    summer = datetime(2026, 7, 1, tzinfo=UTC).astimezone(settings.zone)
    assert (summer.hour, summer.strftime("%z")) == (2, "+0200")
    assert ServiceSettings.model_validate_json(settings.model_dump_json()).zone == settings.zone
    assert ServiceSettings().zone is UTC
    for wrong in ("", "Europe", "Europe/Nowhere", "../../etc/passwd", "+02:00"):
        with pytest.raises(ValidationError, match="no time zone is called"):
            ServiceSettings(time_zone=wrong)
