"""Check the seed promise on the shipped weights: `python benchmarks/contract.py --out FOLDER`.

Many mixed requests (4 to 25 steps, every sampler, guidance, prompts) are computed together,
joining at random, and then each alone; every bit of what they give must be the same. All pipelines that are
in the weights folder take part. Writes FOLDER/contract.json.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch

from models.pipeline import Pipeline
from models.spec import SPEC_FILE
from tests.workers.engine.engine_runs import Jobs, digest, run
from workers.compute import Work
from workers.engine.engine import Engine
from workers.engine.loading import choose_kernels
from workers.engine.seed_promise import NUM_PROBES, SeedPromise

PROMPTS = (None, "a smiling cat", "red apple", "a very long story about two dogs who went to the moon", "")


def main() -> None:
    """Compare, and write what differed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent.parent / "weights")
    parser.add_argument("--pipelines", nargs="+", help="all that are in the weights folder, if left out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--max-batch-size", type=int, default=64)
    parser.add_argument("--max-steps", type=int, default=25)
    parser.add_argument("--num-probes", type=int, default=NUM_PROBES, help="rows of the worker's own check")
    parser.add_argument("--rows", type=int, nargs="+", default=(), help="numbers of rows that it tries")
    arguments = parser.parse_args()
    names = arguments.pipelines or sorted(
        path.parent.name for path in arguments.weights.glob(f"*/{SPEC_FILE}")
    )
    choose_kernels(torch.device(arguments.device), "float32")
    figures = compare(
        {name: Pipeline.load(arguments.weights / name, device=arguments.device) for name in names},
        mixed_work(Jobs(arguments.weights), names, arguments.requests, arguments.max_steps),
        arguments.max_batch_size,
        SeedPromise("on", num_probes=arguments.num_probes, candidates=arguments.rows),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "contract.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures), file=sys.stderr)
    sys.exit(1 if figures["num_differing"] else None)


def compare(
    pipelines: dict[str, Pipeline], works: list[Work], max_batch_size: int, promise: SeedPromise
) -> dict[str, object]:
    """Return how many of the works give other bits together than alone, and what the worker's check says."""
    began_at = time.perf_counter()
    engine = Engine(pipelines, max_batch_size, promise=promise)
    engine.warm_up()
    while engine.needs_check:
        engine.check_seeds(60)
    checked_at = time.perf_counter()
    together = run(engine, works, admit_chance=0.9)
    together_at = time.perf_counter()
    alone = {}
    for work in reversed(works):
        alone |= run(engine, [work])
    differing = [work for work in works if digest(together[work.job_id]) != digest(alone[work.job_id])]
    return {
        "pipelines": sorted(pipelines),
        "num_requests": len(works),
        "num_differing": len(differing),
        "differing": [work.request.model_dump(mode="json") for work in differing[:5]],
        "verdicts": {name: f"{each.how}: {each.rows}" for name, each in engine.seed_verdicts().items()},
        "is_kept": all(each.is_kept for each in engine.seed_verdicts().values()),
        "check_s": round(checked_at - began_at, 1),
        "together_s": round(together_at - checked_at, 1),
        "alone_s": round(time.perf_counter() - together_at, 1),
    }


def mixed_work(jobs: Jobs, names: list[str], num_requests: int, max_steps: int) -> list[Work]:
    """Return requests of all kinds to all pipelines in turn."""
    chance = random.Random(0)
    works = []
    for number in range(num_requests):
        name = names[number % len(names)]
        spec = jobs.catalog.spec(name)
        asked = {of: chance.choice([None, *range(len(known))]) for of, known in spec.labels.items()}
        works.append(
            jobs.generate(
                str(number),
                pipeline=name,
                labels={of: label for of, label in asked.items() if label is not None},
                prompt=chance.choice(PROMPTS) if spec.takes_prompt else None,
                num_outputs=chance.choice([1, 1, 1, 3]),
                seed=chance.randrange(1000),
                num_steps=chance.randint(min(4, max_steps), max_steps),
                guidance_scale=chance.choice([1.0, 1.5, 3.0]),
                sampler=chance.choice(["euler", "heun", "dpmpp_2m"]),
                return_codes=True,
            )
        )
    return works


if __name__ == "__main__":
    main()
