"""The server process: HTTP here, everything else in child processes of their own."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Final

import structlog

from contourcast.service.children import child
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
        SettingsError: The address is not loopback, or another service has the data folder or port.
    """
    import uvicorn

    from contourcast.service.api.app import create_app

    require_loopback(host)
    configure_logging(settings.log_level)
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    with (
        exclusive(settings.data_folder / "server.lock", wait=False),
        _listening(host, port) as listening,
        contextlib.ExitStack() as beside,
    ):
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
        log.info("serving", url=f"http://{_in_url(host)}:{bound}", docs="/docs")
        server.run(sockets=[listening])


def require_loopback(host: str) -> None:
    """Refuses to be reached from other machines while nobody has to say who they are.

    Raises:
        SettingsError: The address is not one of this machine alone.
    """
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host == "localhost":
        return
    raise SettingsError(
        f"the service does not listen on '{host}': it has no credentials yet, so whoever reached it"
        " would see patients' data",
        remedy="listen on 127.0.0.1 and reach it through ssh or a proxy that asks for credentials",
    )


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
