"""How a worker keeps the seed promise: full batches first, then what its check has proven."""

import itertools
import logging
from pathlib import Path

import pytest
import torch

from models.pipeline import Pipeline
from tests.workers.engine.engine_runs import Jobs, digest, noise_image, run
from workers.engine.engine import Engine
from workers.engine.lanes import Lanes
from workers.engine.seed_promise import SeedPromise, numbers_to_check


@pytest.fixture
def pipeline(tiny_weights: Path) -> Pipeline:
    return Pipeline.load(tiny_weights / "tiny")


def engine_of(pipeline: Pipeline, promise: SeedPromise, max_batch_size: int = 8) -> Engine:
    return Engine({"tiny": pipeline}, max_batch_size, promise=promise, lanes=Lanes(1))


def rows_of(engine: Engine) -> tuple[int, ...]:
    return engine.seed_verdicts()["tiny"].rows


def checked(engine: Engine) -> Engine:
    while engine.needs_check:
        engine.check_seeds(0.05)
    return engine


def break_numbers(pipeline: Pipeline, *numbers: int) -> None:
    """Let calls of these numbers of rows have other bits, as another kernel's would be."""
    whole = pipeline.prior.network.forward
    pipeline.prior.network.forward = lambda x, t, c: whole(x, t, c) * (1.01 if len(x) in numbers else 1)


def test_full_batches_serve_until_there_is_a_verdict(pipeline: Pipeline, tiny_weights: Path) -> None:
    """And give the same bytes as afterwards."""
    break_numbers(pipeline, 1, 2, 5)
    engine = engine_of(pipeline, SeedPromise("on", num_probes=64))
    sizes: list[int] = []
    pipeline.prior.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    work = Jobs(tiny_weights).generate(seed=3, class_label=1, num_steps=2)
    before = run(engine, [work])["x"]
    assert set(sizes) == {16}
    assert engine.seed_verdicts()["tiny"].how == "full_batches"
    assert engine.seed_verdicts()["tiny"].is_kept

    checked(engine)
    assert engine.seed_verdicts()["tiny"].how == "checked"
    assert rows_of(engine) == (3, 4, *range(6, 17))
    sizes.clear()
    after = run(engine, [work])["x"]
    assert set(sizes) == {3}
    assert digest(before) == digest(after)


def test_what_is_proven_serves_before_the_check_has_ended(pipeline: Pipeline) -> None:
    engine = engine_of(pipeline, SeedPromise("on", num_probes=32), max_batch_size=4)
    seen = {rows_of(engine)}
    while engine.needs_check:
        engine.check_seeds(0)
        seen.add(rows_of(engine))
    assert {(8,), (1, 8), (1, 2, 8)} <= seen
    assert rows_of(engine) == numbers_to_check(8)


def test_a_verdict_is_kept_for_later_starts(pipeline: Pipeline, tmp_path: Path) -> None:
    first = checked(engine_of(pipeline, SeedPromise("on", tmp_path, num_probes=64)))
    later = engine_of(pipeline, SeedPromise("on", tmp_path, num_probes=64))
    assert not later.needs_check
    assert later.seed_verdicts() == first.seed_verdicts()


@pytest.mark.parametrize("change", ["weights", "size"])
def test_a_verdict_of_something_else_is_not_believed(
    pipeline: Pipeline, tiny_weights: Path, tmp_path: Path, change
) -> None:
    checked(engine_of(pipeline, SeedPromise("on", tmp_path, num_probes=64)))
    if change == "weights":
        pipeline = Pipeline.load(tiny_weights / "tiny")
        next(pipeline.prior.network.parameters()).data += 1
    size = 16 if change == "size" else 8
    assert engine_of(pipeline, SeedPromise("on", tmp_path, num_probes=64), size).needs_check


def test_a_promise_that_can_not_be_kept_is_told(pipeline: Pipeline, caplog) -> None:
    whole, calls = pipeline.prior.network.forward, []

    def forward(x, t, c):
        calls.append(len(x))
        return whole(x, t, c) * (1 + 0.01 * (len(calls) % 2))  # no two calls agree

    pipeline.prior.network.forward = forward
    with caplog.at_level(logging.INFO):
        engine = checked(engine_of(pipeline, SeedPromise("on", num_probes=64)))
    assert not engine.seed_verdicts()["tiny"].is_kept
    assert "BROKEN" in caplog.text


def test_a_promise_that_is_off_is_told_and_costs_nothing(
    pipeline: Pipeline, tiny_weights: Path, caplog
) -> None:
    engine = engine_of(pipeline, SeedPromise("off"))
    verdict = engine.seed_verdicts()["tiny"]
    assert (verdict.how, verdict.is_kept) == ("off", False)
    assert "seed promise off" in caplog.text
    sizes: list[int] = []
    pipeline.prior.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    run(engine, [Jobs(tiny_weights).generate(num_steps=2, guidance_scale=1.0)])
    assert set(sizes) == {1}


def test_one_bad_row_in_many_is_found(pipeline: Pipeline) -> None:
    whole = pipeline.prior.network.forward
    rare = torch.tensor(0.0)

    def forward(x, t, c):
        velocity = whole(x, t, c)
        is_rare = (t * 1000).round() % 17 == rare
        return velocity + (is_rare.view(-1, 1, 1, 1) & (len(x) == 2)).to(velocity.dtype)

    pipeline.prior.network.forward = forward
    assert 2 not in rows_of(checked(engine_of(pipeline, SeedPromise("on", num_probes=256))))


def test_graphs_have_few_numbers_of_rows_and_none_pads_by_more_than_half() -> None:
    numbers = numbers_to_check(512, is_captured=True)
    assert len(numbers) == 18
    assert all(rows <= 1.5 * fewer for fewer, rows in itertools.pairwise(numbers[1:]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replayed_graphs_keep_the_promise_for_every_kind_of_job(tiny_weights: Path) -> None:
    engine = engine_of(Pipeline.load(tiny_weights / "tiny", "cuda"), SeedPromise("on", num_probes=64))
    engine.warm_up()
    checked(engine)
    jobs = Jobs(tiny_weights)
    images = [noise_image(seed, 12, 12, 1) for seed in range(3)]
    works = [
        jobs.generate("guided", num_steps=5, guidance_scale=3.0, num_outputs=3, return_codes=True),
        jobs.generate("unguided", num_steps=7, guidance_scale=1.0, sampler="heun"),
        jobs.encode(*images, job_id="encoded", return_psnr=True),
        jobs.encode(images[0], job_id="searched", effort=1),
        jobs.decode([[[1] * 6] * 6], job_id="decoded"),
    ]
    together = run(engine, works)
    for work in works:
        assert digest(run(engine, [work])[work.job_id]) == digest(together[work.job_id]), work.job_id
