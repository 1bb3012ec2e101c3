"""Traces: off unless an endpoint is set; then a span for each request, and nothing of a patient."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from contourcast.imaging.errors import InputError
from contourcast.service.api.app import create_app
from contourcast.service.problems import SettingsError
from contourcast.service.settings import ServiceSettings
from contourcast.service.traces import ENDPOINT, Trail, tracer_provider
from support.course import make_course
from support.http import served
from support.server import serving

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_without_an_endpoint_there_are_none(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    assert tracer_provider() is None
    with served(create_app(ServiceSettings(data_folder=folder))) as http:
        assert "traceparent" not in http.get("/health/live").headers


def test_an_endpoint_without_the_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(SettingsError, match="not installed"):
        tracer_provider()


def test_a_caller_s_trace_goes_on_and_spans_name_templates_alone(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="pip install contourcast[tracing]")

    def broken(*_: object) -> None:
        raise RuntimeError("ZZQQ-LEAK cannot be read")

    monkeypatch.setattr("contourcast.service.archive.Archive.series", broken)
    with (
        collecting(monkeypatch) as bodies,
        served(create_app(ServiceSettings(data_folder=folder))) as http,
    ):
        answer = http.get("/v1/series/ZZQQ-LEAK", headers={"traceparent": PARENT})
        assert answer.status_code == 404
        assert answer.headers["traceparent"].split("-")[1] == PARENT.split("-")[1]
        assert answer.headers["traceparent"].split("-")[2] != PARENT.split("-")[2]
        assert http.get("/v1/series").status_code == 500
    sent = b"".join(bodies)
    assert b"GET /v1/series/{uid}" in sent
    assert bytes.fromhex(PARENT.split("-")[1]) in sent
    assert b"ZZQQ" not in sent


def test_of_a_propagation_there_is_one_trace_in_whatever_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="pip install contourcast[tracing]")
    came = datetime(2026, 1, 6, 8, 0, tzinfo=UTC)
    with collecting(monkeypatch) as bodies:
        for process in ("first", "second"):
            trail = Trail(tracer_provider())
            with trail.span("p1", "draw", method="rigid"):
                pass
            with contextlib.suppress(InputError), trail.span("p2", "register"):
                raise InputError("ZZQQ-LEAK cannot be read")
            if process == "second":
                trail.whole("p1", lambda _: (came, "awaiting_review"))
            trail.close()
    assert b"ZZQQ" not in b"".join(bodies)
    spans = spans_in(bodies)
    (root,) = (span for span in spans if span.name == "propagation")
    assert not root.parent_span_id
    assert root.start_time_unix_nano == came.timestamp() * 1e9
    drawn = [span for span in spans if span.name == "draw"]
    assert len(drawn) == 2
    assert {(span.trace_id, span.parent_span_id) for span in drawn} == {
        (root.trace_id, root.span_id)
    }
    assert len({span.span_id for span in spans}) == len(spans)
    assert {span.trace_id for span in spans if span.name == "register"} != {root.trace_id}


def test_a_running_service_tells_of_each_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="pip install contourcast[tracing]")
    course = make_course(tmp_path / "course")
    with collecting(monkeypatch) as bodies:
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # ms
        with serving(tmp_path / "data") as server:
            server.send(course)
            server.done(server.ask(course))
            deadline = time.monotonic() + 30
            while "end" not in {s.name for s in spans_in(bodies)} and time.monotonic() < deadline:
                time.sleep(0.1)
        spans = spans_in(bodies)
    (root,) = (span for span in spans if span.name == "propagation")
    steps = [span for span in spans if span.parent_span_id == root.span_id]
    assert sorted(span.name for span in steps) == sorted(
        ["register", "draw", "draw", "finish", "end"]
    )
    assert {span.trace_id for span in steps} == {root.trace_id}
    assert all(span.start_time_unix_nano > root.start_time_unix_nano for span in steps)


def test_without_an_endpoint_nothing_is_asked_and_nothing_told() -> None:
    trail = Trail(None)
    with trail.span("p1", "draw"):
        trail.whole("p1", ask=lambda _: pytest.fail("nobody asked"))
    trail.close()


def spans_in(bodies: Sequence[bytes]) -> list[Any]:
    """The spans of OTLP requests."""
    trace = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    return [
        span
        for body in bodies
        for one in trace.ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in one.scope_spans
        for span in scope.spans
    ]


@contextlib.contextmanager
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What a collector is sent while the block lasts."""
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        try:
            yield bodies
        finally:
            collector.shutdown()
            thread.join()
