"""The engine over a small pipeline: the seed contract, isolation, fairness."""

import base64
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.conditioning import Conditions
from models.pipeline import Pipeline
from tests.workers.engine_runs import digest, run
from workers.catalog import Catalog
from workers.engine import Engine
from workers.images import encode_image
from workers.lanes import Lanes
from workers.messages import DecodeRequest, EncodeRequest, GenerateRequest, Request
from workers.work import Work


@pytest.fixture(scope="module")
def pipelines(tiny_weights: Path) -> dict[str, Pipeline]:
    return {"tiny": Pipeline.load(tiny_weights / "tiny")}


@pytest.fixture(scope="module")
def resolve(tiny_weights: Path) -> Callable[[Request], Request]:
    return Catalog.load(tiny_weights).resolve


def random_requests(count: int, chance: random.Random, fingerprint: str) -> list[Request]:
    requests: list[Request] = []
    for _ in range(count):
        kind = chance.random()
        if kind < 0.7:
            requests.append(
                GenerateRequest(
                    class_label=chance.choice([None, 0, 1, 2]),
                    num_images=chance.choice([1, 1, 1, 2, 5]),
                    seed=chance.randrange(1000),
                    num_steps=chance.randint(1, 9),
                    guidance_scale=chance.choice([1.0, 1.5, 4.0]),
                    sampler=chance.choice(["euler", "heun", "dpmpp_2m"]),
                    return_codes=chance.random() < 0.5,
                    preview=chance.random() < 0.3,
                    cache_interval=chance.choice([None, None, 1, 2, 3, 4]),
                )
            )
        elif kind < 0.85:
            pixels = torch.randint(
                256,
                (12, 12, 1),
                generator=torch.Generator().manual_seed(chance.randrange(99)),
                dtype=torch.uint8,
            )
            image = base64.b64encode(encode_image(pixels.numpy(), "png")).decode()
            requests.append(EncodeRequest(image=image, effort=chance.choice([0, 0, 1])))
        else:
            grids = [
                [[chance.randrange(32) for _ in range(6)] for _ in range(6)]
                for _ in range(chance.randint(1, 3))
            ]
            requests.append(DecodeRequest(codes=grids, tokenizer=fingerprint))
    return requests


def test_same_request_same_bytes_in_200_random_mixes(pipelines, resolve, monkeypatch) -> None:
    """Alone, late, in any company and order, in batches of any size: bit for bit the same."""
    monkeypatch.setattr("workers.engine.PREVIEW_EVERY_S", 0)
    monkeypatch.setattr("workers.engine.PREVIEW_SHARE", 1)
    chance = random.Random(1)
    fingerprint = pipelines["tiny"].config.tokenizer_fingerprint
    requests = [resolve(request) for request in random_requests(40, chance, fingerprint)]
    alone = {i: digest(run(Engine(pipelines), [Work("x", r)])["x"]) for i, r in enumerate(requests)}
    assert len(set(alone.values())) > 30
    for mix in range(200):
        chosen = chance.sample(range(len(requests)), chance.randint(2, 10))
        engine = Engine(pipelines, max_batch_size=chance.choice([1, 3, 8, 32]))
        work = [Work(str(i), requests[i]) for i in chosen]
        ended = run(engine, work, admit_chance=chance.choice([0.2, 0.7, 1.0]), seed=mix)
        assert {int(i): digest(finished) for i, finished in ended.items()} == {i: alone[i] for i in chosen}


def test_padded_batches_give_the_same_bytes(pipelines, resolve) -> None:
    request = resolve(GenerateRequest(class_label=1, seed=3, num_images=3))
    plain = run(Engine(pipelines), [Work("x", request)])["x"]
    padded = run(Engine(pipelines, 4, is_batch_padded=True), [Work("x", request)])["x"]
    assert digest(plain) == digest(padded)


def test_engine_and_pipeline_generate_the_same_codes(pipelines, resolve) -> None:
    """The engine's schedule per sample and ``Pipeline.generate``'s plain loop are the same sampler."""
    pipeline = pipelines["tiny"]
    for sampler, interval in (("euler", None), ("heun", None), ("dpmpp_2m", None), ("heun", 3), ("euler", 2)):
        request = GenerateRequest(
            class_label=2,
            seed=5,
            num_images=3,
            num_steps=6,
            sampler=sampler,
            cache_interval=interval,
            return_codes=True,
        )
        finished = run(Engine(pipelines), [Work("x", resolve(request))])["x"]
        expected = pipeline.generate(
            pipeline.conditions(class_label=2).expand(3),
            5,
            replace(pipeline.config.defaults, num_steps=6, sampler=sampler),
            cache_interval=interval or 1,
        )
        assert finished.codes is not None
        made = pipeline.tokenizer.decode_codes(torch.tensor(finished.codes.codes))
        # The engine decodes in batches of another size, in float32.
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


