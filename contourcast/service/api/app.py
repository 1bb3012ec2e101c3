"""The HTTP API: validate, start, answer. Long work is a job of the worker's, never a request's."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError

from contourcast.imaging.errors import InputError
from contourcast.service import problems
from contourcast.service.access.audit import guard as guard_audit
from contourcast.service.access.caller import Gate
from contourcast.service.access.guard import Guard
from contourcast.service.access.oidc import Issuer
from contourcast.service.api.conditional import Conditional
from contourcast.service.api.context import Context, Uploads, in_thread
from contourcast.service.api.idempotency import Idempotent
from contourcast.service.api.limits import SmallBodies
from contourcast.service.api.routes import (
    cohorts,
    courses,
    deliveries,
    dicomweb,
    drafts,
    health,
    instances,
    keys,
    methods,
    orthanc,
    page_files,
    pages,
    propagations,
    reviews,
    series,
    session,
    site,
    statistics,
    worklist,
)
from contourcast.service.api.tracing import Traced
from contourcast.service.intake.evidence import Evidence
from contourcast.service.intake.fractions import Fractions
from contourcast.service.intake.rules import SiteRules, read_rules
from contourcast.service.jobs.network import served_network
from contourcast.service.pacs.deliveries import Deliveries
from contourcast.service.problems import document_for, problem_of, respond
from contourcast.service.records import open_records
from contourcast.service.review.decisions import Reviews
from contourcast.service.review.pages import Pages
from contourcast.service.settings import ServiceSettings
from contourcast.service.traces import Trail, tracer_provider

ROUTES = (
    instances,
    series,
    courses,
    propagations,
    pages,
    drafts,
    reviews,
    statistics,
    worklist,
    cohorts,
    deliveries,
    methods,
    orthanc,
    dicomweb,
    session,
    keys,
    site,
    health,
    page_files,
)


def create_app(settings: ServiceSettings) -> FastAPI:
    """The application over the database and the store of the settings."""
    records = open_records(settings, role="api")
    guard_audit(records.index)
    spans = tracer_provider()
    trail = Trail(spans)
    issuer = Issuer(settings.access.oidc) if settings.access.oidc else None
    network = served_network(settings)
    rules = read_rules(settings.rules) if settings.rules else SiteRules()
    context = Context(
        settings=settings,
        records=records,
        served_network=network,
        reviews=Reviews(
            records, Deliveries(records, settings.destinations).plan_signed, rules=rules
        ),
        pages=Pages(records),
        fractions=Fractions(
            Evidence(records.archive),
            records.propagations,
            records.notices,
            rules,
            served_network=network,
            methods=settings.methods or None,
        ),
        issuer=issuer,
        uploads=Uploads(settings.uploads_at_once),
        trail=trail,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await in_thread(records.archive.discard_incoming)
        yield
        records.close()
        await in_thread(trail.close)
        if issuer is not None:
            issuer.close()

    app = FastAPI(
        title="Contourcast",
        summary="Carries a tumour's contour from the planning CT to each day's cone-beam CT.",
        description="Not a medical device. Every contour is a proposal that a person must check.",
        version="1",
        lifespan=lifespan,
        responses=document_for(401, 403, 422, 429, 500),
        redoc_url=None,
    )
    app.add_middleware(SmallBodies, idle_s=settings.upload_idle_s)
    app.add_middleware(Idempotent, index=records.index)
    app.add_middleware(Conditional)
    app.add_middleware(
        Guard,
        gate=Gate(records.index, settings.access, host=settings.host, issuer=issuer),
        each_minute=settings.requests_each_minute,
        internal_port=settings.internal_port,
    )
    if spans is not None:
        app.add_middleware(Traced, provider=spans)
    problems.install(app)

    @app.exception_handler(DataError)
    async def unheard_of(request: Request, _: DataError) -> JSONResponse:
        """Text that no database holds, such as a NUL, names nothing that is here."""
        error = InputError("the request holds text that nothing here can be called")
        return respond(problem_of(error, instance=request.url.path))

    for part in ROUTES:
        app.include_router(part.routes(context))
    return app


def main() -> None:
    """Writes the OpenAPI document, as it stands in docs/openapi.json."""
    with tempfile.TemporaryDirectory() as folder:
        document = create_app(ServiceSettings(data_folder=Path(folder))).openapi()
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
