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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.pipeline import Pipeline
from models.samplers import is_guided, make_calls
from workers.engine import Engine, to_pixels
from workers.images import encode_image
from workers.messages import GenerateRequest
from workers.work import Work

MATRIX_SHAPES = ((4096, 1024, 4096), (4096, 2048, 2048), (8192, 1024, 1024))  # rows, inputs, outputs
NUM_PASSES = 3


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["engine", "loop"])
    parser.add_argument("pipeline", type=Path, help="the pipeline's folder")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each figure")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline = Pipeline.load(arguments.pipeline, device=arguments.device)
    if arguments.part == "engine":
        figures = measure_engine(pipeline, arguments.batch_sizes, arguments.seconds)
    else:
        figures = measure_loop(pipeline, arguments.seconds)
    print(json.dumps(figures))


def measure_engine(pipeline: Pipeline, batch_sizes: list[int], seconds: float) -> dict[str, object]:
    """Return images a second by batch size, and how much of the machine's matrix rate that is.

    Every size, and the matrix rate, is measured in several passes that take turns, so that a slow minute
    of the machine hits all alike; the median counts.
    """
    engine = Engine({pipeline.config.name: pipeline}, max_batch_size=max(batch_sizes))
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
        "num_steps": pipeline.config.defaults.num_steps,
        "sampler": pipeline.config.defaults.sampler,
        "guidance_scale": pipeline.config.defaults.guidance_scale,
    }


def engine_rate(engine: Engine, pipeline: Pipeline, batch_size: int, seconds: float) -> float:
    """Return images a second of requests with the pipeline's defaults, ``batch_size`` at a time."""
    num_images = 0

    def round_() -> None:
        nonlocal num_images
        requests = [default_request(pipeline, num_images + i) for i in range(batch_size)]
        engine.admit([Work(str(request.seed), request) for request in requests])
        while not engine.is_idle:
            num_images += len(engine.step())

    return repeat(round_, lambda: num_images, seconds)


def measure_loop(pipeline: Pipeline, seconds: float) -> dict[str, object]:
    """Return images a second of ``Pipeline.generate`` and a PNG, one request after another."""
    num_images = 0

    def one() -> None:
        nonlocal num_images
        request = default_request(pipeline, num_images)
        assert request.seed is not None
        images = pipeline.generate(pipeline.conditions(class_label=request.class_label), request.seed)
        encode_image(to_pixels(images)[0], "png")
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


def default_request(pipeline: Pipeline, seed: int) -> GenerateRequest:
    """Return a request for one image, with the pipeline's defaults named."""
    config = pipeline.config
    return GenerateRequest(
        pipeline=config.name,
        class_label=seed % len(config.class_names),
        seed=seed,
        num_steps=config.defaults.num_steps,
        guidance_scale=config.defaults.guidance_scale,
        sampler=config.defaults.sampler,
    )


def prior_flops_per_image(pipeline: Pipeline) -> int:
    """Count the floating-point operations of the prior's matrix products for one image, with the defaults."""
    defaults, prior = pipeline.config.defaults, pipeline.config.prior
    latents = torch.zeros(1, prior.latent_channels, *prior.grid, device=pipeline.device)
    # The counter does not know the fused kernel of a CPU; the plain one makes the same products.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        pipeline.prior(latents, latents.new_zeros(1), pipeline.prior.null_conditions())
    calls = make_calls(defaults)
    num_rows = sum(
        1 + is_guided(call.t, defaults.guidance_scale, defaults.guidance_interval) for call in calls
    )
    return num_rows * counter.get_total_flops()


@torch.inference_mode()
def matrix_flops_per_s(device: torch.device, seconds: float) -> float:
    """Return the best rate of large linear layers in bfloat16."""
    best = 0.0
    for num_rows, num_inputs, num_outputs in MATRIX_SHAPES:
        x = torch.randn(num_rows, num_inputs, device=device, dtype=torch.bfloat16)
        weight = torch.randn(num_outputs, num_inputs, device=device, dtype=torch.bfloat16)
        F.linear(x, weight)
        ends_at = time.perf_counter() + seconds / len(MATRIX_SHAPES)
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