def test_previews_come_near_the_image_and_change_nothing(pipelines, resolve, monkeypatch) -> None:
    monkeypatch.setattr("workers.engine.PREVIEW_EVERY_S", 0)
    monkeypatch.setattr("workers.engine.PREVIEW_SHARE", 1)
    request = GenerateRequest(class_label=1, seed=3, num_images=2, num_steps=30, return_codes=True)
    plain = run(Engine(pipelines), [Work("x", resolve(request))])["x"]
    engine, shown, ended = Engine(pipelines), [], []
    engine.admit([Work("x", resolve(request.model_copy(update={"preview": True})))])
    while not ended:
        ended = engine.step()
        shown.extend(engine.previews().values())
    assert digest(ended[0]) == digest(plain)
    assert [(preview.index, preview.step) for preview in shown] == [(i % 2, i + 1) for i in range(29)]
    last, image = shown[-1].pixels.astype(int), plain.images[shown[-1].index].astype(int)
    first = shown[0].pixels.astype(int)
    assert abs(last - image).mean() < abs(first - image).mean() / 2


def test_a_job_is_previewed_at_most_twice_a_second(pipelines, resolve, monkeypatch) -> None:
    clock = 0.0
    monkeypatch.setattr("workers.engine.time.monotonic", lambda: clock)
    engine, num_shown = Engine(pipelines), dict.fromkeys(("loud", "quiet"), 0)
    engine.admit(
        Work(name, resolve(GenerateRequest(seed=0, num_images=2, num_steps=100, preview=name == "loud")))
        for name in num_shown
    )
    while not engine.is_idle:
        engine.step()
        clock += 0.125
        for name in engine.previews():
            num_shown[name] += 1
    assert num_shown == {"loud": 25, "quiet": 0}


def test_step_caching_leaves_out_the_middle_blocks(tiny_weights, resolve) -> None:
    """An interval of 4 over 8 calls computes them twice, and gives another picture that is near."""
    pipeline = Pipeline.load(tiny_weights / "tiny")
    request = GenerateRequest(seed=3, num_steps=8, sampler="euler", guidance_scale=1.0)
    num_calls = [0, 0, 0]

    def count(block: int) -> None:
        num_calls[block] += 1

    for i, block in enumerate(pipeline.prior.blocks):
        block.register_forward_pre_hook(lambda *_, i=i: count(i))
    exact = run(Engine({"tiny": pipeline}), [Work("x", resolve(request))])["x"]
    assert num_calls == [8, 8, 8]
    cached_request = resolve(request.model_copy(update={"cache_interval": 4}))
    cached = run(Engine({"tiny": pipeline}), [Work("x", cached_request)])["x"]
    assert num_calls == [16, 10, 16]
    assert digest(cached) != digest(exact)
    whole = resolve(request.model_copy(update={"cache_interval": 1}))
    assert digest(run(Engine({"tiny": pipeline}), [Work("x", whole)])["x"]) == digest(exact)


