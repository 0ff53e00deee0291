"""Measure what needs no service: the engine alone, the machine's matrix rate, one request after another.

Run by serving.py as a process of its own, so that its threads and its environment are those of a worker.
Prints one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Size
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.media.image import IMAGE
from models.options import FlowOptions, requested
from models.pipeline import Pipeline
from models.priors.flow import FlowPrior
from models.priors.samplers import is_guided, make_calls
from workers.catalog import Catalog, CatalogEntry
from workers.compute import Finished, Work
from workers.engine.engine import Engine
from workers.engine.seed_promise import SeedPromise
from workers.messages import GenerateRequest, Resolved

MATRIX_SHAPES = ((4096, 1024, 4096), (4096, 2048, 2048), (8192, 1024, 1024))  # rows, inputs, outputs
GPU_MATRIX_SHAPES = ((8192, 8192, 8192), (16384, 4096, 4096))  # large enough to hide how long a launch takes
NUM_PASSES = 3


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["engine", "loop", "check"])
    parser.add_argument("pipeline", type=Path, help="the pipeline's folder")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each figure")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--verdicts", type=Path, help="where the check of the seed promise is kept")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline = Pipeline.load(arguments.pipeline, device=arguments.device)
    if arguments.part == "engine":
        figures = measure_engine(pipeline, arguments.batch_sizes, arguments.seconds)
    elif arguments.part == "check":
        began_at = time.perf_counter()
        engine = checked_engine(pipeline, max(arguments.batch_sizes), arguments.verdicts)
        verdict = engine.seed_verdicts()[pipeline.spec.name]
        figures = {"seconds": time.perf_counter() - began_at, "rows": verdict.rows}
    else:
        figures = measure_loop(pipeline, arguments.seconds)
    print(json.dumps(figures))


def measure_engine(pipeline: Pipeline, batch_sizes: list[int], seconds: float) -> dict[str, object]:
    """Return images a second by batch size, and how much of the machine's matrix rate that is.

    Every size, and the matrix rate, is measured in several passes that take turns, so that a slow minute
    of the machine hits all alike; the median counts.
    """
    engine = checked_engine(pipeline, max(batch_sizes))
    engine.warm_up()
    rates: dict[int, list[float]] = {size: [] for size in batch_sizes}
    matrix_rates = []
    for number in range(NUM_PASSES):
        matrix_rates.append(matrix_flops_per_s(pipeline.device, seconds / NUM_PASSES))
        for size in batch_sizes:
            rates[size].append(engine_rate(engine, pipeline, size, seconds / NUM_PASSES))
            print(f"  pass {number + 1}, batch {size}: {rates[size][-1]:.1f} images/s", file=sys.stderr)
    flops = prior_flops_per_image(pipeline)
    matrix_rate = statistics.median(matrix_rates)
    by_size = [
        {
            "batch_size": size,
            "images_per_s": statistics.median(each),
            "share_of_matrix_rate": statistics.median(each) * flops / matrix_rate,
        }
        for size, each in rates.items()
    ]
    return {
        "by_batch_size": by_size,
        "prior_flops_per_image": flops,
        "matrix_flops_per_s": matrix_rate,
        **requested(pipeline.spec.defaults),
    }


def engine_rate(engine: Engine, pipeline: Pipeline, batch_size: int, seconds: float) -> float:
    """Return images a second of requests with the pipeline's defaults, ``batch_size`` at a time."""
    num_images = 0
    works = default_work(pipeline, batch_size)

    def round_() -> None:
        nonlocal num_images
        run_all(engine, works)
        num_images += batch_size

    return repeat(round_, lambda: num_images, seconds)


def default_work(pipeline: Pipeline, number: int) -> list[Work]:
    """Return so many requests for one image each, with the pipeline's defaults."""
    return [Work(str(seed), default_request(pipeline, seed)) for seed in range(number)]


def run_all(engine: Engine, works: list[Work]) -> dict[str, Finished]:
    """Let an idle engine compute requests that come at once, and return its results."""
    engine.admit(works)
    ended: dict[str, Finished] = {}
    while not engine.is_idle:
        ended |= {finished.job_id: finished for finished in engine.step()}
    return ended


