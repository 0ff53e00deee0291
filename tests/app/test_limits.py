"""What each API key may ask of the queue: its rate, its share, and its turn."""

import random
import re
import time

import openai
import pytest
import redis

from app.examples import PROBLEMS
from app.keys import load_keys, make_key, read_line
from app.limits import Allowance, Rate
from app.main import create_app
from app.queue import JobQueue
from app.settings import AppSettings
from smalti import Client
from tests.app.conftest import problem_of, serving, settings_for
from tests.app.queue_jobs import REQUEST, run
from workers.compute import Slots
from workers.errors import QueueShareExceeded, RateLimitExceeded
from workers.queue.consumer import Consumer
from workers.queue.records import PREFIX, QUARANTINE, QUEUES, job_key, queue_key
from workers.settings import SettingsError

BATCH = REQUEST.model_copy(update={"priority": "batch"})


def ids_of(client: redis.Redis, queue: str) -> list[str]:
    return [id.decode() for id in client.lrange(queue_key(queue), 0, -1)]


def age_rate(client: redis.Redis, owner: str, seconds: float) -> None:
    """Let so much time pass for the rate of a key."""
    key = f"{PREFIX}:rate:{owner}"
    client.set(key, float(client.get(key)) - seconds)


# --- rate ------------------------------------------------------------------------------------------------


def test_a_key_may_submit_its_rate_at_once_and_then_one_an_interval(redis_url):
    async def use(queue: JobQueue) -> None:
        allowance = Allowance(Rate.read("4/h"))
        for num_left in (3, 2, 1, 0):
            await queue.submit(REQUEST, owner="ada", allowance=allowance)
            assert allowance.num_left == num_left
            assert (4 - num_left) * 900 - 60 < allowance.full_in_s <= (4 - num_left) * 900
        with pytest.raises(RateLimitExceeded) as refused:
            await queue.submit(REQUEST, owner="ada", allowance=allowance)
        assert 840 < refused.value.retry_after_s <= 900
        await queue.submit(REQUEST, owner="bob", allowance=Allowance(Rate.read("4/h")))
        with redis.Redis.from_url(redis_url) as client:
            age_rate(client, "ada", 900)
        await queue.submit(REQUEST, owner="ada", allowance=allowance)
        with pytest.raises(RateLimitExceeded):
            await queue.submit(REQUEST, owner="ada", allowance=allowance)

    run(redis_url, use)


def test_a_clock_that_was_ahead_locks_nobody_out_for_longer_than_the_window(redis_url):
    async def use(queue: JobQueue) -> None:
        with redis.Redis.from_url(redis_url) as client:
            client.set(f"{PREFIX}:rate:ada", time.time() + 10**6)
        with pytest.raises(RateLimitExceeded) as refused:
            await queue.submit(REQUEST, owner="ada", allowance=Allowance(Rate.read("1/min")))
        assert refused.value.retry_after_s <= 60

    run(redis_url, use)


def test_what_is_refused_takes_nothing_of_the_rate(redis_url):
    async def use(queue: JobQueue) -> None:
        allowance = Allowance(Rate.read("2/h"), max_waiting=1)
        await queue.submit(REQUEST, owner="ada", allowance=allowance)
        for _ in range(3):
            with pytest.raises(QueueShareExceeded):
                await queue.submit(REQUEST, owner="ada", allowance=allowance)
        assert allowance.num_left == 1

    run(redis_url, use)


SECRETS = {}
LINES = []
for name, rate in (("ada", ""), ("bob", " rate=3/h"), ("root", " rate=none")):
    SECRETS[name], line = make_key(name, ["generate"])
    LINES.append(line + rate)


@pytest.fixture
def client(redis_url, tmp_path):
    settings = settings_for(
        tmp_path,
        redis_url,
        api_keys=";".join(LINES),
        rate_limit="2/h",
        max_queue_length=8,
        max_queue_share=0.5,
    )
    with serving(create_app(settings)) as client:
        yield client


def generate(client, name: str, **headers: str):
    return client.post(
        "/generate", json={"seed": 1}, headers={"Authorization": f"Bearer {SECRETS[name]}", **headers}
    )


def test_answers_about_new_jobs_tell_the_rate_of_their_key(client):
    first = generate(client, "ada").headers
    assert first["ratelimit-policy"] == '"jobs";q=2;w=3600'
    assert re.fullmatch(r'"jobs";r=1;t=(1[78]\d\d)', first["ratelimit"])
    generate(client, "ada")
    refused = generate(client, "ada")
    problem = problem_of(refused, 429, "rate_limit_exceeded")
    assert problem.detail.startswith("the API key ada may submit 2 jobs in 3600 s; the next in ")
    assert refused.headers["ratelimit"].startswith('"jobs";r=0;')
    assert 1700 < int(refused.headers["retry-after"]) <= 1800
    assert '"jobs";q=3;w=3600' in generate(client, "bob").headers["ratelimit-policy"]
    assert "ratelimit" not in generate(client, "root").headers
    listed = client.get("/jobs", headers={"Authorization": f"Bearer {SECRETS['ada']}"})
    assert listed.status_code == 200
    assert "ratelimit" not in listed.headers
    pattern = re.sub(r"\d+(\\\.\d+)?", r"[0-9.e+]+", re.escape(PROBLEMS["rate_limit_exceeded"].detail))
    assert re.fullmatch(pattern, problem.detail)


