"""Measure a GPU's figures: `python benchmarks/gpu.py --out FOLDER`. Takes about four minutes.

wide      the engine with a prior of 34 M, 64 px, 4 unguided steps, decoded; random weights
served    the engine with fashion-mnist as shipped
calls     one call of either prior: as it is, as a CUDA graph, and with compiled blocks as a graph
encode    a tokenizer of 63 M at 256 px, f16: float32, TF32, and TF32 compiled; random weights
training  steps a second of fashion-mnist's prior at its batch size
http      fashion-mnist over HTTP, with 1, 2 and 4 API processes

Each figure has its aim and, where it is of matrix products, its share of the device's own rate in large
bfloat16 linear layers. They go to FOLDER/gpu.json as each part ends; `--only wide,calls` measures these
again and keeps the others. `--scale small` takes tiny shapes and no time, to see on a CPU that it runs.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from compute import checked_engine, default_work, matrix_flops_per_s, prior_flops_per_image, run_all
from figures import SHIPPED, Bench, Figure
from gpu_calls import calls, encode
from gpu_training import training
from over_http import measure_http
from untrained import EMOJI_TOKENIZER, SMALL_PRIOR, SMALL_TOKENIZER, WIDE_PRIOR, untrained_pipeline

from models.pipeline import Pipeline
from workers.engine.engine import Engine
from workers.engine.loading import choose_kernels
from workers.queue import embedded_server


def main() -> None:
    """Measure the parts, and write what there is after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", choices=["full", "small"], default="full")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # and so the service it started
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--only: parts are {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    device, is_small = torch.device(arguments.device), arguments.scale == "small"
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "gpu.json"
    results = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    choose_kernels(device, "float32")
    matrix_rate = matrix_flops_per_s(device, 0.1 if is_small else 1.0)
    results |= {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else arguments.device,
        "torch": torch.__version__,
        "scale": arguments.scale,
        "matrix_tflops_per_s": matrix_rate / 1e12,
    }
    for name in chosen:
        began_at = time.perf_counter()
        figures = []
        for figure in PARTS[name](Bench(device, is_small, matrix_rate)):
            if is_small:
                figure = replace(figure, aim=None, aimed_share=None)  # those are for the real shapes
            print(f"{name}: {figure}", file=sys.stderr, flush=True)
            figures.append(asdict(figure) | {"is_met": figure.is_met})
            results["parts"][name] = figures
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(results, indent=1) + "\n")
            partial.replace(path)
        print(f"{name} took {time.perf_counter() - began_at:.0f} s", file=sys.stderr, flush=True)


# --- the engine --------------------------------------------------------------------------------------------


def wide(bench: Bench) -> Iterator[Figure]:
    shapes = (SMALL_TOKENIZER, SMALL_PRIOR) if bench.is_small else (EMOJI_TOKENIZER, WIDE_PRIOR)
    pipeline = untrained_pipeline(*shapes, device=str(bench.device))
    sizes = {1: None, 2: 6000.0} if bench.is_small else {1: None, 64: 6000.0, 256: 8000.0}
    yield from engine_figures(bench, "34 M, 64 px, 4 steps", pipeline, sizes, lone_aim_ms=4)


def served(bench: Bench) -> Iterator[Figure]:
    pipeline = Pipeline.load(SHIPPED, device=str(bench.device))
    sizes = {1: None, 2: 4000.0} if bench.is_small else {1: None, 32: None, 128: 4000.0}
    yield from engine_figures(bench, "fashion-mnist", pipeline, sizes, lone_aim_ms=12)


def engine_figures(
    bench: Bench, what: str, pipeline: Pipeline, sizes: dict[int, float | None], lone_aim_ms: float
) -> Iterator[Figure]:
    """Yield the latency of a lone image, and images a second by how many are asked for at once."""
    began_at = time.perf_counter()
    if bench.is_small:
        engine = Engine({pipeline.spec.name: pipeline}, max(sizes))
        engine.warm_up()
    else:
        engine = checked_engine(pipeline, max(sizes))
    yield Figure(f"{what}: engine warm and checked", time.perf_counter() - began_at, "s")
    flops = prior_flops_per_image(pipeline)
    for size, aim in sizes.items():
        works = default_work(pipeline, size)
        seconds = bench.median_s(lambda works=works: run_all(engine, works))
        share = size * flops / seconds / bench.matrix_rate
        if size == 1:
            yield Figure(f"{what}: a lone image", 1000 * seconds, "ms", lone_aim_ms, share)
        yield Figure(f"{what}: engine, {size} at once", size / seconds, "images/s", aim, share)


# --- HTTP --------------------------------------------------------------------------------------------------


def http(bench: Bench) -> Iterator[Figure]:
    try:
        embedded_server.find_server()
    except embedded_server.ServerNotFound as error:
        print(f"http is left out: {error}", file=sys.stderr)
        return
    best = 0.0
    for measured in measure_http(
        SHIPPED,
        str(bench.device),
        nums_apis=(1, 2) if bench.is_small else (1, 2, 4),
        max_batch_size=2 if bench.is_small else 128,
        seconds=0.5 if bench.is_small else 4.0,
        num_lone=3 if bench.is_small else 40,
        num_threads=2 if bench.device.type == "cpu" else max(1, (os.cpu_count() or 1) // 4),
        check_timeout_s=0 if bench.is_small else 45,
    ):
        best = max(best, measured.images_per_s)
        which = f"over HTTP, {measured.num_apis} API processes"
        yield Figure(f"fashion-mnist {which}: a lone image, p50", measured.lone_ms, "ms")
        yield Figure(f"fashion-mnist {which}: at saturation", measured.images_per_s, "images/s")
    yield Figure("fashion-mnist over HTTP: the most at saturation", best, "images/s", 1500)


PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "wide": wide,
    "served": served,
    "calls": calls,
    "training": training,
    "http": http,
    "encode": encode,
}

if __name__ == "__main__":
    main()
