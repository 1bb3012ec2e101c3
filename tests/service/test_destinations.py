"""Destinations as data: what a settings file may say, and where credentials come from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from contourcast.service.pacs.destinations import (
    DimseDestination,
    OrthancDestination,
    WebhookDestination,
    by_name,
    require_ready,
    secret,
)
from contourcast.service.pacs.profiles import DEFAULT, PROFILES, Profile
from contourcast.service.pacs.ways import way_to
from contourcast.service.problems import SettingsError
from contourcast.service.settings import FILE_VARIABLE, ServiceSettings
from support.data import REPOSITORY

PAGE = REPOSITORY / "docs" / "destinations.md"


def settings_of(toml: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceSettings:
    file = folder / "contourcast.toml"
    file.write_text(toml)
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    return ServiceSettings()


def orthanc(**more: Any) -> OrthancDestination:
    return OrthancDestination(name="pacs", url="http://127.0.0.1:8042", **more)


def test_every_example_of_the_page_is_a_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [part.partition("```")[0] for part in PAGE.read_text().split("```toml\n")[1:]]
    assert len(examples) >= 4
    kinds = [
        one.kind
        for example in examples
        for one in settings_of(example, tmp_path, monkeypatch).destinations
    ]
    assert set(kinds) == {"orthanc", "dicomweb", "dimse", "webhook"}


def test_the_environment_may_hold_them_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "CONTOURCAST_DESTINATIONS",
        '[{"kind": "dimse", "name": "tps", "host": "10.0.0.5", "port": 104, "aet": "TPS",'
        ' "profile": "eclipse"}]',
    )
    (one,) = ServiceSettings().destinations
    assert isinstance(one, DimseDestination)
    assert one.written_as is PROFILES["eclipse"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "Ours & theirs"},
        {"profile": "pinnacle"},
        {"profile": {"holes": "filled"}},
        {"verdicts": ["fine"]},
        {"password": "written down"},
        {"password_env": "not a variable"},
        {"kind": "ftp"},
    ],
)
def test_what_nobody_means_is_refused(wrong: dict[str, Any]) -> None:
    sound = {"kind": "orthanc", "name": "pacs", "url": "http://127.0.0.1:8042"}
    ServiceSettings(destinations=[sound])  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        ServiceSettings(destinations=[sound | wrong])  # type: ignore[arg-type]


def test_two_of_one_name_are_refused() -> None:
    assert list(by_name([orthanc()])) == ["pacs"]
    with pytest.raises(SettingsError, match="one name"):
        by_name([orthanc(), orthanc(user="other")])


def test_credentials_are_looked_up_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    one = orthanc(user="contourcast", password_env="PACS_PASSWORD")
    monkeypatch.delenv("PACS_PASSWORD", raising=False)
    with pytest.raises(SettingsError, match="PACS_PASSWORD"):
        require_ready([one])
    monkeypatch.setenv("PACS_PASSWORD", "ZZQQ-LEAK")
    require_ready([one])
    assert secret(one, "PACS_PASSWORD") == "ZZQQ-LEAK"
    assert secret(one, None) == ""
    assert "ZZQQ" not in repr(one) + one.model_dump_json()


def test_a_webhook_needs_its_secret_and_a_node_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOK_SECRET", raising=False)
    hook = WebhookDestination(name="hook", url="http://127.0.0.1/", secret_env="HOOK_SECRET")
    with pytest.raises(SettingsError, match="HOOK_SECRET"):
        require_ready([hook])
    require_ready([DimseDestination(name="node", host="x", port=104, aet="X")])


def test_a_page_of_paper_needs_what_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reportlab", None)
    require_ready([orthanc()])
    with pytest.raises(SettingsError, match="wants a PDF"):
        require_ready([orthanc(pdf=True)])


@pytest.mark.parametrize(
    "url", ["ftp://host/", "http://user:password@host/", "http://host/?to=http://other", "host"]
)
def test_an_address_that_is_none_opens_no_way(url: str) -> None:
    one = OrthancDestination(name="pacs", url=url)
    with pytest.raises(SettingsError, match="pacs"), way_to(one):
        pass


def test_an_ae_title_that_is_none_opens_no_way() -> None:
    one = DimseDestination(name="node", host="127.0.0.1", port=104, aet="LONGER THAN SIXTEEN")
    with pytest.raises(SettingsError, match="AE title"), way_to(one):
        pass


def test_the_default_profile_is_the_writer_s_own() -> None:
    assert PROFILES["default"] == DEFAULT == Profile()
    assert {"default", "eclipse", "raystation"} == set(PROFILES)
