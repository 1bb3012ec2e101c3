"""The server process: HTTP here, everything else in child processes of their own."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Final

import structlog

from contourcast.service.access.caller import is_loopback, require_credentials_or_loopback
from contourcast.service.children import child
from contourcast.service.index.database import Index
from contourcast.service.logs import configure_logging
from contourcast.service.problems import SettingsError
from contourcast.service.settings import ServiceSettings
from contourcast.service.store.disk import exclusive

WORKER: Final = "contourcast.service.jobs.worker"
NODE: Final = "contourcast.service.dicom_node"

log = structlog.get_logger()


def serve(
    *, host: str, port: int, settings: ServiceSettings, children: Sequence[str] = (WORKER,)
) -> None:
    """Serves until it is stopped.

    Args:
        host: Address to listen on.
        port: 0 takes a free one.
        settings: Of the service.
        children: Modules that run beside it; none where workers and nodes are machines' own.

    Raises:
        SettingsError: The address is not loopback and there is no credential, or another service
            has the data folder or port.
    """
    import uvicorn

    from contourcast.service.api.app import create_app

    _require_credentials(host, settings)
    settings = settings.model_copy(update={"host": host})
    configure_logging(settings.log_level)
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    with (
        exclusive(settings.data_folder / "server.lock", wait=False),
        _listening(host, port) as listening,
        contextlib.ExitStack() as beside,
    ):
        sockets = [listening]
        if settings.internal_port is not None:
            sockets.append(beside.enter_context(_listening(host, settings.internal_port)))
            settings = settings.model_copy(
                update={"internal_port": sockets[-1].getsockname()[1]}  # 0 took a free one
            )
        for module in children:
            beside.enter_context(child(module, settings))
        bound = listening.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(settings),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=3,
            )
        )
        log.info(
            "serving",
            url=f"http://{_in_url(host)}:{bound}",
            docs="/docs",
            internal_port=settings.internal_port,
        )
        server.run(sockets=sockets)


def _require_credentials(host: str, settings: ServiceSettings) -> None:
    """Nothing is made for a service that must not begin; keys may lie in a database that is."""
    if is_loopback(host):
        return
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    index = Index(settings.index_url)
    try:
        require_credentials_or_loopback(host, index, settings.access)
    finally:
        index.close()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise SettingsError(
            f"port {port} of {host} cannot be had ({os.strerror(error.errno or 0).lower()})",
            remedy="stop what listens there, or choose another port: --port",
        ) from error
    with listening:
        # asyncio only does this for sockets that it made itself; without it, 40 ms an answer.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listening


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
