"""Traces: off unless an endpoint is set; then a span for each request, and nothing of a patient."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from contourcast.service.api.app import create_app
from contourcast.service.api.tracing import ENDPOINT, tracer_provider
from contourcast.service.problems import SettingsError
from contourcast.service.settings import ServiceSettings
from support.http import served

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
            with served(create_app(ServiceSettings(data_folder=folder))) as http:
                answer = http.get("/v1/series/ZZQQ-LEAK", headers={"traceparent": PARENT})
                assert answer.status_code == 404
                assert answer.headers["traceparent"].split("-")[1] == PARENT.split("-")[1]
                assert answer.headers["traceparent"].split("-")[2] != PARENT.split("-")[2]
        finally:
            collector.shutdown()
            thread.join()
    sent = b"".join(bodies)
    assert b"GET /v1/series/{uid}" in sent
    assert bytes.fromhex(PARENT.split("-")[1]) in sent
    assert b"ZZQQ" not in sent
