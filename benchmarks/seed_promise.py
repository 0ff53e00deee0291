"""What the seed promise costs: the engine as it serves, beside one that promises nothing.

    python benchmarks/seed_promise.py [--instructions AVX512_CORE_BF16] [--rounds 20] [PIPELINE ...]

One guided step of one image, and of a full batch of 32: the two engines take turns, the medians count. The
one that promises nothing computes whatever number of rows is at hand, with plain linear layers.
``--instructions`` limits what oneDNN may use. Prints one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
SIZES = (1, 32)
WARM_UP = 40  # rounds: guidance begins some way into a path


def main() -> None:
    """Measure each pipeline."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipelines", nargs="*", default=["fashion-mnist", "emoji-64", "emoji-64-turbo"])
    parser.add_argument("--instructions", help="what ONEDNN_MAX_CPU_ISA says: AVX2, AVX512_CORE, …")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if arguments.instructions:
        os.environ["ONEDNN_MAX_CPU_ISA"] = arguments.instructions  # read when torch is loaded, below
    import torch

    torch.set_num_threads(arguments.threads)
    figures = {name: measure(ROOT / "weights" / name, arguments.rounds) for name in arguments.pipelines}
    sys.stdout.write(
        json.dumps({"instructions": arguments.instructions or "all", **figures}, indent=1) + "\n"
    )


def measure(folder: Path, rounds: int) -> dict[str, object]:
    """Return milliseconds a step by number of images, promised and not, and what the check found."""
    sys.path.insert(0, str(Path(__file__).parent))
    from compute import checked_engine, guided_request

    from models.pipeline import Pipeline
    from workers.compute import Work
    from workers.engine.engine import Engine

    pipeline = Pipeline.load(folder)
    began_at = time.perf_counter()
    promised = checked_engine(pipeline, max(SIZES))
    check_s = time.perf_counter() - began_at
    free = Engine({pipeline.spec.name: pipeline}, max(SIZES))
    figures: dict[str, object] = {
        "check_s": round(check_s, 1),
        "rows": promised.seed_verdicts()[pipeline.spec.name].rows,
    }
    for size in SIZES:
        requests = [guided_request(pipeline, seed) for seed in range(size)]
        for engine in (promised, free):
            engine.admit([Work(str(request.seed), request) for request in requests])
        seconds: dict[str, list[float]] = {"promised": [], "free": []}
        for round_ in range(rounds + WARM_UP):
            times = {"promised": timed(promised.step)}
            with plain_layers():
                times["free"] = timed(free.step)
            if round_ >= WARM_UP:
                for kind, taken in times.items():
                    seconds[kind].append(taken)
        for engine in (promised, free):
            engine.drop([str(request.seed) for request in requests])
        medians = {kind: statistics.median(each) for kind, each in seconds.items()}
        figures[f"images_{size}"] = {
            "promised_ms": round(1000 * medians["promised"], 1),
            "free_ms": round(1000 * medians["free"], 1),
            "ratio": round(medians["promised"] / medians["free"], 3),
        }
        sys.stderr.write(f"{folder.name}: {size} at once {figures[f'images_{size}']}\n")
    return figures


def timed(do: Callable[[], object]) -> float:
    """Return how long something takes."""
    began_at = time.perf_counter()
    do()
    return time.perf_counter() - began_at


@contextmanager
def plain_layers() -> Iterator[None]:
    """Let the layers that keep a row's bits compute as any linear layer does."""
    from torch import nn

    from models.networks import layers

    kept = {kind: kind.forward for kind in (layers.WideLinear, layers.VectorLinear)}
    for kind in kept:
        kind.forward = nn.Linear.forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for kind, forward in kept.items():
            kind.forward = forward  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
