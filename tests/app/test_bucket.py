"""A service whose results lie in a bucket."""

import hashlib

import boto3
import pytest

from app.main import create_app
from tests.app.conftest import WAIT, job_of, problem_of, serving, settings_for, working
from tests.fake_engine import FakeEngine, codes_of
from tests.waiting import wait_until


@pytest.fixture
def client(s3_server, redis_url, tmp_path):
    bucket = boto3.client("s3")
    bucket.create_bucket(Bucket="results")
    bucket.close()
    settings = settings_for(tmp_path, redis_url, result_store="s3://results/smalti")
    with serving(create_app(settings)) as client, working(settings, FakeEngine()):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client
    assert not (tmp_path / "data" / "results").exists()


def test_outputs_and_codes_come_from_the_bucket(client):
    request = {"seed": 7, "num_outputs": 2, "return_codes": True}
    job = job_of(client.post("/generate", json=request, headers=WAIT))
    assert job.result.codes.codes == [codes_of(7), codes_of(8)]
    url, sha256 = job.result.outputs[1].url, job.result.outputs[1].sha256

    whole = client.get(url)
    assert (whole.status_code, whole.headers["etag"]) == (200, f'"{sha256}"')
    assert hashlib.sha256(whole.content).hexdigest() == sha256
    part = client.get(url, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, whole.content[1:4])
    assert part.headers["content-range"] == f"bytes 1-3/{len(whole.content)}"
    assert client.get(url, headers={"If-None-Match": f'"{sha256}"'}).status_code == 304
    problem_of(client.get(f"/jobs/{job.id}/outputs/2"), 404, "job_not_found")


def test_while_the_bucket_is_away_the_service_is_not_ready_and_jobs_fail_by_name(client, s3_server):
    url = job_of(client.post("/generate", json={}, headers=WAIT)).result.outputs[0].url
    s3_server.stop()

    problem_of(client.get(url), 503, "storage_unavailable")
    problem = problem_of(client.get("/health/ready"), 503, "storage_unavailable")
    assert "s3://results/smalti (SMALTI_RESULT_STORE): it does not answer" in problem.detail
    problem = problem_of(client.post("/generate", json={}, headers=WAIT), 503, "storage_unavailable")
    assert job_of(client.get(problem.instance)).status == "failed"
    assert client.get("/health/live").status_code == 200
