"""A server over TLS with a certificate of its own, which keeps what it is sent."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate for loopback, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    written, secret = folder / "certificate.pem", folder / "key.pem"
    written.write_bytes(certificate.public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return written, secret


class Collector:
    """A syslog server that keeps everything."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = certify(folder)
        self.received: list[bytes] = []

    def messages(self) -> list[bytes]:
        """What came, by the lengths that it says itself (RFC 5425 §4.3)."""
        found = []
        for stream in self.received:
            rest = stream
            while rest:
                length, _, rest = rest.partition(b" ")
                found.append(rest[: int(length)])
                rest = rest[int(length) :]
        return found

    def take(self, connection: socket.socket) -> None:
        """One connection, to its end."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        with (
            connection,
            suppress(ssl.SSLError, ConnectionError),
            context.wrap_socket(connection, server_side=True) as secured,
        ):
            stream = b""
            while part := secured.recv(65536):
                stream += part
            self.received.append(stream)


@contextmanager
def collecting(server: Collector) -> Iterator[int]:
    """The port of a running collector; at the end of the block everything has arrived."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stop = threading.Event()

        def accept() -> None:
            while True:
                connection, _ = listening.accept()
                if stop.is_set():
                    connection.close()
                    return
                server.take(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        port = listening.getsockname()[1]
        try:
            yield port
        finally:
            stop.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()
