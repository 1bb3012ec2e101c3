"""A span for each request, once somebody says where spans go.

It has the route's template, never a path: that may hold what somebody typed. A caller's
``traceparent`` (W3C Trace Context) is continued, and given back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contourcast.service.access.roles import template_of
from contourcast.service.traces import SERVICE, failing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


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
            set_status_on_exception=False,
        ) as span:
            back: dict[str, str] = {}
            self._context.inject(back, set_span_in_context(span))
            set_status: Callable[[str, int], None] = span.set_attribute

            async def told(message: Message) -> None:
                if message["type"] == "http.response.start":
                    set_status("http.response.status_code", message["status"])
                    MutableHeaders(raw=message["headers"]).update(back)
                await send(message)

            with failing(span):
                await self.app(scope, receive, told)
