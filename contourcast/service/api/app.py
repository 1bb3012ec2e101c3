"""The HTTP API: validate, start, answer. Long work is a job of the worker's, never a request's."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from contourcast.service import problems
from contourcast.service.api.context import Context, in_thread
from contourcast.service.api.routes import health, instances, propagations, reviews
from contourcast.service.jobs.network import served_network
from contourcast.service.problems import ForeignPageError, document_for, problem_of, respond
from contourcast.service.records import open_records
from contourcast.service.review.decisions import Reviews
from contourcast.service.settings import ServiceSettings

ROUTES = (instances, propagations, reviews, health)


def create_app(settings: ServiceSettings) -> FastAPI:
    """The application over the database and the store of the settings."""
    records = open_records(settings, role="api")
    context = Context(
        settings=settings,
        records=records,
        served_network=served_network(settings),
        reviews=Reviews(records),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await in_thread(records.archive.discard_incoming)
        yield
        records.close()

    app = FastAPI(
        title="Contourcast",
        summary="Carries a tumour's contour from the planning CT to each day's cone-beam CT.",
        description="Not a medical device. Every contour is a proposal that a person must check.",
        version="1",
        lifespan=lifespan,
        responses=document_for(422, 500),
    )
    app.add_middleware(_OwnPagesOnly)
    problems.install(app)
    for part in ROUTES:
        app.include_router(part.routes(context))
    return app


class _OwnPagesOnly:
    """Other sites' pages may not make a browser on this machine act here."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application for those who mean this machine."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin, host = headers.get("origin"), headers.get("host", "")
            foreign = origin is not None and origin.split("://")[-1] != host
            if foreign or not _is_this_machine(host):
                error = ForeignPageError(
                    "the request comes from another site, or names another machine",
                    remedy="call the service by its loopback address",
                )
                await respond(problem_of(error, instance=scope["path"]))(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _is_this_machine(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return name in ("localhost", "[::1]") or name.startswith("127.")


def main() -> None:
    """Writes the OpenAPI document, as it stands in docs/openapi.json."""
    with tempfile.TemporaryDirectory() as folder:
        document = create_app(ServiceSettings(data_folder=Path(folder))).openapi()
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
