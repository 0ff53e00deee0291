"""The engine over a small pipeline: the seed promise, isolation, fairness."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from models.conditioning import Conditions
from models.pipeline import Pipeline
from tests.workers.engine.engine_runs import Jobs, digest, noise_image, run
from workers.compute import Slots, Work
from workers.engine.engine import Engine
from workers.engine.lanes import Lanes
from workers.engine.previews import PreviewTimer


@pytest.fixture(scope="module")
def pipelines(tiny_weights: Path) -> dict[str, Pipeline]:
    return {"tiny": Pipeline.load(tiny_weights / "tiny")}


@pytest.fixture(scope="module")
def jobs(tiny_weights: Path) -> Jobs:
    return Jobs(tiny_weights)


def always() -> PreviewTimer:
    """Return a timer that shows every step of every job."""
    return PreviewTimer(every_s=0, share=1)


def random_work(count: int, chance: random.Random, jobs: Jobs) -> list[Work]:
    works = []
    for index in range(count):
        kind, name = chance.random(), str(index)
        if kind < 0.7:
            pictures = [
                noise_image(chance.randrange(99), 12, 12, 1) for _ in range(chance.choice([0, 0, 1, 2]))
            ]
            masks = [(each > 180).astype(np.uint8) * 255 for each in pictures[1:]]
            works.append(
                (partial(jobs.edit, *pictures[:1], *masks) if pictures else jobs.generate)(
                    job_id=name,
                    class_label=chance.choice([None, 0, 1, 2]),
                    num_outputs=chance.choice([1, 1, 1, 2, 5]),
                    seed=chance.randrange(1000),
                    num_steps=chance.randint(1, 9),
                    guidance_scale=chance.choice([1.0, 1.5, 4.0]),
                    sampler=chance.choice(["euler", "heun", "dpmpp_2m"]),
                    return_codes=chance.random() < 0.5,
                    preview=chance.random() < 0.3,
                    priority=chance.choice(["interactive", "batch"]),
                )
            )
        elif kind < 0.85:
            images = [noise_image(chance.randrange(99), 12, 12, 1) for _ in range(chance.choice([1, 1, 3]))]
            works.append(jobs.encode(*images, job_id=name, effort=chance.choice([0, 0, 1])))
        else:
            grids = [
                [[chance.randrange(32) for _ in range(6)] for _ in range(6)]
                for _ in range(chance.randint(1, 3))
            ]
            works.append(jobs.decode(grids, job_id=name))
    return works


@pytest.mark.parametrize("num_mixes", [60, pytest.param(200, marks=pytest.mark.ci)])
def test_same_request_same_bytes_in_random_mixes(pipelines, jobs, num_mixes: int) -> None:
    """Alone, late, in any company and order, in batches of any size: bit for bit the same."""
    chance = random.Random(1)
    works = random_work(40, chance, jobs)
    alone = {work.job_id: digest(run(Engine(pipelines), [work])[work.job_id]) for work in works}
    assert len(set(alone.values())) > 30
    for mix in range(num_mixes):
        chosen = chance.sample(works, chance.randint(2, 10))
        engine = Engine(pipelines, max_batch_size=chance.choice([1, 3, 8, 32]), previews=always())
        ended = run(engine, chosen, admit_chance=chance.choice([0.2, 0.7, 1.0]), seed=mix)
        assert {name: digest(finished) for name, finished in ended.items()} == {
            work.job_id: alone[work.job_id] for work in chosen
        }


def test_engine_and_pipeline_generate_the_same_codes(pipelines, jobs) -> None:
    """Samples at steps of their own, and ``Pipeline.generate``'s in step, walk the same stages."""
    pipeline = pipelines["tiny"]
    for sampler in ("euler", "heun", "dpmpp_2m"):
        chosen = {"num_steps": 6, "sampler": sampler}
        work = jobs.generate(class_label=2, seed=5, num_outputs=3, return_codes=True, **chosen)
        finished = run(Engine(pipelines), [work])["x"]
        conditions = pipeline.conditions({"class": 2}).expand(3)
        expected = pipeline.generate(conditions, 5, replace(pipeline.spec.defaults, **chosen))
        made = torch.stack([torch.tensor(sample.signal) for sample in finished.samples])
        # The engine decodes in batches of another size, in float32.
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