def test_a_request_that_is_sent_again_takes_nothing(client):
    ids = {generate(client, "ada", **{"Idempotency-Key": "order"}).json()["id"] for _ in range(4)}
    assert len(ids) == 1
    assert generate(client, "ada").status_code == 202
    assert generate(client, "ada", **{"Idempotency-Key": "order"}).status_code == 202
    assert generate(client, "ada").status_code == 429


def test_a_key_waits_for_no_more_than_its_share(client):
    for _ in range(4):
        assert generate(client, "root").status_code == 202
    refused = generate(client, "root")
    problem = problem_of(refused, 429, "queue_share_exceeded")
    assert problem.detail == PROBLEMS["queue_share_exceeded"].detail.replace("128", "4").replace(
        "ada", "root"
    )
    assert int(refused.headers["retry-after"]) >= 1
    assert generate(client, "ada").status_code == 202


def test_an_openai_client_is_told_when_to_come_again(client):
    with openai.OpenAI(base_url=f"{client.base_url}/v1/", api_key=SECRETS["ada"], max_retries=0) as asking:
        for _ in range(2):
            generate(client, "ada")
        with pytest.raises(openai.RateLimitError) as refused:
            asking.images.generate(prompt="Sneaker", timeout=5)
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert int(refused.value.response.headers["retry-after"]) > 1700


def test_our_client_comes_again_when_it_is_told(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url, api_keys=LINES[0], rate_limit="2/s")
    with (
        serving(create_app(settings)) as service,
        Client(str(service.base_url), api_key=SECRETS["ada"], retry_s=20) as asking,
    ):
        began = time.monotonic()
        ids = {asking.submit("generate", seed=seed).id for seed in range(3)}
        assert len(ids) == 3
        assert time.monotonic() - began > 0.9  # two at once, and the third when it is told


@pytest.mark.parametrize("bad", ["60", "0/s", "1/week", "-1/s", "1.5/s", "99999999/s", "none"])
def test_a_rate_that_can_not_be_is_refused_with_the_form_of_one(bad):
    with pytest.raises(ValueError, match="60/min"):
        AppSettings(rate_limit=bad)
    if bad != "none":
        with pytest.raises(SettingsError, match=r"line 1 .*60/min"):
            load_keys(f"{LINES[0]} rate={bad}", None)


def test_a_line_may_have_a_rate():
    own, none = read_line(LINES[1]), read_line(LINES[2])
    assert (own.rate, own.has_own_rate) == (Rate(3, 3600), True)
    assert (none.rate, none.has_own_rate) == (None, True)


def test_a_key_that_is_alone_may_have_the_whole_queue(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url, api_keys=LINES[2], max_queue_length=3, max_queue_share=0.5)
    with serving(create_app(settings)) as client:
        for _ in range(3):
            generate(client, "root")
        problem_of(generate(client, "root"), 429, "queue_full")


# --- share -----------------------------------------------------------------------------------------------


def in_turns(client: redis.Redis) -> dict[str, set[str]]:
    """Return the jobs that have a turn, by key."""
    found: dict[str, set[str]] = {}
    for key in client.scan_iter(f"{PREFIX}:waiting:*"):
        ids = {id.decode() for id in client.zrange(key, 0, -1)}
        found.setdefault(key.decode().rpartition(":")[2], set()).update(ids)
    return found


def counted(client: redis.Redis) -> dict[str, set[str]]:
    """Return the jobs that count for the share of their key."""
    keys = [key.decode() for key in client.scan_iter(f"{PREFIX}:share:*")]
    return {key.rpartition(":")[2]: {id.decode() for id in client.smembers(key)} for key in keys}