def measure_loop(pipeline: Pipeline, seconds: float) -> dict[str, object]:
    """Return images a second of ``Pipeline.generate`` and a PNG, one request after another."""
    num_images = 0

    def one() -> None:
        nonlocal num_images
        request = default_request(pipeline, num_images)
        assert request.seed is not None
        images = pipeline.generate(pipeline.conditions(request.labels), request.seed)
        IMAGE.save(IMAGE.from_signal(images[0].cpu().numpy()), "png")
        num_images += 1

    one()
    return {"images_per_s": repeat(one, lambda: num_images, seconds)}


def repeat(do: Callable[[], None], count: Callable[[], int], seconds: float) -> float:
    """Do something again and again, and return how fast a count grows."""
    began_at, before = time.perf_counter(), count()
    while True:
        do()
        elapsed = time.perf_counter() - began_at
        if elapsed >= seconds:
            return (count() - before) / elapsed


def checked_engine(pipeline: Pipeline, max_batch_size: int, verdicts: Path | None = None) -> Engine:
    """Return a warm engine as a worker has it, with the seed promise checked."""
    engine = Engine({pipeline.spec.name: pipeline}, max_batch_size, promise=SeedPromise("on", verdicts))
    engine.warm_up()
    while engine.needs_check:
        engine.check_seeds(60)
    return engine


def default_request(pipeline: Pipeline, seed: int) -> Resolved:
    """Return a request for one image, with the pipeline's defaults."""
    spec = pipeline.spec
    label = seed % len(spec.labels["class"]) if "class" in spec.labels else None
    request = GenerateRequest(class_label=label, prompt=spec.example_prompt, seed=seed)
    return Catalog([CatalogEntry(spec, Path())]).resolve(request)


def guided_request(pipeline: Pipeline, seed: int) -> Resolved:
    """Return a request of many steps, the first dozens of which are guided."""
    request = default_request(pipeline, seed)
    options = {**request.options, "num_steps": 200, "guidance_scale": 2.0, "sampler": "euler"}
    return request.model_copy(update={"options": options})


def prior_flops_per_image(pipeline: Pipeline) -> int:
    """Count the floating-point operations of the prior's matrix products for one image, with the defaults."""
    defaults, prior = pipeline.spec.defaults, pipeline.prior
    assert isinstance(prior, FlowPrior)
    assert isinstance(defaults, FlowOptions)
    calls = make_calls(defaults)
    num_rows = sum(
        1 + is_guided(call.t, defaults.guidance_scale, defaults.guidance_interval) for call in calls
    )
    return num_rows * flops_per_row(prior)


def linear_flops(x_shape: Size, weight_shape: Size, *_: object, out_shape: Size, **__: object) -> int:
    """Return the operations of a linear layer whose weights are laid out once, which the counter misses."""
    return 2 * out_shape.numel() * x_shape[-1]


COUNTED = {torch.ops.mkldnn._linear_pointwise: linear_flops}


def flops_per_row(prior: FlowPrior) -> int:
    """Count the floating-point operations of the matrix products of one row's call."""
    latents = torch.zeros(1, *prior.latent_shape, device=prior.network.cosines.device)
    # The counter does not know the fused kernel of a CPU; the plain one makes the same products.
    counter = FlopCounterMode(display=False, custom_mapping=COUNTED)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        prior.network(latents, latents.new_zeros(1), prior.null_conditions())
    return int(counter.get_total_flops())


@torch.inference_mode()
def matrix_flops_per_s(device: torch.device, seconds: float) -> float:
    """Return the best rate of large linear layers in bfloat16."""
    best = 0.0
    shapes = GPU_MATRIX_SHAPES if device.type == "cuda" else MATRIX_SHAPES
    for num_rows, num_inputs, num_outputs in shapes:
        x = torch.randn(num_rows, num_inputs, device=device, dtype=torch.bfloat16)
        weight = torch.randn(num_outputs, num_inputs, device=device, dtype=torch.bfloat16)
        F.linear(x, weight)
        ends_at = time.perf_counter() + seconds / len(shapes)
        while time.perf_counter() < ends_at:
            began_at = time.perf_counter()
            F.linear(x, weight)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            elapsed = time.perf_counter() - began_at
            best = max(best, 2 * num_rows * num_inputs * num_outputs / elapsed)
    return best


if __name__ == "__main__":
    main()
