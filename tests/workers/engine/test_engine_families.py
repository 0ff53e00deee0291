"""All families of priors in one engine: the same bytes as alone, a fair share each, and the same faults."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.options import AutoregressiveOptions
from models.pipeline import Pipeline
from models.stage import Sample, SampleSpec
from tests.tiny import save_families
from tests.workers.engine.engine_runs import Jobs, digest, noise_image, run
from workers.compute import Work
from workers.engine import memory, probes, seed_promise
from workers.engine.engine import Engine
from workers.engine.lanes import Lanes
from workers.engine.previews import PreviewTimer
from workers.engine.probes import bounded_probes, probe_calls
from workers.engine.seed_promise import SeedPromise
from workers.errors import InvalidRequest

NAMES = ("flow", "in-turn", "masked")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    save_families(folder)
    return folder


@pytest.fixture(scope="module")
def pipelines(weights: Path) -> dict[str, Pipeline]:
    return {name: Pipeline.load(weights / name) for name in NAMES}


def mixed_works(weights: Path) -> list[Work]:
    """Return requests of every kind to every family."""
    jobs, works = Jobs(weights), []
    asked: dict[str, list[dict[str, object]]] = {
        "flow": [{"num_steps": 3}, {"num_steps": 5, "sampler": "heun", "guidance_scale": 1.0}],
        "in-turn": [{}, {"guidance_scale": 2.5, "temperature": 0.8, "top_k": 12}, {"temperature": 0.0}],
        "masked": [{}, {"sampler": "ancestral", "num_steps": 5, "guidance_scale": 2.0}],
    }
    for name, kinds in asked.items():
        for number, options in enumerate(2 * kinds):
            works.append(
                jobs.generate(
                    f"{name} {number}", pipeline=name, seed=number, num_outputs=1 + number % 3,
                    labels={"class": number % 3}, preview=number % 2 == 0, return_codes=True, **options,
                )
            )  # fmt: skip
    source, mask = noise_image(3, 12, 12, 1), np.zeros((12, 12, 1), np.uint8)
    mask[4:9, 2:7] = 255
    for number, (part, strength) in enumerate(((None, 0.5), (mask, None), (mask, 0.8))):
        works.append(
            jobs.edit(
                source, part, f"edit {number}", pipeline="masked", seed=number, labels={"class": 1},
                preview=True, return_codes=True, strength=strength,
            )
        )  # fmt: skip
    return works


def test_families_share_a_worker_with_the_bytes_of_each_alone(weights, pipelines, tmp_path) -> None:
    promise = SeedPromise("on", tmp_path, num_probes=32, candidates=(1, 2, 4, 8))
    engine = Engine(pipelines, 8, promise=promise, previews=PreviewTimer(every_s=0))
    while engine.needs_check:
        engine.check_seeds(60)
    assert all(each.is_kept for each in engine.seed_verdicts().values())
    works = mixed_works(weights)
    alone = {work.job_id: digest(run(engine, [work])[work.job_id]) for work in works}
    for seed, chance in enumerate((0.3, 1.0)):
        together = run(engine, works, admit_chance=chance, seed=seed)
        assert {name: digest(finished) for name, finished in together.items()} == alone
    assert len(set(alone.values())) == len(works) - 1  # at a temperature of 0, the seed is nothing


def test_samples_that_are_dropped_half_way_leave_the_others_their_bytes(weights, pipelines) -> None:
    works = mixed_works(weights)
    engine = Engine(pipelines, 32)
    alone = {work.job_id: digest(run(engine, [work])[work.job_id]) for work in works}
    dropped = {work.job_id for work in works[::2]}
    engine.admit(works)
    engine.step()
    engine.step()
    engine.drop(dropped)
    ended = {}
    while not engine.is_idle:
        ended.update({finished.job_id: digest(finished) for finished in engine.step()})
    assert ended == {name: wanted for name, wanted in alone.items() if name not in dropped}


def test_an_image_in_turn_tells_its_progress_and_shows_what_is_drawn_so_far(weights, pipelines) -> None:
    engine = Engine(
        pipelines, 8, previews=PreviewTimer(every_s=0, share=1)
    )  # each step, however long it took
    engine.admit([Jobs(weights).generate(pipeline="in-turn", seed=1, preview=True)])
    steps, shown = [], []
    while not engine.is_idle:
        steps += [each.step for each in engine.progress().values()]
        shown += list(engine.previews().values())
        engine.step()
    assert steps == list(range(1, 36))
    assert len(shown) > 2
    assert not np.array_equal(shown[0].array, shown[-1].array)


def test_a_cheap_stage_has_several_calls_while_a_dear_one_has_its_own(weights, pipelines) -> None:
    """One image of 36 calls beside flow images of as many: it does not wait for one of them each time."""
    engine = Engine(pipelines, 32)
    jobs = Jobs(weights)
    slow = jobs.generate("slow", pipeline="flow", num_outputs=16, num_steps=36, seed=1)
    engine.admit([slow, jobs.generate("quick", pipeline="in-turn", seed=1)])
    stage = engine._served["flow"].stages.sample
    num_calls = 0
    step = stage.step

    def slower(samples, run) -> None:
        nonlocal num_calls
        num_calls += 1
        for _ in range(3):  # the same call again, to be dear on any machine
            run(lambda items: stage._call([samples[i] for i in items]), len(samples), None, None)
        step(samples, run)

    stage.step = slower
    ended: list[str] = []
    while "quick" not in ended:
        ended += [finished.job_id for finished in engine.step()]
    assert "slow" not in ended
    assert num_calls < 30


def test_options_that_a_family_lacks_or_cannot_take_are_refused(weights) -> None:
    jobs = Jobs(weights)
    with pytest.raises(
        InvalidRequest, match="num_steps: this pipeline has guidance_scale, temperature, top_k"
    ):
        jobs.generate(pipeline="in-turn", num_steps=3)
    with pytest.raises(InvalidRequest, match="top_p: this pipeline has num_steps, guidance_scale, sampler"):
        jobs.generate(pipeline="masked", top_p=0.5)
    with pytest.raises(
        InvalidRequest, match="sampler: this pipeline has euler, heun, dpmpp_2m, got 'ancestral'"
    ):
        jobs.generate(pipeline="flow", sampler="ancestral")
    with pytest.raises(InvalidRequest, match="sampler: should be 'confidence' or 'ancestral', got 'heun'"):
        jobs.generate(pipeline="masked", sampler="heun")


def test_a_pipeline_that_draws_in_turn_says_why_it_edits_nothing(weights) -> None:
    with pytest.raises(
        InvalidRequest, match="source: in-turn takes no source: it draws codes one after another, rows first"
    ):
        Jobs(weights).edit(noise_image(1, 12, 12, 1), pipeline="in-turn")


def test_probes_of_the_seed_promise_have_a_past(pipelines) -> None:
    """At every position there is something to attend to, so that a check checks what is served."""
    (call, num_rows), *others = probe_calls(pipelines["in-turn"], 40, (8,))
    assert not others
    logits = call(list(range(8))).float()
    assert num_rows == 40
    assert logits.shape == (8, 32)
    assert len({tuple(row) for row in logits.tolist()}) == 8
    stage = pipelines["in-turn"].make_stages(1).sample
    sample = Sample(SampleSpec(0, AutoregressiveOptions(), *2 * [pipelines["in-turn"].conditions()]))
    stage.start(sample)
    stage.pretend(sample, 20)
    assert (
        torch.count_nonzero(stage._cache.keys[:, 0, :, :20]) > 0.9 * stage._cache.keys[:, 0, :, :20].numel()
    )
    assert not stage._cache.keys[:, 0, :, 20:].any()


def checked(pipelines: dict[str, Pipeline]) -> Engine:
    engine = Engine(pipelines, 8, promise=SeedPromise("on", num_probes=32), lanes=Lanes(1))
    while engine.needs_check:
        engine.check_seeds(60)
    return engine


def test_probes_of_a_prior_with_large_caches_are_fewer_than_rows_of_a_call(pipelines, monkeypatch) -> None:
    stage = pipelines["in-turn"].make_stages(3).sample
    assert stage.bytes_per_sample == 2 * 2 * 2 * 36 * 32 * 2  # nulls, keys and values, layers, codes
    assert bounded_probes(256, stage) == 256
    assert bounded_probes(256, pipelines["flow"].make_stages(3).sample) == 256
    monkeypatch.setattr(probes, "CACHE_BYTES", 11 * stage.bytes_per_sample)
    monkeypatch.setattr(probes, "MIN_PROBES", 3)
    assert bounded_probes(256, stage) == 11
    (verdict,) = checked({"in-turn": pipelines["in-turn"]}).seed_verdicts().values()
    assert (verdict.how, verdict.is_kept) == ("checked", True)
    assert 16 in verdict.rows


def test_a_check_that_memory_is_too_small_for_is_left_out_and_told(pipelines, monkeypatch, caplog) -> None:
    monkeypatch.setattr(seed_promise, "free_bytes", lambda _: 10**5)
    with caplog.at_level("WARNING"):
        verdicts = checked({name: pipelines[name] for name in ("in-turn", "masked")}).seed_verdicts()
    assert (verdicts["in-turn"].how, verdicts["in-turn"].rows) == ("full_batches", (16,))
    assert verdicts["masked"].how == "checked"
    assert "pipeline=in-turn seed promise unchecked: its 32 probes want 589,824 bytes" in caplog.text


def test_slots_of_large_caches_are_only_as_many_as_memory_has_room_for(
    weights, pipelines, monkeypatch
) -> None:
    in_turn = {"in-turn": pipelines["in-turn"]}
    work = Jobs(weights).generate(pipeline="in-turn", seed=1, num_outputs=7)
    wanted = digest(run(Engine(in_turn, 8), [work])["x"])
    of_one = pipelines["in-turn"].make_stages(1).sample.bytes_per_sample
    monkeypatch.setattr(memory, "free_bytes", lambda _: int(3.5 * 2 * of_one / memory.SHARE))
    engine = Engine({**in_turn, "flow": pipelines["flow"]}, 8)
    assert [engine._served[name].num_slots for name in ("in-turn", "flow")] == [3, 8]
    assert engine._served["in-turn"].stages.sample.max_samples == 6
    assert digest(run(engine, [work])["x"]) == wanted


def test_memory_is_measured_with_the_caches_of_so_many_samples(weights, pipelines) -> None:
    engine = Engine(pipelines, 8, lanes=Lanes(1))
    engine.warm_up()
    assert all(served.num_slots == 8 for served in engine._served.values())