def test_previews_come_near_the_image_and_change_nothing(pipelines, jobs) -> None:
    asked = {"class_label": 1, "seed": 3, "num_outputs": 2, "num_steps": 30, "return_codes": True}
    plain = run(Engine(pipelines), [jobs.generate(**asked)])["x"]
    engine, shown, ended = Engine(pipelines, previews=always()), [], []
    engine.admit([jobs.generate(**asked, preview=True)])
    while not ended:
        ended = engine.step()
        shown.extend(engine.previews().values())
    assert digest(ended[0]) == digest(plain)
    assert [(preview.index, preview.step) for preview in shown] == [(i % 2, i + 1) for i in range(29)]
    medium = engine._served["tiny"].medium
    image = medium.from_signal(plain.samples[shown[-1].index].signal).astype(int)
    first, last = shown[0].array.astype(int), shown[-1].array.astype(int)
    assert abs(last - image).mean() < abs(first - image).mean() / 2


def test_a_job_is_previewed_at_most_twice_a_second(pipelines, jobs) -> None:
    clock = 0.0
    engine = Engine(pipelines, previews=PreviewTimer(clock=lambda: clock))
    num_shown = dict.fromkeys(("loud", "quiet"), 0)
    engine.admit(
        [
            jobs.generate(name, seed=0, num_outputs=2, num_steps=100, preview=name == "loud")
            for name in num_shown
        ]
    )
    while not engine.is_idle:
        engine.step()
        clock += 0.125
        for name in engine.previews():
            num_shown[name] += 1
    assert num_shown == {"loud": 25, "quiet": 0}


def test_encoded_codes_decode_to_what_the_tokenizer_makes(pipelines, jobs) -> None:
    encoded = run(Engine(pipelines), [jobs.encode(noise_image(0, 12, 12, 1), noise_image(1, 12, 12, 1))])["x"]
    assert encoded.codes is not None
    decoded = run(Engine(pipelines), [jobs.decode(encoded.codes.codes)])["x"]
    expected = pipelines["tiny"].tokenizer.decode_codes(torch.tensor(encoded.codes.codes))
    assert [sample.signal.shape for sample in decoded.samples] == [(1, 12, 12)] * 2
    made = torch.stack([torch.tensor(sample.signal) for sample in decoded.samples])
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)  # other numbers of rows, in float32


def test_effort_finds_codes_that_decode_better(pipelines, jobs) -> None:
    tokenizer = pipelines["tiny"].tokenizer
    shades = np.linspace(0, 255, 12).astype(np.uint8)[:, None, None].repeat(12, 1)
    engine = Engine(pipelines)
    engine.admit([jobs.encode(shades, effort=2)])
    engine.step()
    engine.step()
    assert (engine.progress()["x"].step, engine.progress()["x"].total) == (2, 50)
    found = run(engine, [])["x"].codes
    assert found is not None
    target = torch.tensor(shades.astype(np.float32) / 127.5 - 1).movedim(-1, 0)[None]
    nearest = tokenizer.quantize(tokenizer.encode(target)).codes
    error, nearest_error = (
        (tokenizer.decode_codes(codes) - target).square().mean()
        for codes in (torch.tensor(found.codes), nearest)
    )
    assert error < nearest_error


