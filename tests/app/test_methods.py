"""HEAD wherever GET is, OPTIONS wherever anything is, and `Allow` whole."""

import pytest

from tests.app.conftest import WAIT, job_of, problem_of

NO_JOB = "0" * 32
ALLOWED = {
    "/": "GET, HEAD, OPTIONS",
    "/docs": "GET, HEAD, OPTIONS",
    "/generate": "POST, OPTIONS",
    "/encode": "POST, OPTIONS",
    "/decode": "POST, OPTIONS",
    "/pipelines": "GET, HEAD, OPTIONS",
    f"/jobs/{NO_JOB}": "GET, HEAD, DELETE, OPTIONS",
    f"/jobs/{NO_JOB}/events": "GET, HEAD, OPTIONS",
    f"/jobs/{NO_JOB}/outputs/0": "GET, HEAD, OPTIONS",
    "/health/live": "GET, HEAD, OPTIONS",
}


@pytest.mark.parametrize("path", ALLOWED)
def test_options_and_refusals_tell_all_methods_of_an_address(service, path):
    options = service.client.options(path)
    assert (options.status_code, options.content, options.headers["allow"]) == (204, b"", ALLOWED[path])
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"} - set(
        ALLOWED[path].split(", ")
    ):
        refused = service.client.request(method, path)
        assert problem_of(refused, 405, "method_not_allowed").detail.endswith(f": use {ALLOWED[path]}")
        assert refused.headers["allow"] == ALLOWED[path]


def test_an_unknown_address_has_no_methods(service):
    assert service.client.options("/nothing").status_code == 404
    response = service.client.head("/nothing")
    assert (response.status_code, response.content) == (404, b"")


def test_head_has_the_headers_of_get_and_no_body(service):
    job = job_of(service.client.post("/generate", json={"seed": 1}, headers=WAIT))
    paths = (
        "/",
        "/docs",
        "/openapi.json",
        "/pipelines",
        "/health/live",
        f"/jobs/{job.id}",
        job.result.outputs[0].url,
    )
    own = {"date": "", "x-request-id": ""}
    for path in paths:
        get, head = service.client.get(path), service.client.head(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert {**head.headers, **own} == {**get.headers, **own}, path
    assert service.client.head(f"/jobs/{NO_JOB}").status_code == 404
    assert service.client.head("/generate").status_code == 405
    assert service.client.head(f"/jobs/{job.id}", headers={"If-None-Match": "*"}).status_code == 200


def test_head_of_events_ends_though_the_job_goes_on(service):
    service.engine.is_held.set()
    job = job_of(service.client.post("/generate", json={}))
    response = service.client.head(f"/jobs/{job.id}/events")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert service.client.get("/health/live").status_code == 200, "the connection goes on"
