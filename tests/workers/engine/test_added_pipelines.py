"""Pipelines that come into an engine while others run, and go."""

import gc
import weakref
from pathlib import Path

import pytest

from models.pipeline import Pipeline
from tests.workers.engine.engine_runs import Jobs, digest, run
from workers.compute import Slots
from workers.engine.engine import Engine
from workers.engine.lanes import Lanes
from workers.engine.seed_promise import SeedPromise


@pytest.fixture
def jobs(tiny_weights: Path) -> Jobs:
    return Jobs(tiny_weights)


def engine_of(**pipelines: Pipeline) -> Engine:
    return Engine(pipelines, 4, promise=SeedPromise("on", num_probes=16), lanes=Lanes(1))


def test_one_that_is_added_changes_no_bytes_and_has_those_of_a_start(
    tiny_weights, tiny_prompt_weights, jobs
) -> None:
    tiny, other = Pipeline.load(tiny_weights / "tiny"), Pipeline.load(tiny_prompt_weights / "tiny-prompt")
    first = jobs.generate("first", seed=1, num_outputs=3, num_steps=20)
    second = Jobs(tiny_prompt_weights).generate("second", prompt="a red cat", seed=2, num_steps=4)
    alone = run(engine_of(tiny=tiny), [first]) | run(engine_of(**{"tiny-prompt": other}), [second])

    engine = engine_of()
    assert engine.free_slots == Slots(4, 4)
    for _ in engine.add("tiny", tiny):
        pass
    engine.admit([first])
    ended = {}
    num_slices = 0
    for _ in engine.add("tiny-prompt", other):
        num_slices += 1
        ended |= {each.job_id: each for each in engine.step()}
    assert num_slices > 5
    assert engine.seed_verdicts()["tiny-prompt"].how == "full_batches"
    assert engine.needs_check
    ended |= run(engine, [second])
    assert {name: digest(each) for name, each in ended.items()} == {
        name: digest(each) for name, each in alone.items()
    }


def test_jobs_end_with_the_pipeline_that_they_began_with(tiny_weights, jobs) -> None:
    work = jobs.generate(seed=1, num_steps=6)
    expected = digest(run(engine_of(tiny=Pipeline.load(tiny_weights / "tiny")), [work])["x"])
    engine = engine_of(tiny=Pipeline.load(tiny_weights / "tiny"))
    engine.admit([work])
    engine.step()
    changed = Pipeline.load(tiny_weights / "tiny")
    next(changed.prior.network.parameters()).data += 1
    for _ in engine.add("tiny", changed):
        pass
    assert digest(run(engine, [])["x"]) == expected
    assert digest(run(engine, [work])["x"]) != expected


def test_one_that_is_removed_leaves_nothing_in_memory(tiny_weights, jobs) -> None:
    engine = engine_of(tiny=Pipeline.load(tiny_weights / "tiny"))
    engine.warm_up()
    run(engine, [jobs.generate(seed=1)])
    network = weakref.ref(engine._served["tiny"].pipeline.prior.network)
    engine.remove("tiny")
    gc.collect()
    assert network() is None
    assert not engine.needs_check
    assert engine.seed_verdicts() == {}


def test_one_whose_first_calls_fail_is_not_served(tiny_weights, jobs) -> None:
    broken = Pipeline.load(tiny_weights / "tiny")
    broken.prior.network.forward = None
    engine = engine_of(tiny=Pipeline.load(tiny_weights / "tiny"))
    work = jobs.generate(seed=1)
    expected = digest(run(engine, [work])["x"])
    with pytest.raises(TypeError):
        for _ in engine.add("broken", broken):
            pass
    assert list(engine.seed_verdicts()) == ["tiny"]
    assert digest(run(engine, [work])["x"]) == expected