def test_a_search_that_fails_costs_only_its_job(tiny_weights, jobs) -> None:
    pipeline = Pipeline.load(tiny_weights / "tiny")
    searched = jobs.encode(np.zeros((12, 12, 1), np.uint8), job_id="bad", effort=1)
    generated = jobs.generate("good", seed=3, num_steps=2)
    alone = digest(run(Engine({"tiny": pipeline}), [generated])["good"])

    def fail(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("boom")

    pipeline.tokenizer.encode = fail
    ended = run(Engine({"tiny": pipeline}), [searched, generated])
    assert ended["bad"].error is not None
    assert ended["bad"].error.code == "internal_error"
    assert digest(ended["good"]) == alone


def test_a_late_short_job_ends_before_an_early_long_one(pipelines, jobs) -> None:
    engine = Engine(pipelines, max_batch_size=8)
    engine.admit([jobs.generate("long", seed=0, num_outputs=2, num_steps=50)])
    for _ in range(5):
        engine.step()
    engine.admit([jobs.generate("short", seed=1, num_steps=2)])
    ended = [finished.job_id for _ in range(3) for finished in engine.step()]
    assert ended == ["short"]


def test_a_small_job_starts_beside_a_large_one_that_waits_for_slots(pipelines, jobs) -> None:
    engine = Engine(pipelines, max_batch_size=2)
    large = jobs.generate("large", seed=0, num_outputs=40, num_steps=2)
    engine.admit([large, jobs.generate("small", seed=1, num_steps=2)])
    ended = [finished.job_id for _ in range(4) for finished in engine.step()]
    assert ended == ["small"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_number_of_lanes_changes_no_bytes(pipelines, jobs, count) -> None:
    work = [jobs.generate(str(i), seed=i, num_outputs=3, num_steps=4) for i in range(4)]
    expected = {name: digest(each) for name, each in run(Engine(pipelines), work).items()}
    ended = run(Engine(pipelines, lanes=Lanes(count)), work)
    assert {name: digest(each) for name, each in ended.items()} == expected


def test_slots_are_bounded_by_memory_for_each_pipeline(tiny_weights, jobs, monkeypatch) -> None:
    """A pipeline that fits only three times holds up none of the other's images, and keeps its bytes."""
    large, small = Pipeline.load(tiny_weights / "tiny"), Pipeline.load(tiny_weights / "tiny")
    asked = {"num_steps": 3, "guidance_scale": 1.0, "sampler": "euler", "num_outputs": 5}
    work = []
    for seed, name in enumerate(("large", "small")):
        made = jobs.generate(name, seed=seed, **asked)
        work.append(Work(name, made.request.model_copy(update={"pipeline": name})))
    unbounded = run(Engine({"large": large, "small": small}), work)
    fits = {id(large): 3, id(small): 99}

    def measure_fit(compute, device, at_most, few):
        yield
        return min(at_most, fits[id(compute.args[0])])

    monkeypatch.setattr("workers.engine.engine.measure_fit", measure_fit)
    engine = Engine({"large": large, "small": small}, max_batch_size=8, lanes=Lanes(1))
    engine.warm_up()
    assert engine.free_slots == Slots(8, 8)
    batch_sizes: list[int] = []
    large.prior.network.register_forward_pre_hook(lambda _, inputs: batch_sizes.append(len(inputs[0])))
    ended = run(engine, work)
    assert max(batch_sizes) == 3
    assert {name: digest(each) for name, each in ended.items()} == {
        name: digest(each) for name, each in unbounded.items()
    }


def test_dropped_jobs_end_at_once_and_leave_the_others_alone(pipelines, jobs) -> None:
    stays = jobs.generate("stays", seed=4, num_steps=6)
    alone = digest(run(Engine(pipelines), [stays])["stays"])
    engine = Engine(pipelines)
    engine.admit([jobs.generate("goes", seed=1, num_outputs=9), stays])
    engine.step()
    engine.drop({"goes"})
    ended = run(engine, [])
    assert list(ended) == ["stays"]
    assert digest(ended["stays"]) == alone


def test_slots_of_dropped_jobs_are_used_again(pipelines, jobs) -> None:
    engine = Engine(pipelines, max_batch_size=4)
    for number in range(5):
        engine.admit([jobs.generate(f"goes-{number}", seed=1, num_outputs=4)])
        engine.step()
        engine.drop({f"goes-{number}"})
    assert engine.free_slots == Slots(4, 4)
    stays = jobs.generate(seed=4, num_outputs=4)
    assert digest(run(engine, [stays])["x"]) == digest(run(Engine(pipelines), [stays])["x"])


def test_progress_counts_calls_of_all_images(pipelines, jobs) -> None:
    engine = Engine(pipelines)
    engine.admit([jobs.generate(seed=0, num_outputs=2, num_steps=5, sampler="euler")])
    engine.step()
    engine.step()
    progress = engine.progress()["x"]
    assert (progress.step, progress.total) == (4, 10)


def break_prior(pipeline: Pipeline, bad: int, error: Exception | None) -> None:
    """Let the prior fail where a row has the class label ``bad``: by an exception, or by NaN."""
    whole = pipeline.prior.network.forward

    def forward(x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        is_bad = (conditions.labels == bad).any(1)
        if error is not None and bool(is_bad.any()):
            raise error
        return torch.where(is_bad.view(-1, 1, 1, 1), torch.nan, whole(x, t, conditions))

    pipeline.prior.network.forward = forward


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, "not_finite"),
        (RuntimeError("boom"), "internal_error"),
        (torch.OutOfMemoryError("out of memory"), "out_of_memory"),
    ],
)
def test_a_bad_request_fails_alone(tiny_weights, jobs, error, code) -> None:
    pipeline = Pipeline.load(tiny_weights / "tiny")
    good = [jobs.generate(str(i), class_label=0, seed=i, num_outputs=2) for i in range(3)]
    alone = [digest(run(Engine({"tiny": pipeline}), [work])[work.job_id]) for work in good]
    break_prior(pipeline, bad=1, error=error)
    bad = jobs.generate("bad", class_label=1, seed=9, guidance_scale=1.0)
    ended = run(Engine({"tiny": pipeline}), [*good, bad])
    assert ended["bad"].error is not None
    assert ended["bad"].error.code == code
    assert [digest(ended[str(i)]) for i in range(3)] == alone