def test_encoded_codes_decode_to_what_the_tokenizer_makes(pipelines, resolve) -> None:
    fingerprint = pipelines["tiny"].config.tokenizer_fingerprint
    pixels = torch.randint(256, (12, 12, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = base64.b64encode(encode_image(pixels.numpy(), "png")).decode()
    encoded = run(Engine(pipelines), [Work("e", resolve(EncodeRequest(image=image)))])["e"]
    assert encoded.codes is not None
    request = DecodeRequest(codes=encoded.codes.codes, tokenizer=fingerprint)
    decoded = run(Engine(pipelines), [Work("d", resolve(request))])["d"]
    expected = pipelines["tiny"].tokenizer.decode_codes(torch.tensor(encoded.codes.codes))
    assert decoded.images[0].shape == (12, 12, 1)
    # Within one grey level: this reference ran on one row, the engine on a padded batch.
    assert (
        torch.tensor(decoded.images[0]).float() - ((expected[0, 0, :, :, None] + 1) * 127.5)
    ).abs().max() <= 1


def test_effort_finds_codes_that_decode_better(pipelines, resolve) -> None:
    tokenizer = pipelines["tiny"].tokenizer
    shades = torch.linspace(0, 255, 12).to(torch.uint8)[:, None].expand(12, 12)[..., None]
    image = base64.b64encode(encode_image(shades.numpy(), "png")).decode()
    engine = Engine(pipelines)
    engine.admit([Work("x", resolve(EncodeRequest(image=image, effort=2)))])
    engine.step()
    engine.step()
    assert (engine.progress()["x"].step, engine.progress()["x"].total) == (1, 50)
    found = run(engine, [])["x"].codes
    assert found is not None
    target = (shades.float() / 127.5 - 1).movedim(-1, 0)[None]
    nearest = tokenizer.quantize(tokenizer.encode(target)).codes
    error, nearest_error = (
        (tokenizer.decode_codes(codes) - target).square().mean()
        for codes in (torch.tensor(found.codes), nearest)
    )
    assert error < nearest_error


def test_a_search_that_fails_costs_only_its_job(tiny_weights, resolve) -> None:
    pipeline = Pipeline.load(tiny_weights / "tiny")
    image = base64.b64encode(encode_image(torch.zeros(12, 12, 1, dtype=torch.uint8).numpy(), "png")).decode()
    searched = resolve(EncodeRequest(image=image, effort=1))
    generated = resolve(GenerateRequest(seed=3, num_steps=2))
    alone = digest(run(Engine({"tiny": pipeline}), [Work("x", generated)])["x"])

    def fail(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("boom")

    pipeline.tokenizer.encode = fail
    ended = run(Engine({"tiny": pipeline}), [Work("bad", searched), Work("good", generated)])
    assert ended["bad"].error is not None
    assert ended["bad"].error.code == "internal_error"
    assert digest(ended["good"]) == alone


def test_a_late_short_job_ends_before_an_early_long_one(pipelines, resolve) -> None:
    engine = Engine(pipelines, max_batch_size=8)
    engine.admit([Work("long", resolve(GenerateRequest(seed=0, num_images=2, num_steps=50)))])
    for _ in range(5):
        engine.step()
    engine.admit([Work("short", resolve(GenerateRequest(seed=1, num_steps=2)))])
    ended = [finished.job_id for _ in range(3) for finished in engine.step()]
    assert ended == ["short"]


def test_a_small_job_starts_beside_a_large_one_that_waits_for_slots(pipelines, resolve) -> None:
    engine = Engine(pipelines, max_batch_size=2)
    large = resolve(GenerateRequest(seed=0, num_images=40, num_steps=2))
    engine.admit([Work("large", large), Work("small", resolve(GenerateRequest(seed=1, num_steps=2)))])
    ended = [finished.job_id for _ in range(4) for finished in engine.step()]
    assert ended == ["small"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_number_of_lanes_changes_no_bytes(pipelines, resolve, monkeypatch, count) -> None:
    work = [Work(str(i), resolve(GenerateRequest(seed=i, num_images=3, num_steps=4))) for i in range(4)]
    expected = {name: digest(each) for name, each in run(Engine(pipelines), work).items()}
    monkeypatch.setattr(Lanes, "for_device", lambda device: Lanes(count))
    assert {name: digest(each) for name, each in run(Engine(pipelines), work).items()} == expected


def test_slots_are_bounded_by_memory_for_each_pipeline(tiny_weights, monkeypatch) -> None:
    """A pipeline that fits only three times holds up none of the other's images, and keeps its bytes."""
    large, small = Pipeline.load(tiny_weights / "tiny"), Pipeline.load(tiny_weights / "tiny")
    requests = {
        name: [
            GenerateRequest(
                pipeline=name, seed=i, num_steps=3, guidance_scale=1.0, sampler="euler", num_images=5
            )
        ]
        for i, name in enumerate(("large", "small"))
    }
    work = [Work(name, request) for name, (request,) in requests.items()]
    unbounded = run(Engine({"large": large, "small": small}), work)
    fits = {large.prior: 3, small.prior: 99}
    monkeypatch.setattr(
        "workers.engine.num_that_fit",
        lambda compute, device, at_most: min(at_most, fits[compute.args[0].prior]),
    )
    monkeypatch.setattr(Lanes, "for_device", lambda device: Lanes(1))
    engine = Engine({"large": large, "small": small}, max_batch_size=8)
    engine.warm_up()
    assert engine.free_slots == 8
    batch_sizes: list[int] = []
    large.prior.register_forward_pre_hook(lambda _, inputs: batch_sizes.append(len(inputs[0])))
    ended = run(engine, work)
    assert max(batch_sizes) == 3
    assert {name: digest(each) for name, each in ended.items()} == {
        name: digest(each) for name, each in unbounded.items()
    }


def test_dropped_jobs_end_at_once_and_leave_the_others_alone(pipelines, resolve) -> None:
    request = resolve(GenerateRequest(seed=4, num_steps=6))
    alone = digest(run(Engine(pipelines), [Work("stays", request)])["stays"])
    engine = Engine(pipelines)
    engine.admit([Work("goes", resolve(GenerateRequest(seed=1, num_images=9))), Work("stays", request)])
    engine.step()
    engine.drop({"goes"})
    ended = run(engine, [])
    assert list(ended) == ["stays"]
    assert digest(ended["stays"]) == alone


def test_progress_counts_calls_of_all_images(pipelines, resolve) -> None:
    engine = Engine(pipelines)
    engine.admit([Work("x", resolve(GenerateRequest(seed=0, num_images=2, num_steps=5, sampler="euler")))])
    engine.step()
    engine.step()
    progress = engine.progress()["x"]
    assert (progress.step, progress.total) == (4, 10)


class _Breaking(torch.nn.Module):
    """A prior that fails where a row has the class label ``bad``."""

    def __init__(self, prior: torch.nn.Module, bad: int, error: Exception | None) -> None:
        super().__init__()
        self.prior, self.bad, self.error = prior, bad, error
        self.null_conditions = prior.null_conditions

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        is_bad = (conditions.labels == self.bad).any(1)
        if self.error is not None and bool(is_bad.any()):
            raise self.error
        return torch.where(is_bad.view(-1, 1, 1, 1), torch.nan, self.prior(x, t, conditions))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, "not_finite"),
        (RuntimeError("boom"), "internal_error"),
        (torch.OutOfMemoryError("out of memory"), "out_of_memory"),
    ],
)
def test_a_bad_request_fails_alone(tiny_weights, resolve, error, code) -> None:
    pipeline = Pipeline.load(tiny_weights / "tiny")
    good = [resolve(GenerateRequest(class_label=0, seed=i, num_images=2)) for i in range(3)]
    alone = [digest(run(Engine({"tiny": pipeline}), [Work("x", r)])["x"]) for r in good]
    pipeline.prior = _Breaking(pipeline.prior, bad=1, error=error)
    bad = resolve(GenerateRequest(class_label=1, seed=9, guidance_scale=1.0))
    work = [Work(str(i), request) for i, request in enumerate(good)]
    ended = run(Engine({"tiny": pipeline}), [*work, Work("bad", bad)])
    assert ended["bad"].error is not None
    assert ended["bad"].error.code == code
    assert [digest(ended[str(i)]) for i in range(3)] == alone


def test_out_of_memory_halves_the_batch_and_goes_on(tiny_weights, resolve) -> None:
    pipeline = Pipeline.load(tiny_weights / "tiny")
    request = resolve(GenerateRequest(class_label=0, seed=1, num_images=16))
    expected = digest(run(Engine({"tiny": pipeline}), [Work("x", request)])["x"])
    prior, sizes = pipeline.prior, []

    class Small(torch.nn.Module):
        null_conditions = prior.null_conditions

        def forward(self, x, t, y):
            sizes.append(len(x))
            if len(x) > 5:
                raise torch.OutOfMemoryError("out of memory")
            return prior(x, t, y)

    pipeline.prior = Small()
    assert digest(run(Engine({"tiny": pipeline}), [Work("x", request)])["x"]) == expected
    assert max(sizes[len(sizes) // 2 :]) <= 5, "once it has failed, large batches are not tried again"


@pytest.mark.parametrize("part", ["prior", "tokenizer"])
def test_when_every_row_fails_each_job_hears_why(tiny_weights, resolve, part) -> None:
    pipeline = Pipeline.load(tiny_weights / "tiny")

    def fail(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    if part == "prior":
        pipeline.prior.forward = fail
    else:
        pipeline.tokenizer.decode_codes = fail
    work = [Work(str(i), resolve(GenerateRequest(seed=i, num_images=2))) for i in range(3)]
    ended = run(Engine({"tiny": pipeline}), work)
    assert [finished.error.code for finished in ended.values()] == ["out_of_memory"] * 3