def waiting(client: redis.Redis) -> dict[str, set[str]]:
    """Return the jobs that are in a queue, by key."""
    found: dict[str, set[str]] = {}
    for queue in (*QUEUES, QUARANTINE):
        for id in ids_of(client, queue):
            owner = client.hget(job_key(id), "owner").decode()
            if owner:
                found.setdefault(owner, set()).add(id)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_what_counts_as_waiting_is_what_waits_whatever_happened(redis_url, seed):
    draw = random.Random(seed)
    consumer = Consumer(redis_url, ["tiny"], lease_s=1, max_tries=2, ageing_s=0.0)

    async def use(queue: JobQueue) -> None:
        claimed, unbound = [], set()
        with redis.Redis.from_url(redis_url) as client:
            for _ in range(80):
                match draw.choice(("submit", "submit", "claim", "cancel", "expire", "release", "die")):
                    case "submit":
                        request = draw.choice((REQUEST, BATCH))
                        late = request.model_copy(update={"deadline_s": draw.choice((None, 1e-6))})
                        owner = draw.choice(("", "ada", "bob"))
                        bound = Allowance(max_waiting=draw.choice((None, 99)))
                        made = await queue.submit(late, owner=owner, allowance=bound)
                        if bound.max_waiting is None:
                            unbound.add(made.id)
                    case "claim":
                        claimed += consumer.claim(
                            Slots(draw.randint(1, 3), draw.randint(0, 3)), is_idle=True
                        ).jobs
                    case "cancel":
                        ids = [id for each in (*QUEUES, QUARANTINE) for id in ids_of(client, each)]
                        if ids:
                            await queue.cancel(draw.choice(ids))
                    case "expire":
                        consumer._end_overdue(args=["2026-01-01T00:00:00.000000Z"])
                    case "release" if claimed:
                        consumer.release([claimed.pop()], draw.choice(("front", "quarantine")))
                    case "die":  # of all leases
                        for id in client.zrange(f"{PREFIX}:leases", 0, -1):
                            client.zadd(f"{PREFIX}:leases", {id: 1})
                        client.set(f"{PREFIX}:reaped_at", time.time())
                        consumer.reap()
                        claimed = []
                now = waiting(client)
                assert in_turns(client) == now
                bound = {owner: ids - unbound for owner, ids in now.items()}
                assert counted(client) == {owner: ids for owner, ids in bound.items() if ids}

    run(redis_url, use, max_length=1000)
    consumer.close()


def test_rows_of_batches_leave_a_key_its_share(redis_url):
    async def use(queue: JobQueue) -> None:
        for _ in range(5):
            await queue.submit(BATCH, owner="ada")
        allowance = Allowance(max_waiting=2)
        for _ in range(2):
            await queue.submit(REQUEST, owner="ada", allowance=allowance)
        with pytest.raises(QueueShareExceeded, match="2 jobs of the API key ada wait"):
            await queue.submit(REQUEST, owner="ada", allowance=allowance)

    run(redis_url, use)


def test_jobs_that_others_have_removed_stop_counting(redis_url):
    async def use(queue: JobQueue) -> None:
        allowance = Allowance(max_waiting=20)
        for _ in range(20):
            await queue.submit(REQUEST, owner="ada", allowance=allowance)
        with redis.Redis.from_url(redis_url) as client:  # as `rq empty` does
            for id in ids_of(client, "interactive"):
                client.delete(job_key(id))
            client.delete(queue_key("interactive"))
        for _ in range(20):
            await queue.submit(REQUEST, owner="ada", allowance=allowance)
        with pytest.raises(QueueShareExceeded):
            await queue.submit(REQUEST, owner="ada", allowance=allowance)

    run(redis_url, use, max_length=1000)


# --- turns -----------------------------------------------------------------------------------------------


def test_keys_take_turns_so_that_one_does_not_wait_for_all_jobs_of_another(redis_url):
    async def use(queue: JobQueue) -> list[str]:
        async def submit(owner: str, number: int) -> None:
            for _ in range(number):
                await queue.submit(REQUEST, owner=owner)

        await submit("ada", 6)
        await submit("bob", 2)
        await submit("cy", 1)
        await submit("ada", 1)
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            return [
                client.hget(job_key(id), "owner") for id in client.lrange(queue_key("interactive"), 0, -1)
            ]

    assert run(redis_url, use, max_length=100) == [
        "ada",
        "bob",
        "cy",
        "ada",
        "bob",
        "ada",
        "ada",
        "ada",
        "ada",
        "ada",
    ]


def test_the_position_of_a_job_is_its_turn(redis_url):
    async def use(queue: JobQueue) -> int | None:
        for _ in range(5):
            await queue.submit(REQUEST, owner="ada")
        job = await queue.submit(REQUEST, owner="bob")
        return (await queue.get(job.id)).queue_position

    assert run(redis_url, use, max_length=100) == 1


def test_jobs_of_one_key_and_of_none_are_taken_as_they_come(redis_url, consumer):
    async def use(queue: JobQueue) -> None:
        for owner in ("ada", ""):
            made = [(await queue.submit(REQUEST, owner=owner)).id for _ in range(40)]
            assert [claim.job_id for claim in consumer.claim(Slots(40, 40), is_idle=True).jobs] == made

    run(redis_url, use, max_length=100)


def test_turns_go_on_fairly_while_jobs_are_taken(redis_url, consumer):
    async def use(queue: JobQueue) -> list[str]:
        taken = []
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            for _ in range(10):
                await queue.submit(REQUEST, owner="ada")
            for _ in range(6):  # one that comes again as soon as it is served
                await queue.submit(REQUEST, owner="bob")
                for claim in consumer.claim(Slots(2, 2), is_idle=True).jobs:
                    taken.append(client.hget(job_key(claim.job_id), "owner"))
        return taken

    taken = run(redis_url, use, max_length=100)
    assert (taken.count("bob"), taken.count("ada")) == (6, 6)
