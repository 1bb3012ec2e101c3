"""The shipped nginx configuration: it is one, and nothing is held back on its way through."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support.certificates import self_signed
from support.data import REPOSITORY, peer
from support.orthanc import free_ports

pytestmark = pytest.mark.peer
SHIPPED = REPOSITORY / "deploy" / "nginx" / "contourcast.conf"
SECRET = "ZZQQ-LEAK"


@contextmanager
def nginx(folder: Path, upstream: int) -> Iterator[int]:
    """nginx with the shipped configuration, but for ports and paths; its port."""
    (port,) = free_ports(1)
    certificate, key = self_signed(folder)
    text = SHIPPED.read_text()
    for shipped, ours in {
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        "127.0.0.1:8000": f"127.0.0.1:{upstream}",
        "/etc/contourcast/tls/certificate.pem": str(certificate),
        "/etc/contourcast/tls/key.pem": str(key),
        "/var/log/nginx/": f"{folder}/",
    }.items():
        assert shipped in text
        text = text.replace(shipped, ours)
    (folder / "contourcast.conf").write_text(text)
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"{'user root;' if Path.home() == Path('/root') else ''}\n"
        f"pid {folder}/nginx.pid;\ndaemon off;\nevents {{}}\n"
        f"http {{\n{places}include {folder}/contourcast.conf;\n}}\n"
    )
    program = [peer("nginx"), "-p", str(folder), "-e", str(folder / "start.log"), "-c", str(main)]
    tested = subprocess.run([*program, "-t"], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr
    assert "warn" not in tested.stderr
    process = subprocess.Popen(program)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)


def connected(port: int, certificate: Path) -> ssl.SSLSocket:
    """A TLS connection, once somebody listens."""
    tls = ssl.create_default_context(cafile=certificate)
    while True:
        with suppress(ConnectionRefusedError):
            return tls.wrap_socket(
                socket.create_connection(("127.0.0.1", port), timeout=20),
                server_hostname="127.0.0.1",
            )


def receive(connection: socket.socket, count: int) -> None:
    """So many bytes, or an error."""
    while count:
        piece = connection.recv(count)
        assert piece, "the connection was closed"
        count -= len(piece)


def head_of(connection: socket.socket) -> bytes:
    """What comes up to the end of a head."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        assert piece, head
        head += piece
    return head


def test_nothing_waits_for_the_end_of_an_upload_or_of_a_stream_of_events(tmp_path: Path) -> None:
    half_arrived, event_seen = threading.Event(), threading.Event()
    heads: list[bytes] = []

    def service(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(20)
            heads.append(head_of(connection))
            receive(connection, 1000)
            half_arrived.set()
            receive(connection, 1000)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                b"Content-Length: 22\r\n\r\ndata: one\n\n"
            )
            assert event_seen.wait(20)
            connection.sendall(b"data: two\n\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=service, args=(listening,), daemon=True)
        thread.start()
        with (
            nginx(tmp_path, listening.getsockname()[1]) as port,
            connected(port, tmp_path / "certificate.pem") as client,
        ):
            client.sendall(
                b"POST /v1/propagations/1/events?PatientID=" + SECRET.encode() + b" HTTP/1.1\r\n"
                b"Host: here:8443\r\nX-Forwarded-User: admin\r\nContent-Length: 2000\r\n\r\n"
            )
            client.sendall(bytes(1000))
            assert half_arrived.wait(20), "nginx keeps the upload until it is whole"
            client.sendall(bytes(1000))
            assert b" 200 " in head_of(client)
            assert client.recv(100) == b"data: one\n\n"
            event_seen.set()
            assert client.recv(100) == b"data: two\n\n"
        thread.join()
    assert b"\r\nHost: here:8443\r\n" in heads[0], "as the origin of a page says it"
    assert b"admin" not in heads[0]
    assert b"X-Forwarded-For: 127.0.0.1\r\n" in heads[0]
    logs = (tmp_path / "contourcast.log").read_text()
    assert "POST /v1/propagations/1/events 200" in logs
    assert SECRET not in logs + (tmp_path / "contourcast.error.log").read_text()


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (f"POST /v1/instances HTTP/1.1\r\nContent-Length: {(2 << 30) + 1}", 413),
        ("GET /metrics HTTP/1.1", 404),
        ("GET /health/ready HTTP/1.1", 404),
        (f"GET /dicom-web/series?PatientID={SECRET} HTTP/1.1", 502),
    ],
)
def test_what_goes_no_further_is_answered_and_logged_without_its_query(
    tmp_path: Path, request_head: str, status: int
) -> None:
    with (
        nginx(tmp_path, free_ports(1)[0]) as port,
        connected(port, tmp_path / "certificate.pem") as client,
    ):
        client.sendall(f"{request_head}\r\nHost: here\r\n\r\n".encode())
        assert head_of(client).startswith(f"HTTP/1.1 {status} ".encode())
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert f" {status} " in logs
    assert SECRET not in logs
