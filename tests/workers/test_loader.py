"""Which pipelines a worker loads and lets go of, on a real queue; the engine is a list of names."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from app.queue import JobQueue
from models.options import ConfigError
from tests.app.queue_jobs import REQUEST, RESULT, run
from tests.workers.test_catalog import SPEC
from workers import pipeline_folders
from workers.catalog import CatalogEntry
from workers.compute import Slots
from workers.in_flight import InFlight
from workers.loader import Loader
from workers.pipeline_folders import PipelineFolders
from workers.queue.consumer import Consumer, Outcome

NAMES = ("a", "b", "c")


@dataclass
class Model:
    num_bytes: int = 100


@dataclass
class Memory:
    """Has room for what it is told; those that it can't read are ``broken``."""

    loaded: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    reads: list[str] = field(default_factory=list)

    def read(self, entry: CatalogEntry) -> Model:
        self.reads.append(entry.spec.name)
        if entry.spec.name in self.broken:
            raise ConfigError(f"{entry.folder / 'prior.safetensors'} is truncated")
        return Model()

    def add(self, name: str, pipeline: Model) -> Iterator[None]:
        self.loaded.append(name)
        yield

    def remove(self, name: str) -> Iterator[None]:
        self.loaded.remove(name)
        yield

    def estimated_bytes(self, entry: CatalogEntry) -> int:
        return 100

    def free_bytes(self) -> int | None:
        return None


class OneWorker:
    """A worker without its threads: the test ticks its loader."""

    def __init__(self, redis_url: str, weights, **options) -> None:
        self.memory = Memory()
        self.in_flight = InFlight()
        self.consumer = Consumer(redis_url, [], lease_s=1, max_tries=3, ageing_s=1)
        self.consumer.phase = "ready"
        self.loader = Loader(
            self.consumer, self.in_flight, self.memory, PipelineFolders.load(weights),
            lambda slices: list(slices) and None, loaded={}, failed={}, **options,
        )  # fmt: skip

    def tick(self) -> list[str]:
        self.loader.tick()
        self.consumer.heartbeat(self.in_flight.all())
        return sorted(self.memory.loaded)

    def claim(self) -> list[str]:
        """Take jobs; return their pipelines."""
        claims = self.consumer.claim(Slots(8, 8), is_idle=True).jobs
        self.in_flight.add(claims)
        return [claim.request.pipeline for claim in claims]

    def finish(self) -> None:
        for claim in self.in_flight.all():
            self.consumer.finish([Outcome(claim, RESULT)])
            self.in_flight.remove(claim)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_folders, "SCAN_EVERY_S", 0)
    for name in NAMES:
        (tmp_path / name).mkdir()
        replace(SPEC, name=name).save(tmp_path / name / "pipeline.json")
    return tmp_path


@pytest.fixture
def make(redis_url, weights) -> Iterator:
    made: list[OneWorker] = []

    def new(**options) -> OneWorker:
        made.append(OneWorker(redis_url, weights, **options))
        return made[-1]

    yield new
    for each in made:
        each.consumer.close()


@pytest.fixture
def submit(redis_url):
    def submit(*names: str) -> list[str]:
        async def use(queue: JobQueue) -> list[str]:
            requests = [REQUEST.model_copy(update={"pipeline": name}) for name in names]
            return [(await queue.submit(request)).id for request in requests]

        return run(redis_url, use)

    return submit


def order(redis_url: str, name: str, what) -> None:
    run(redis_url, lambda queue: queue.control.order(name, what))


def test_the_least_recently_used_makes_room_and_what_runs_stays(make, submit):
    worker = make(max_bytes=200)
    assert worker.tick() == []
    for name in ("a", "b"):
        submit(name)
        worker.tick()
    assert worker.claim() == ["a", "b"]
    submit("c")
    assert worker.tick() == ["a", "b"], "both have jobs"
    worker.finish()
    submit("a")
    assert worker.claim() == ["a"]
    assert worker.tick() == ["a", "c"], "b was idle"
    assert worker.claim() == ["c"]


