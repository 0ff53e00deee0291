"""GET /jobs: one's jobs, the newest first, in pages."""

import pytest
import redis

from tests.app.conftest import problem_of, read_job
from workers.queue.records import job_key, jobs_key

WAIT = {"Prefer": "wait=10"}


def ids(page: dict) -> list[str]:
    return [read_job(job).id for job in page["jobs"]]


def test_jobs_come_in_pages_the_newest_first_and_each_once(service):
    made = [service.client.post("/generate", json={"seed": n}, headers=WAIT).json()["id"] for n in range(7)]
    seen, cursor = [], None
    while cursor is not None or not seen:
        query = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = service.client.get("/jobs", params=query).json()
        assert len(page["jobs"]) <= 3
        seen += ids(page)
        cursor = page["next"]
    assert seen[:7] == made[::-1]
    assert len(seen) == len(set(seen))


def test_filters_leave_out_what_does_not_match(service):
    made = service.client.post("/generate", json={"seed": 3}, headers=WAIT).json()["id"]
    service.client.post("/decode", json={"codes": [[[1] * 2] * 2]}, headers=WAIT)
    asked = {"operation": "generate", "status": "succeeded", "limit": 1}
    assert ids(service.client.get("/jobs", params=asked).json()) == [made]
    assert ids(service.client.get("/jobs", params={"status": "cancelled"}).json()) == []


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 101}, {"status": "lost"}, {"operation": "sing"}, {"cursor": "x"}]
)
def test_what_cannot_be_asked_for_is_told(service, query):
    problem_of(service.client.get("/jobs", params=query), 422, "invalid_request")


def test_jobs_that_have_expired_are_gone_from_the_list_and_make_room(service):
    for seed in range(4):
        service.client.post("/generate", json={"seed": seed}, headers=WAIT)
    with redis.Redis.from_url(service.app.state.settings.redis_url) as client:
        first = [name.decode() for name in client.zrange(jobs_key(""), 0, 3)]
        client.delete(*map(job_key, first))
        assert not set(first) & set(ids(service.client.get("/jobs", params={"limit": 100}).json()))
        before = client.zcard(jobs_key(""))
        service.client.post("/generate", json={"seed": 9}, headers=WAIT)
        assert (
            client.zcard(jobs_key("")) <= before - 1
        )  # two that had expired less at least, one that came more
