"""OpenTelemetry: a span for each request, once somebody says where spans go.

The endpoint is OpenTelemetry's own setting, ``OTEL_EXPORTER_OTLP_ENDPOINT``; without it nothing of
the SDK is imported. A span has the route's template, never a path: that may hold what somebody
typed. A caller's ``traceparent`` (W3C Trace Context) is continued, and given back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contourcast.service.access.roles import template_of
from contourcast.service.problems import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
SERVICE: Final = "contourcast"


def tracer_provider() -> TracerProvider | None:
    """Where spans go; None where nobody said so.

    Raises:
        SettingsError: An endpoint is set, and OpenTelemetry is not installed.
    """
    if not os.environ.get(ENDPOINT):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"{ENDPOINT} is set, and OpenTelemetry is not installed",
            remedy="pip install contourcast[tracing], or leave the variable away",
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Traced:
    """Makes a span of each request.

    Args:
        app: The application.
        provider: Where spans go.
    """

    def __init__(self, app: ASGIApp, *, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.app = app
        self._tracer = provider.get_tracer(SERVICE)
        self._context = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application inside a span."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, set_span_in_context

        method = scope["method"]
        template = template_of(method, scope["path"]) or "elsewhere"
        with self._tracer.start_as_current_span(
            f"{method} {template}",
            context=self._context.extract(dict(Headers(scope=scope))),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": template},
            record_exception=False,  # a message may quote what was read
        ) as span:
            back: dict[str, str] = {}
            self._context.inject(back, set_span_in_context(span))
            set_status: Callable[[str, int], None] = span.set_attribute

            async def told(message: Message) -> None:
                if message["type"] == "http.response.start":
                    set_status("http.response.status_code", message["status"])
                    MutableHeaders(raw=message["headers"]).update(back)
                await send(message)

            await self.app(scope, receive, told)
