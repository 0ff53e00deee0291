"""Ids of requests and traces: in every answer, and in the lines of the API and the worker."""

import logging
import re

import pytest

from tests.app.conftest import WAIT, problem_of
from tests.app.test_door import connected
from tests.waiting import wait_until
from workers.traces import current_trace

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
MADE = re.compile(r"[0-9a-f]{32}")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health/live"),
        ("GET", "/pipelines"),
        ("HEAD", "/docs"),
        ("OPTIONS", "/generate"),
        ("GET", "/nowhere"),
        ("POST", "/generate"),
        ("GET", "/v1/models/none"),
    ],
)
def test_every_answer_has_the_id_of_its_request(service, method, path):
    made = {service.client.request(method, path).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    assert all(MADE.fullmatch(each) for each in made)
    told = service.client.request(method, path, headers={"X-Request-Id": "a/b:c-1"}).headers
    assert told.get_list("x-request-id") == ["a/b:c-1"]


@pytest.mark.parametrize("bad", ["", "a b", "x" * 65, "é", "a\tb", "<script>", "a,b"])
def test_an_id_that_is_not_sane_is_not_taken(service, bad):
    told = service.client.get("/health/live", headers={"X-Request-Id": bad.encode()}).headers["x-request-id"]
    assert MADE.fullmatch(told)
    twice = service.client.get("/health/live", headers=[("X-Request-Id", "a"), ("X-Request-Id", "b")])
    assert MADE.fullmatch(twice.headers["x-request-id"])


def test_a_failure_has_the_id_of_its_request(service):
    answer = service.client.post("/generate", json={"num_outputs": 65}, headers={"X-Request-Id": "order-1"})
    assert problem_of(answer, 422, "invalid_request").request_id == "order-1"
    elsewhere = service.client.get("/health/live", headers={"Host": "other.example"})
    assert problem_of(elsewhere, 421, "misdirected_host").request_id == elsewhere.headers["x-request-id"]


def test_a_request_that_can_not_be_read_has_an_id(service):
    with connected(service.client, b"nonsense\r\n\r\n") as connection:
        connection.settimeout(5)
        answer = connection.makefile("rb").read()
    assert re.search(rb"\r\n[Xx]-[Rr]equest-[Ii]d: [0-9a-f]{32}\r\n", answer)


def test_lines_of_the_api_and_the_worker_have_the_ids_of_the_request(service, caplog):
    seen = []

    class Seen(logging.Handler):
        def emit(self, record):
            seen.append((record.name, record.getMessage(), current_trace.get()))

    caplog.set_level(logging.INFO)
    handler = Seen()
    logging.getLogger().addHandler(handler)
    headers = {**WAIT, "X-Request-Id": "order-2", "traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
    job = service.client.post("/generate", json={"seed": 1}, headers=headers).json()
    wait_until(lambda: any(name == "workers.outbox" for name, *_ in seen))
    logging.getLogger().removeHandler(handler)
    told = {name: trace for name, message, trace in seen if job["id"] in message}
    assert set(told) == {"app.queue", "workers.outbox"}
    for trace in told.values():
        assert (trace.request_id, trace.trace_id) == ("order-2", TRACE_ID)
