"""The server process: whom it listens to, and that it is alone on its folder."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx
import pytest

from contourcast.service.access.keys import make_key
from contourcast.service.access.roles import Role
from contourcast.service.problems import SettingsError
from contourcast.service.server import serve
from contourcast.service.settings import ServiceSettings
from contourcast.service.store.disk import exclusive
from support.records import looking_into
from support.server import Server


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


def test_on_the_internal_port_health_and_metrics_need_no_credential_and_are_all(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    with looking_into(folder) as records:
        make_key(records.index, label="first", roles=[Role.ADMIN], days=1)
    server = Server(folder, "--alone", internal_port="0").start()
    try:
        port = json.loads(next(line for line in server.lines if '"serving"' in line))[
            "internal_port"
        ]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as inside:
            assert inside.get("/health/live").json() == {"status": "live"}
            assert inside.get("/health/ready").status_code == 503, "no worker runs"
            assert "contourcast_queue_depth" in inside.get("/metrics").text
            for path in ("/v1/series", "/v1/nothing", "/docs", "/v1/session/ways"):
                assert inside.get(path).status_code == 404, path
            assert inside.post("/metrics").status_code == 404
        # the port is the connection's, whatever the headers say
        claims = {"Host": f"127.0.0.1:{port}", "X-Forwarded-Port": str(port)}
        assert server.http.get("/metrics", headers=claims).status_code == 401
        assert server.http.get("/health/live").status_code == 200
    finally:
        server.stop()


def test_an_internal_port_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = ServiceSettings(data_folder=tmp_path, internal_port=port)
        with pytest.raises(SettingsError, match=f"port {port} of 127.0.0.1 cannot be had"):
            serve(host="127.0.0.1", port=0, settings=settings)
