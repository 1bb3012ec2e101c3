"""What docs/security.md tells a site to write is what the settings read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from contourcast.service.access.roles import Role
from contourcast.service.settings import FILE_VARIABLE, ServiceSettings
from support.data import REPOSITORY

PAGE = (REPOSITORY / "docs" / "security.md").read_text("utf-8")


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
def test_each_block_of_the_page_is_taken(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.toml").write_text(block)
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "settings.toml"))
    written = tomllib.loads(block)["access"]
    read = ServiceSettings().access
    assert read.model_fields_set == set(written)
    if read.oidc is not None:
        assert set(read.oidc.roles.values()) == {Role.REVIEWER, Role.ADMIN, Role.AUDITOR}


def test_the_page_s_environment_variable_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    name, value = re.findall(r"`(CONTOURCAST_ACCESS)='([^']*)'`", PAGE)[0]
    monkeypatch.setenv(name, value)
    assert ServiceSettings().access.local_accounts


def test_a_worker_gets_the_settings_that_the_server_has() -> None:
    block = re.findall(r"```toml\n(\[access\.oidc\].*?)```", PAGE, re.DOTALL)[0]
    oidc = tomllib.loads(block)["access"]["oidc"]
    settings = ServiceSettings(
        access={  # type: ignore[arg-type]
            "oidc": oidc,
            "proxy_addresses": ["10.0.0.1"],
            "identities": {"CN=x": ["viewer", "uploader"]},
        }
    )
    assert ServiceSettings.model_validate_json(settings.model_dump_json()) == settings


def test_every_role_of_the_page_is_one_and_every_one_is_on_the_page() -> None:
    table = PAGE.partition("## Roles")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(Role) - {Role.INTERNAL}


def test_every_command_of_the_page_exists() -> None:
    from contourcast.cli.access import accounts, keys
    from contourcast.cli.audit import audit

    known = {
        group: {
            command.name or getattr(command.callback, "__name__", "")
            for command in app.registered_commands
        }
        for group, app in (("keys", keys), ("accounts", accounts), ("audit", audit))
    }
    named = re.findall(r"^    contourcast (\w+) (\w+)", PAGE, re.MULTILINE)
    assert named
    for group, command in named:
        assert command in known[group], (group, command)
