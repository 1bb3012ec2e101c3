"""The server process: whom it listens to, and that it is alone on its folder."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from contourcast.service.access.keys import make_key
from contourcast.service.access.roles import Role
from contourcast.service.problems import SettingsError
from contourcast.service.server import serve
from contourcast.service.settings import ServiceSettings
from contourcast.service.store.disk import exclusive
from support.records import looking_into


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "scans.example", "", "128.0.0.1"])
def test_beyond_loopback_is_refused_while_there_are_no_credentials(
    host: str, tmp_path: Path
) -> None:
    settings = ServiceSettings(data_folder=tmp_path / "data")
    with pytest.raises(SettingsError, match="no credentials") as refused:
        serve(host=host, port=0, settings=settings)
    assert refused.value.remedy


def test_with_a_key_it_listens_beyond_loopback(tmp_path: Path) -> None:
    settings = ServiceSettings(data_folder=tmp_path)
    with looking_into(tmp_path) as records:
        make_key(records.index, label="first", roles=[Role.ADMIN], days=1)
    with exclusive(tmp_path / "server.lock", wait=False), pytest.raises(SettingsError) as refused:
        serve(host="0.0.0.0", port=0, settings=settings)
    assert "another service" in str(refused.value), "it got past the question of credentials"


def test_two_services_do_not_share_a_folder(tmp_path: Path) -> None:
    settings = ServiceSettings(data_folder=tmp_path)
    with (
        exclusive(tmp_path / "server.lock", wait=False),
        pytest.raises(SettingsError, match="another service runs on the same data folder"),
    ):
        serve(host="127.0.0.1", port=0, settings=settings)


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    settings = ServiceSettings(data_folder=tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} of 127.0.0.1 cannot be had"):
            serve(host="127.0.0.1", port=port, settings=settings)
