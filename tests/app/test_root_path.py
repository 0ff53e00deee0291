"""Behind a proxy that shows the API under a prefix, every address that is sent has it."""

import json

import pytest

from app.main import create_app
from tests.app.conftest import WAIT, problem_of, serving, settings_for, working
from tests.fake_engine import FakeEngine
from tests.waiting import wait_until

ROOT = "/smalti"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    from workers.queue import embedded_server

    folder = tmp_path_factory.mktemp("prefixed")
    server = embedded_server.start(folder / "redis")
    settings = settings_for(folder, server.url, root_path=ROOT)
    try:
        with serving(create_app(settings)) as client, working(settings, FakeEngine()):
            wait_until(lambda: client.get("/health/ready").status_code == 200)
            yield client
    finally:
        server.stop()


@pytest.fixture(params=["", ROOT], ids=["cut off", "left"])
def prefix(request) -> str:
    """What the proxy leaves of the prefix."""
    return request.param


def test_addresses_of_jobs_and_outputs_have_the_prefix(client, prefix):
    queued = client.post(f"{prefix}/generate", json={})
    assert queued.status_code == 202
    assert queued.headers["location"] == f"{ROOT}/jobs/{queued.json()['id']}"

    done = client.post(f"{prefix}/generate", json={}, headers=WAIT)
    job = done.json()
    assert done.headers["content-location"] == f"{ROOT}/jobs/{job['id']}"
    (output,), (image,) = job["result"]["outputs"], job["result"]["images"]
    assert output["url"] == image["url"] == f"{ROOT}/jobs/{job['id']}/outputs/0"
    for path in (output["url"], f"{prefix}/jobs/{job['id']}/images/0"):
        assert client.get(path).headers["content-type"] == "image/png"
    assert client.get(f"{prefix}/jobs/{job['id']}").json()["result"] == job["result"]

    picture = client.post(f"{prefix}/generate", json={}, headers={"Accept": "image/png"})
    assert picture.headers["content-location"].startswith(f"{ROOT}/jobs/")


def test_openais_addresses_have_the_prefix(client, prefix):
    body = {"prompt": "sneaker", "response_format": "url"}
    (picture,) = client.post(f"{prefix}/v1/images/generations", json=body).json()["data"]
    assert picture["url"].startswith(f"{client.base_url}{ROOT}/jobs/")
    assert client.get(picture["url"]).headers["content-type"] == "image/png"
    assert "error" in client.get(f"{prefix}/v1/models/none").json()


def test_events_and_failures_of_jobs_have_the_prefix(client, prefix):
    job = client.post(f"{prefix}/generate", json={}, headers=WAIT).json()
    events = client.get(f"{prefix}/jobs/{job['id']}/events").text
    last = json.loads(events.strip().rpartition("data: ")[2])
    assert last["job"]["result"]["outputs"][0]["url"].startswith(f"{ROOT}/jobs/")

    failed = client.post(f"{prefix}/generate", json={"seed": 666}, headers=WAIT)
    problem = problem_of(failed, 500, "not_finite")
    assert problem.instance == failed.headers["content-location"] == f"{ROOT}/jobs/{problem.job_id}"


def test_the_documentation_has_the_prefix(client, prefix):
    home = client.get(f"{prefix}/")
    assert home.headers["location"] == f"{ROOT}/docs"
    page = client.get(f"{prefix}/docs").text
    for address in (f"{ROOT}/openapi.json", f"{ROOT}/static-offline-docs/swagger-ui.css"):
        assert address in page
        assert client.get(address).status_code == 200
        assert client.get(prefix + address.removeprefix(ROOT)).status_code == 200
    assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": ROOT}]


def test_limits_of_bodies_hold_below_the_prefix(client, prefix):
    response = client.post(f"{prefix}/decode", json={"codes": [[[1]]], "tokenizer": "0" * 70_000})
    assert response.status_code == 422  # 4 MiB may come here, 64 KiB elsewhere
    response = client.post(f"{prefix}/jobs/x/retry", json={"webhook_url": "0" * 70_000})
    problem_of(response, 413, "body_too_large")
