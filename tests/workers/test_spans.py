"""Spans of a request and of the work for it, linked through the queue."""

import http.server
import subprocess
import sys
import threading

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.main import create_app
from tests.app.conftest import WAIT, serving, settings_for, working
from tests.fake_engine import FakeEngine
from tests.waiting import wait_until
from workers.otel import load_spans
from workers.settings import SettingsError
from workers.spans import Spans
from workers.traces import new_trace

CLIENT = f"00-{'4bf92f3577b34da6' * 2}-00f067aa0ba902b7-"


@pytest.fixture
def traced(redis_url, tmp_path, monkeypatch):
    """The client of a service, and what its API and its worker have recorded."""
    monkeypatch.delenv("OTEL_TRACES_SAMPLER", raising=False)
    exporters = InMemorySpanExporter(), InMemorySpanExporter()
    api, worker = (Spans(SimpleSpanProcessor(each), "test") for each in exporters)
    settings = settings_for(tmp_path, redis_url)
    with serving(create_app(settings, api)) as client, working(settings, FakeEngine(), spans=worker):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client, exporters
    api.close()
    worker.close()


def spans_of(exporter: InMemorySpanExporter, number: int) -> list[ReadableSpan]:
    wait_until(lambda: len(exporter.get_finished_spans()) >= number)
    return list(exporter.get_finished_spans())


def test_the_work_for_a_request_is_below_its_span_and_that_below_its_clients(traced):
    client, (api, worker) = traced
    headers = {**WAIT, "traceparent": f"{CLIENT}01", "X-Request-Id": "order-1"}
    job = client.post("/generate", json={"seed": 1}, headers=headers).json()

    (request,) = spans_of(api, 1)
    assert request.name == "POST /generate"
    assert f"{request.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert request.attributes["smalti.request_id"] == "order-1"
    assert request.attributes["http.response.status_code"] == 200
    work = spans_of(worker, 3)
    assert [span.name for span in work] == ["queue", "compute", "store"]
    for span in work:
        assert f"{span.context.trace_id:032x}" == "4bf92f3577b34da6" * 2
        assert span.parent.span_id == request.context.span_id
        assert span.attributes["smalti.job_id"] == job["id"]
        assert span.attributes["smalti.ended"] == "succeeded"
    times = [work[0].start_time, *(span.end_time for span in work)]
    assert times == sorted(times)
    assert request.start_time <= times[0]


def test_a_request_of_no_trace_begins_one(traced):
    client, (api, worker) = traced
    client.post("/generate", json={"seed": 1}, headers=WAIT)
    (request,) = spans_of(api, 1)
    assert request.parent is None
    assert {span.context.trace_id for span in spans_of(worker, 3)} == {request.context.trace_id}


def test_what_its_client_does_not_sample_and_what_watches_is_not_recorded(traced):
    client, exporters = traced
    client.post("/generate", json={"seed": 1}, headers={**WAIT, "traceparent": f"{CLIENT}00"})
    client.get("/health/live")
    client.get("/metrics")
    client.post("/generate", json={"seed": 1}, headers=WAIT)
    spans_of(exporters[1], 3)
    assert [len(spans_of(each, 1)) for each in exporters] == [1, 3]


def test_a_request_that_is_not_sampled_has_no_work_recorded_either(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    spans = Spans(SimpleSpanProcessor(InMemorySpanExporter()), "test")
    assert not spans.is_sampled(new_trace(None, None))
    assert spans.is_sampled(new_trace(None, f"{CLIENT}01"))
    spans.close()


def test_spans_are_sent_by_otlp_to_where_the_environment_says(monkeypatch):
    received = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        spans = load_spans("otlp", "smalti-test")
        trace = new_trace(None, None)
        spans.record_request(trace, "GET /", 1.0, {}, failed=True)
        spans.close()
        server.shutdown()
        thread.join()
    ((path, body),) = received
    assert path == "/v1/traces"
    assert bytes.fromhex(trace.trace_id) in body
    assert b"smalti-test" in body


def test_without_the_extra_all_goes_on_and_the_setting_says_what_is_missing(monkeypatch):
    script = """
import sys
sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.exporter"] = None  # FastAPI has the API
import app.main, workers.worker
print("workers.spans" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
    assert load_spans("off", "test") is None
    monkeypatch.setitem(sys.modules, "workers.spans", None)
    with pytest.raises(SettingsError, match=r"smalti\[otel\]"):
        load_spans("otlp", "test")