def test_a_bad_sample_fails_alone_inside_its_job(tiny_weights, jobs) -> None:
    """NaN in the second of three outputs costs the other two nothing, and leaves their codes."""
    pipeline = Pipeline.load(tiny_weights / "tiny")
    work = jobs.generate(class_label=0, seed=1, num_outputs=3, guidance_scale=1.0, return_codes=True)
    whole = run(Engine({"tiny": pipeline}), [work])["x"]
    engine = Engine({"tiny": pipeline})
    engine.admit([work])
    engine.step()
    stage = engine._served["tiny"].stages.sample
    stage._state[engine._running[1].sample.state.slot] = torch.nan
    ended = run(engine, [])["x"]
    assert [sample.error.code if sample.error else None for sample in ended.samples] == [
        None, "not_finite", None,
    ]  # fmt: skip
    for index in (0, 2):
        assert np.array_equal(ended.samples[index].signal, whole.samples[index].signal)
    assert ended.codes.codes == [whole.codes.codes[0], None, whole.codes.codes[2]]


def test_a_file_that_can_not_be_encoded_has_no_codes(tiny_weights, jobs) -> None:
    """And leaves those beside it theirs: what it had before is not taken for codes."""
    pipeline = Pipeline.load(tiny_weights / "tiny")
    images = [noise_image(seed, 12, 12, 1) for seed in range(3)]
    whole = run(Engine({"tiny": pipeline}), [jobs.encode(*images)])["x"]
    encode = pipeline.tokenizer.encode
    bad = torch.tensor(images[1].astype(np.float32) / 127.5 - 1).movedim(-1, 0)

    def fail_on_bad(signals: torch.Tensor) -> torch.Tensor:
        if any(torch.equal(signal, bad) for signal in signals):
            raise RuntimeError("boom")
        return encode(signals)

    pipeline.tokenizer.encode = fail_on_bad
    ended = run(Engine({"tiny": pipeline}), [jobs.encode(*images)])["x"]
    assert [sample.error.code if sample.error else None for sample in ended.samples] == [
        None, "internal_error", None,
    ]  # fmt: skip
    assert ended.codes.codes == [whole.codes.codes[0], None, whole.codes.codes[2]]