def test_a_job_that_has_waited_closes_a_busy_pipeline(make, submit, monkeypatch):
    monkeypatch.setattr("workers.loader.TURN_S", 0)
    worker = make(max_bytes=100)
    submit("a")
    worker.tick()
    assert worker.claim() == ["a"]
    submit("b", "a")
    assert worker.tick() == ["a"], "its job ends first"
    assert worker.claim() == [], "and it gets no other"
    worker.finish()
    assert worker.tick() == ["b"]
    assert worker.claim() == ["b"]


def test_a_pinned_one_stays_and_an_unloaded_one_comes_back(make, submit, redis_url):
    worker = make(max_bytes=100)
    worker.tick()
    order(redis_url, "a", "load")
    assert worker.tick() == ["a"]
    submit("b")
    worker.tick()
    assert (worker.consumer.open, worker.consumer.pipelines) == (("a",), ("a", "c"))
    assert "pinned pipelines have 100" in worker.consumer.loads["b"].error
    worker.tick()
    assert worker.claim() == ["b"], "to fail it"
    worker.finish()
    order(redis_url, "a", "unload")
    assert worker.tick() == []
    submit("a", "b")
    assert worker.tick() == ["a"]
    assert worker.claim() == ["a"]
    worker.finish()
    assert worker.tick() == ["b"]

    later = make(max_bytes=100)
    order(redis_url, "c", "load")
    assert later.tick() == ["c"], "what stood before a worker started holds for it"


def test_of_two_workers_one_loads_what_a_job_wants(make, submit, monkeypatch):
    first, second = make(), make()
    for worker in (first, second):
        worker.tick()
    submit("a")
    assert (first.tick(), second.tick()) == (["a"], [])
    monkeypatch.setattr("workers.loader.TURN_S", 0)
    assert second.tick() == ["a"], "once the job has waited for long"


def test_one_that_can_not_be_loaded_is_given_up_after_three_tries(make, submit, weights, monkeypatch):
    monkeypatch.setattr("workers.residents._FIRST_PAUSE_S", 0)
    worker = make()
    worker.memory.broken.add("a")
    submit("a", "b")
    for _ in range(6):
        worker.tick()
    assert worker.memory.reads.count("a") == 3
    assert worker.memory.loaded == ["b"]
    assert worker.consumer.loads["a"].error == "a/prior.safetensors is truncated"
    assert worker.claim() == ["a", "b"], "the first to be failed, as no other worker could do it"
    assert "a" not in worker.consumer.pipelines

    worker.finish()
    other = make()
    other.tick()
    submit("a")
    for _ in range(2):
        worker.tick()
    assert worker.claim() == [], "another can do it"
    worker.memory.broken.clear()
    (weights / "a" / "prior.safetensors").write_bytes(b"whole")
    for _ in range(3):
        worker.tick()
    assert "a" in worker.consumer.pipelines


def test_jobs_of_one_that_was_replaced_by_a_broken_one_are_told_so(make, submit, weights, monkeypatch):
    monkeypatch.setattr("workers.residents._FIRST_PAUSE_S", 0)
    worker = make()
    submit("a")
    worker.tick()
    assert worker.claim() == ["a"]
    worker.memory.broken.add("a")
    (weights / "a" / "prior.safetensors").write_bytes(b"cut")
    for _ in range(2):
        worker.tick()
    submit("a")
    for _ in range(4):
        worker.tick()
        assert worker.claim() == [], "the jobs of before end first"
    assert worker.memory.loaded == ["a"]
    worker.finish()
    for _ in range(2):
        worker.tick()
    assert worker.memory.loaded == []
    assert worker.consumer.loads["a"].state == "failed"
    assert worker.claim() == ["a"], "to fail it"


def test_a_pipeline_that_workers_die_of_is_given_up(make, submit, redis_url):
    worker = make()
    worker.tick()
    stamp = {entry.spec.name: entry.stamp for entry in worker.loader._folders.catalog.entries}["a"]
    for _ in range(3):
        dead = Consumer(redis_url, [], lease_s=1, max_tries=3, ageing_s=1)
        assert dead.begin_load("a", stamp) < 3
    submit("a", "b")
    for _ in range(3):
        worker.tick()
    assert worker.memory.reads == ["b"]
    assert worker.consumer.loads["a"].error == "3 workers died while they loaded it"
    order(redis_url, "a", "load")
    assert worker.tick() == ["a", "b"]
