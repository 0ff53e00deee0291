"""Random mixes of requests to the shipped pipelines: each alone, and among others, bit for bit.

Run as a program, it prints how many of its requests differed, as JSON: so that the instructions that
oneDNN may use can be limited by the environment, which it reads when it is loaded.
"""

import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from models.media.base import Array
from models.media.image import ImageSpec
from models.pipeline import Pipeline
from models.spec import PipelineSpec
from tests.workers.engine.engine_runs import Jobs, digest, noise_image, run
from workers.compute import Work
from workers.engine.engine import Engine
from workers.engine.previews import PreviewTimer
from workers.engine.seed_promise import SeedPromise

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "weights"
NAMES = ("fashion-mnist", "emoji-64", "emoji-64-turbo", "fashion-mnist-turbo")
FAMILIES = ("fashion-mnist", "fashion-mnist-ar", "fashion-mnist-masked", "flowers-64", "emoji-32-to-64")
PROMPTS = (None, "a smiling cat", "red apple", "a very long story about two dogs who went to the moon", "")


@dataclass(frozen=True)
class Report:
    """What came of some mixes. num_requests: computed in mixes, each compared with itself alone."""

    num_mixes: int
    num_requests: int
    num_differing: int
    verdicts: dict[str, str]


def compare(
    num_mixes: int,
    folder: Path,
    *,
    names: Sequence[str] = NAMES,
    num_probes: int,
    rows: Sequence[int] = (),
    max_steps: int = 2,
    pool_size: int = 24,
    seed: int = 0,
) -> Report:
    """Check the promise, then compute ``num_mixes`` mixes of 2 to 6 requests to the pipelines ``names``.

    num_probes: rows of the check; 0 turns the promise off. rows: the numbers of rows to check, instead of
    those that a worker checks.
    """
    promise = SeedPromise("on" if num_probes else "off", folder, num_probes=num_probes, candidates=rows)
    timer = PreviewTimer(every_s=0)
    engine = Engine(
        {name: Pipeline.load(WEIGHTS / name) for name in names}, 32, promise=promise, previews=timer
    )
    while engine.needs_check:
        engine.check_seeds(60)
    verdicts = {name: f"{each.how}: {each.rows}" for name, each in engine.seed_verdicts().items()}
    assert not num_probes or all(each.is_kept for each in engine.seed_verdicts().values()), verdicts
    chance = random.Random(seed)
    pool = _pool(names, pool_size, chance, max_steps)
    alone = {work.job_id: digest(run(engine, [work])[work.job_id]) for work in pool}
    num_requests = num_differing = 0
    for mix in range(num_mixes):
        chosen = chance.sample(pool, chance.randint(2, 6))
        ended = run(engine, chosen, admit_chance=chance.choice([0.3, 0.7, 1.0]), seed=mix)
        num_requests += len(chosen)
        num_differing += sum(digest(ended[work.job_id]) != alone[work.job_id] for work in chosen)
    return Report(num_mixes, num_requests, num_differing, verdicts)


def _pool(names: Sequence[str], size: int, chance: random.Random, max_steps: int) -> list[Work]:
    """Return requests of every kind to every pipeline."""
    jobs = Jobs(WEIGHTS)
    works: list[Work] = []
    searched = names if max_steps > 2 else names[:1]  # a search of a large picture is long
    for number in range(size):
        name, job_id = names[number % len(names)], str(number)
        spec = jobs.catalog.spec(name)
        image: ImageSpec = spec.medium
        kind = number // len(names) % 6
        if kind == 3:
            pixels = [_blocks(number + i, image, image.channels) for i in range(chance.randint(1, 3))]
            effort = int(number < 4 * len(names) and name in searched)
            works.append(
                jobs.encode(*pixels[: 1 if effort else 3], job_id=job_id, effort=effort, pipeline=name)
            )
        elif kind == 4:
            assert spec.codes is not None
            rows, columns = spec.codes.grid
            grids = [
                [[chance.randrange(spec.codes.size) for _ in range(columns)] for _ in range(rows)]
                for _ in range(chance.randint(1, 3))
            ]
            works.append(jobs.decode(grids, job_id=job_id, pipeline=name))
        else:
            make: Callable[..., Work] = jobs.generate
            if spec.needs_source:
                small: ImageSpec = spec.takes["source"]
                make = partial(jobs.edit, _blocks(number, small, small.channels))
            elif kind in (2, 5) and spec.edits:
                mask = np.where(_blocks(number, image, 1) > 128, 255, 0).astype(np.uint8)
                source = _blocks(number, image, image.channels)
                make = partial(jobs.edit, source, mask if number % 2 else None)
            asked = {
                label_set: chance.choice([None, *range(len(known))])
                for label_set, known in spec.labels.items()
            }
            works.append(
                make(
                    job_id=job_id,
                    pipeline=name,
                    labels={label_set: label for label_set, label in asked.items() if label is not None},
                    prompt=chance.choice(PROMPTS) if spec.takes_prompt else None,
                    negative_prompt=chance.choice([None, None, "blue"]) if spec.takes_prompt else None,
                    num_outputs=chance.choice([1, 1, 2, 3]),
                    seed=chance.randrange(1000),
                    guidance_scale=chance.choice([1.0, 1.5, 3.0]),
                    **_options(spec, chance, max_steps),
                    return_codes=chance.random() < 0.5,
                    preview=chance.random() < 0.3,
                )
            )
    return works


def _options(spec: PipelineSpec, chance: random.Random, max_steps: int) -> dict[str, object]:
    """Return what the family of the pipeline's prior takes."""
    if spec.prior == "autoregressive":
        return {"temperature": chance.choice([0.0, 1.0]), "top_k": chance.choice([0, 50])}
    samplers = ["confidence", "ancestral"] if spec.prior == "masked" else ["euler", "heun", "dpmpp_2m"]
    return {"num_steps": chance.randint(1, max_steps), "sampler": chance.choice(samplers)}


def _blocks(seed: int, image: ImageSpec, channels: int) -> Array:
    """Return random pixels (H, W, C), eight of the same in each direction."""
    pixels = noise_image(seed, image.height_px // 8 + 1, image.width_px // 8 + 1, channels)
    return pixels.repeat(8, 0).repeat(8, 1)[: image.height_px, : image.width_px]


if __name__ == "__main__":
    mixes, folder, probes = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    report = compare(mixes, folder, num_probes=probes, rows=(1, 2, 4, 8, 32))
    sys.stdout.write(json.dumps(asdict(report)))
