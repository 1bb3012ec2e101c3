"""OpenTelemetry: where spans go, once somebody says so, and one trace for each propagation.

The endpoint is OpenTelemetry's own setting, ``OTEL_EXPORTER_OTLP_ENDPOINT``; without it nothing of
the SDK is imported, and nothing is collected.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Final

from contourcast.service.problems import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
SERVICE: Final = "contourcast"

# What the next span without a parent is called, instead of at random: trace and span.
_named: ContextVar[tuple[int, int] | None] = ContextVar("_named", default=None)


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
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    except ImportError as error:
        raise SettingsError(
            f"{ENDPOINT} is set, and OpenTelemetry is not installed",
            remedy="pip install contourcast[tracing], or leave the variable away",
        ) from error

    class Ids(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            named = _named.get()
            return named[0] if named else super().generate_trace_id()

        def generate_span_id(self) -> int:
            named = _named.get()
            return named[1] if named else super().generate_span_id()

    provider = TracerProvider(
        resource=Resource.create({"service.name": SERVICE}), id_generator=Ids()
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Trail:
    """What happened to each propagation, in whichever process: one trace, from its first instance.

    Trace and root follow from the propagation's own ID, so that nobody has to hand them on. What is
    told of it names no patient: a propagation's ID is a digest.

    Args:
        provider: Where spans go; None: nowhere.
    """

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider

    @contextmanager
    def span(self, propagation: str, name: str, **told: str) -> Iterator[None]:
        """Something that is done for it, while the block lasts."""
        if self._provider is None:
            yield
            return
        from opentelemetry.trace import (
            NonRecordingSpan,
            SpanContext,
            TraceFlags,
            set_span_in_context,
        )

        trace_id, span_id = _identity(propagation)
        root = SpanContext(
            trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
        )
        with (
            self._provider.get_tracer(SERVICE).start_as_current_span(
                name,
                context=set_span_in_context(NonRecordingSpan(root)),
                attributes={"propagation": propagation, **told},
                record_exception=False,  # a message may quote what was read
                set_status_on_exception=False,
            ) as span,
            failing(span),
        ):
            yield

    def whole(self, propagation: str, ask: Callable[[str], tuple[datetime, str]]) -> None:
        """The root, once its last step is done: from the first instance to now.

        Args:
            propagation: Its ID.
            ask: When it began, and its state now; asked only where spans go anywhere.
        """
        if self._provider is None:
            return
        from opentelemetry.context import Context

        began, state = ask(propagation)
        named = _named.set(_identity(propagation))
        try:
            self._provider.get_tracer(SERVICE).start_span(
                "propagation",
                context=Context(),
                start_time=round(began.timestamp() * 1e9),
                attributes={"propagation": propagation, "state": state},
            ).end()
        finally:
            _named.reset(named)

    def close(self) -> None:
        """Sends what is left."""
        if self._provider is not None:
            self._provider.shutdown()


@contextmanager
def failing(span: Span) -> Iterator[None]:
    """Whatever is raised in the block, the span says that it failed, and as what."""
    from opentelemetry.trace import Status, StatusCode

    try:
        yield
    except BaseException as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR))
        raise


def _identity(propagation: str) -> tuple[int, int]:
    """Trace and root span, never zero."""
    digest = hashlib.sha256(f"trace of {propagation}".encode()).digest()
    return int.from_bytes(digest[:16]) | 1, int.from_bytes(digest[16:24]) | 1
