"""Keys, accounts and the audit log from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
from sqlalchemy import text
from typer.testing import CliRunner, Result

from contourcast.cli.access import accounts, keys
from contourcast.cli.audit import audit
from contourcast.service.access.accounts import list_accounts, sign_in
from contourcast.service.access.audit import rows
from contourcast.service.access.keys import find_key
from contourcast.service.access.roles import Role
from contourcast.service.index.database import Index
from contourcast.service.problems import UnauthorizedError
from support.access import PASSWORD
from support.tls import Collector, collecting


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    monkeypatch.setenv("CONTOURCAST_DATA_FOLDER", str(tmp_path / "data"))
    made = run(keys, "list")
    assert made.exit_code == 0, made.output
    opened = Index(f"sqlite:///{tmp_path / 'data' / 'index.sqlite3'}")
    yield opened
    opened.close()


def run(app: typer.Typer, *words: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, list(words), input=typed)


def did(index: Index) -> list[str]:
    return [row.happening["action"] for row in rows(index)]


def test_a_key_is_printed_once_and_listed_without_its_secret(index: Index) -> None:
    made = run(keys, "make", "linac 2", "--role", "uploader", "--role", "viewer", "--days", "30")
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    found = find_key(index, secret)
    assert found is not None
    assert found.roles == {Role.UPLOADER, Role.VIEWER}
    listed = run(keys, "list").stdout
    assert found.id in listed
    assert "linac 2" in listed
    assert secret not in listed
    assert run(keys, "revoke", found.id).exit_code == 0
    assert find_key(index, secret) is None
    assert "revoked" in run(keys, "list").stdout
    assert did(index) == ["contourcast keys make", "contourcast keys revoke"]


@pytest.mark.parametrize(
    "words",
    [
        ("make", "x", "--role", "internal"),
        ("make", "x", "--role", "king"),
        ("make", "", "--role", "viewer"),
        ("revoke", "nothing"),
    ],
)
def test_what_cannot_be_is_one_line(index: Index, words: tuple[str, ...]) -> None:
    refused = run(keys, *words)
    assert refused.exit_code in (1, 2)
    assert refused.stderr.startswith("contourcast: ")
    assert refused.stderr.count("\n") == 1
    assert did(index) == []


def test_an_account_is_made_changed_and_disabled(index: Index) -> None:
    made = run(accounts, "make", "ann", "--role", "reviewer", typed=PASSWORD + "\n")
    assert made.exit_code == 0, made.output
    assert sign_in(index, "ann", PASSWORD).roles == {Role.REVIEWER}
    other = "eight large red plums"
    assert run(accounts, "password", "ann", typed=other + "\n").exit_code == 0
    assert sign_in(index, "ann", other).name == "ann"
    assert "ann  reviewer  open" in run(accounts, "list").stdout
    for _ in range(5):
        with pytest.raises(UnauthorizedError):
            sign_in(index, "ann", PASSWORD)
    assert "waits until" in run(accounts, "list").stdout
    assert run(accounts, "disable", "ann").exit_code == 0
    assert "disabled" in run(accounts, "list").stdout
    assert list_accounts(index)[0].disabled_at is not None
    assert PASSWORD not in " ".join(row.line() for row in rows(index))


def test_the_log_is_verified_and_exported_in_both_forms(index: Index, tmp_path: Path) -> None:
    run(keys, "make", "x", "--role", "viewer")
    assert run(audit, "verify").stdout == "the audit log holds\n"
    lines = run(audit, "export").stdout
    (tmp_path / "kept.jsonl").write_text(lines)
    assert [json.loads(line)["number"] for line in lines.splitlines()] == [1, 2]
    messages = run(audit, "export", "--form", "dicom", "--after", "1").stdout.splitlines()
    assert {ElementTree.fromstring(line).tag for line in messages} == {"AuditMessage"}
    held = run(audit, "verify", "--against", str(tmp_path / "kept.jsonl"))
    assert held.exit_code == 0, held.output
    assert did(index) == ["contourcast keys make", *["contourcast audit export"] * 2]


def test_a_changed_row_is_an_exit_code(index: Index) -> None:
    run(keys, "make", "x", "--role", "viewer")
    with index.write() as connection:
        connection.execute(text("DROP TRIGGER audit_no_update"))
        connection.execute(text("UPDATE audit SET at = 'never'"))
    found = run(audit, "verify")
    assert found.exit_code == 1
    assert found.stderr == (
        "contourcast: row 1 of the audit log: it was changed after it was written\n"
    )


def test_the_log_is_forwarded(index: Index, tmp_path: Path) -> None:
    run(keys, "make", "x", "--role", "viewer")
    server = Collector(tmp_path)
    with collecting(server) as port:
        sent = run(
            audit, "forward", "localhost", "--port", str(port), "--authority",
            str(server.certificate),
        )  # fmt: skip
    assert sent.stdout == "1 rows sent\n", sent.output
    assert len(server.messages()) == 1
    with collecting(server) as port:
        refused = run(audit, "forward", "localhost", "--port", str(port))
    assert refused.exit_code == 1
    assert "syslog server" in refused.stderr


def test_the_role_is_printed_as_sql() -> None:
    printed = run(audit, "role", "contourcast_service").stdout
    assert "REVOKE UPDATE, DELETE, TRUNCATE ON TABLE audit FROM contourcast_service;" in printed