def test_out_of_memory_halves_the_batch_and_goes_on(tiny_weights, jobs) -> None:
    pipeline = Pipeline.load(tiny_weights / "tiny")
    work = jobs.generate(class_label=0, seed=1, num_outputs=16)
    expected = digest(run(Engine({"tiny": pipeline}), [work])["x"])
    whole, sizes = pipeline.prior.network.forward, []

    def forward(x, t, conditions):
        sizes.append(len(x))
        if len(x) > 5:
            raise torch.OutOfMemoryError("out of memory")
        return whole(x, t, conditions)

    pipeline.prior.network.forward = forward
    assert digest(run(Engine({"tiny": pipeline}), [work])["x"]) == expected
    assert max(sizes[len(sizes) // 2 :]) <= 5, "once it has failed, large batches are not tried again"


@pytest.mark.parametrize("part", ["prior", "tokenizer"])
def test_when_every_row_fails_each_job_hears_why(tiny_weights, jobs, part) -> None:
    pipeline = Pipeline.load(tiny_weights / "tiny")

    def fail(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    if part == "prior":
        pipeline.prior.network.forward = fail
    else:
        pipeline.tokenizer.decode = fail
    work = [jobs.generate(str(i), seed=i, num_outputs=2) for i in range(3)]
    ended = run(Engine({"tiny": pipeline}), work)
    assert [finished.error.code for finished in ended.values()] == ["out_of_memory"] * 3


def test_batch_samples_are_parked_while_an_interactive_job_runs(pipelines, jobs) -> None:
    """A full batch costs the one that comes no step, and goes on from where it was, to the same bytes."""
    asked = {"num_steps": 6, "sampler": "euler", "num_outputs": 4}
    parked = jobs.generate("parked", seed=1, priority="batch", **asked)
    alone = digest(run(Engine(pipelines), [parked])["parked"])
    engine = Engine(pipelines, max_batch_size=4)
    engine.admit([parked])
    engine.step()
    engine.step()
    assert engine.free_slots == Slots(interactive=4, batch=0)
    engine.admit([jobs.generate("now", seed=2, **asked)])
    ended = [engine.step() for _ in range(6)]
    assert [finished.job_id for each in ended for finished in each] == ["now"]
    assert ended[-1], "in its sixth step"
    assert engine.progress()["parked"].step == 4 * 2
    assert digest(run(engine, [])["parked"]) == alone


def test_what_has_been_parked_for_long_gets_every_fourth_step(pipelines, jobs) -> None:
    clock = 0.0
    engine = Engine(pipelines, ageing_s=30, clock=lambda: clock)
    engine.admit([jobs.generate("parked", num_steps=50, sampler="euler", priority="batch")])
    engine.admit([jobs.generate("now", num_steps=50, sampler="euler")])
    for _ in range(8):
        engine.step()
    assert "parked" not in engine.progress()
    clock = 30.0
    for _ in range(8):
        engine.step()
    assert engine.progress()["parked"].step == 2
    assert engine.progress()["now"].step == 8 + 6


def test_a_job_tells_its_calls_and_how_many_samples_shared_them(pipelines, jobs) -> None:
    def told(*works: Work) -> dict[str, tuple[int, float]]:
        ended = run(Engine(pipelines), list(works))
        return {name: (each.progress.step, each.batch_size) for name, each in ended.items()}

    four = jobs.generate("four", num_steps=4, sampler="euler", num_outputs=2)
    assert Engine(pipelines).device == "cpu"
    assert told(four) == {"four": (8, 2.0)}
    alone_later = jobs.generate("eight", num_steps=8, sampler="euler")
    both = told(four, alone_later)
    assert both["four"] == (8, pytest.approx((4 * 3 + 2) / 5)), "and decoded by themselves"
    assert both["eight"] == (8, pytest.approx((4 * 3 + 4 * 1 + 1) / 9))
    encoded = run(Engine(pipelines), [jobs.encode(noise_image(1, 12, 12, 1), job_id="x")])["x"]
    assert (encoded.progress, encoded.batch_size) == (None, 1.0)
