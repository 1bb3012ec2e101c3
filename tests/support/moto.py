"""moto's imitation of S3, in this process: for machines that have no real server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import boto3
from botocore.config import Config

from support.data import peer_module


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """A server of moto."""

    endpoint: str
    access_key: Final = "contourcast"
    secret_key: Final = "a secret of tests"

    def client(self) -> Any:
        """A plain client, to look and to meddle with."""
        session = boto3.session.Session(self.access_key, self.secret_key, region_name="us-east-1")
        config = Config(s3={"addressing_style": "path"})
        return session.client("s3", endpoint_url=self.endpoint, config=config)


@contextmanager
def moto() -> Iterator[Imitation]:
    """A server for a block."""
    server = peer_module("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Imitation(endpoint=f"http://{host}:{port}")
    finally:
        server.stop()
