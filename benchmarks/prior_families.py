"""The families of priors side by side: the same tokenizer and data, as many parameters, as many seconds.

    python -m benchmarks.prior_families train flow --minutes 20
    python -m benchmarks.prior_families train autoregressive --minutes 20
    python -m benchmarks.prior_families train masked --minutes 20
    python -m benchmarks.prior_families measure
    python -m benchmarks.prior_families report

Each writes into ``runs/families`` (``--out``). A training's steps are counted so that they take the minutes,
by the time of some steps of a run that is made for it, compiling left out. The report is a table in Markdown
and ``losses.png``.
"""

import argparse
import json
import math
import random
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from benchmarks.compute import checked_engine, default_request, engine_rate, run_all
from models.pipeline import Pipeline
from training.config_file import load_config
from training.evaluation.evaluate import evaluate
from training.evaluation.options import EvaluationOptions
from training.evaluation.plots import Curve, save_curves
from training.losses_log import read_losses
from training.prior import train_prior
from training.prior_configs import PRIOR_CONFIGS, PriorConfig
from workers.compute import Work
from workers.engine.engine import Engine
from workers.engine.seed_promise import SeedPromise

ROOT = Path(__file__).parent.parent
CONFIGS = {
    "flow": "fashion-mnist-prior.toml",
    "autoregressive": "fashion-mnist-ar-prior.toml",
    "masked": "fashion-mnist-masked-prior.toml",
}
LOSSES = {
    "flow": "flow: mean squared error",
    "autoregressive": "autoregressive: nats a code",
    "masked": "masked: weighted nats a code",
}
NUM_TIMED_STEPS = 40
MAX_BATCH_SIZE = 32


@dataclass(frozen=True)
class Serving:
    """seconds_alone: of one image with nothing else running. images_per_s: at saturation.

    weight_bytes: of the network as it is served, which every call reads at least once.
    """

    seconds_alone: float
    images_per_s: float
    num_calls: int
    weight_bytes: int


@dataclass(frozen=True)
class Measured:
    """Of each family. mixed_images_per_s: of equal shares of all of them, in one engine.

    memory_bytes_per_s: what the machine reads and writes in large copies.
    """

    num_threads: int
    memory_bytes_per_s: float
    serving: dict[str, Serving]
    mixed_images_per_s: float


def main() -> None:
    """Train a family, measure them all, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "families")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parts = parser.add_subparsers(dest="part", required=True)
    train = parts.add_parser("train")
    train.add_argument("family", choices=CONFIGS)
    train.add_argument("--minutes", type=float, default=20.0)
    measure_ = parts.add_parser("measure")
    measure_.add_argument("--num-images", type=int, default=5000, help="to judge each family by")
    measure_.add_argument("--seconds", type=float, default=30.0, help="for each rate")
    parts.add_parser("report")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    match arguments.part:
        case "train":
            train_for(arguments.family, arguments.minutes, arguments.out)
        case "measure":
            measure(arguments.out, arguments.num_images, arguments.seconds)
        case "report":
            sys.stdout.write(report(arguments.out))


def train_for(family: str, minutes: float, out: Path) -> None:
    """Train a family for so many minutes; what was interrupted goes on."""
    timed = timing_config(family, out)
    if not timed.output.exists():
        train_prior(timed, resume=timed.folder.exists())
    seconds = seconds_per_step(timed.folder / "losses.jsonl")
    num_steps = max(1, int(60 * minutes / seconds))
    print(f"{family}: {1000 * seconds:.0f} ms a step, so {num_steps} steps", file=sys.stderr)
    config = replace(family_config(family, out), num_steps=num_steps)
    train_prior(config, resume=config.folder.exists())


def family_config(family: str, out: Path) -> PriorConfig:
    """Return a family's settings, with the shipped tokenizer, and everything written under ``out``."""
    shipped = load_config(ROOT / "training" / "configs" / CONFIGS[family], PRIOR_CONFIGS[family])
    return replace(
        shipped,
        tokenizer=ROOT / "weights" / "fashion-mnist" / "tokenizer.safetensors",
        folder=out / family / "run",
        output=out / family / f"fashion-mnist-{family}",
        shares_with=None,
        num_threads=torch.get_num_threads(),
    )


def timing_config(family: str, out: Path) -> PriorConfig:
    """Return the settings of the run that tells how long a step takes."""
    return replace(
        family_config(family, out),
        folder=out / family / "timing",
        output=out / family / "timed",
        num_steps=NUM_TIMED_STEPS,
        log_every=NUM_TIMED_STEPS // 4,
    )


def seconds_per_step(log: Path) -> float:
    """Return how long a step takes, by a run's log, without its first steps."""
    _, second, *_, last = read_losses(log)
    return float((last["time"] - second["time"]) / (last["step"] - second["step"]))


def trained(out: Path) -> dict[str, Path]:
    """Return the folders of the pipelines that there are."""
    folders = {family: family_config(family, out).output for family in CONFIGS}
    return {family: folder for family, folder in folders.items() if (folder / "pipeline.json").exists()}


def measure(out: Path, num_images: int, seconds: float) -> None:
    """Judge every family's images, and time it alone, at saturation and in a mix."""
    folders = trained(out)
    for folder in folders.values():
        options = EvaluationOptions(num_images=num_images, classifier_folder=ROOT / "runs" / "classifiers")
        if not (folder / "metrics.json").exists():
            evaluate(folder, options)
    pipelines = {family: Pipeline.load(folder) for family, folder in folders.items()}
    serving = {}
    for family, pipeline in pipelines.items():
        engine = checked_engine(pipeline, MAX_BATCH_SIZE)
        alone = 1 / engine_rate(engine, pipeline, 1, seconds)
        rate = engine_rate(engine, pipeline, MAX_BATCH_SIZE, seconds)
        ended = run_all(engine, [Work("0", default_request(pipeline, 0))])["0"]
        num_calls = ended.progress.total if ended.progress else 0
        serving[family] = Serving(alone, rate, num_calls, _weight_bytes(pipeline))
        print(f"{family}: {alone:.2f} s alone, {rate:.1f} images/s", file=sys.stderr)
    mixed = mixed_rate({each.spec.name: each for each in pipelines.values()}, seconds)
    measured = Measured(torch.get_num_threads(), memory_bytes_per_s(), serving, mixed)
    (out / "serving.json").write_text(json.dumps(asdict(measured), indent=2) + "\n")


def mixed_rate(pipelines: dict[str, Pipeline], seconds: float) -> float:
    """Return images a second of requests for one image, of each pipeline as many, all at once."""
    engine = Engine(pipelines, MAX_BATCH_SIZE, promise=SeedPromise("on"))
    engine.warm_up()
    while engine.needs_check:
        engine.check_seeds(60)
    works = [
        Work(f"{name} {seed}", default_request(pipeline, seed))
        for name, pipeline in pipelines.items()
        for seed in range(MAX_BATCH_SIZE)
    ]
    random.Random(0).shuffle(works)
    num_images, began_s = 0, time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        num_images += len(run_all(engine, works))
    return num_images / (time.perf_counter() - began_s)


def memory_bytes_per_s() -> float:
    """Return the best that copies of 256 MiB reach: what is read and what is written."""
    source = torch.ones(2**28, dtype=torch.uint8)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        began_s = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - began_s)
    return 2 * source.nbytes / best


def report(out: Path) -> str:
    """Return the table, and draw the losses."""
    folders = trained(out)
    measured = TypeAdapter(Measured).validate_json((out / "serving.json").read_text())
    metrics = {
        family: json.loads((folder / "metrics.json").read_text()) for family, folder in folders.items()
    }
    entries = {
        family: [entry for entry in read_losses(out / family / "run" / "losses.jsonl") if "loss" in entry]
        for family in folders
    }
    save_curves(
        out / "losses.png",
        {
            LOSSES[family]: Curve([each["step"] for each in found], [each["loss"] for each in found])
            for family, found in entries.items()
        },
    )
    lines = [
        "| | " + " | ".join(folders) + " |",
        "|---" * (1 + len(folders)) + "|",
        _row("parameters, M", [f"{_parameters(folder) / 1e6:.2f}" for folder in folders.values()]),
        _row("steps of training", [f"{found[-1]['step'] + 1:,}" for found in entries.values()]),
        _row("minutes of steps", [f"{_minutes(found):.1f}" for found in entries.values()]),
        _row("loss at the end", [f"{found[-1]['loss']:.3f}" for found in entries.values()]),
    ]
    for judge in next(iter(metrics.values()))["classifiers"]:
        judged = [each["classifiers"][judge] for each in metrics.values()]
        for name in ("frechet_distance", "class_accuracy", "coverage", "density"):
            values = [each["generated"][name] for each in judged]
            floor, tokens = judged[0]["real"][name], judged[0]["reconstructions"][name]
            label = f"{name.replace('_', ' ')}, {judge} (real {floor:.3f}, reconstructions {tokens:.3f})"
            lines.append(_row(label, [f"{value:.3f}" for value in values]))
    served = [measured.serving[family] for family in folders]
    num_codes = math.prod(Pipeline.load(next(iter(folders.values()))).spec.latents[1:])
    lines += [
        _row("calls an image", [str(each.num_calls) for each in served]),
        _row("seconds an image, alone", [f"{each.seconds_alone:.2f}" for each in served]),
        _row("images a second, at saturation", [f"{each.images_per_s:.1f}" for each in served]),
        _row("codes a second, alone", [f"{num_codes / each.seconds_alone:,.0f}" for each in served]),
        _row("codes a second, at saturation", [f"{num_codes * each.images_per_s:,.0f}" for each in served]),
        _row("memory's bandwidth, alone", [f"{_bandwidth_share(each, measured):.0%}" for each in served]),
        "",
        f"A mix of equal shares of all, in one engine: {measured.mixed_images_per_s:.1f} images a second."
        f" {measured.num_threads} threads; copies move {measured.memory_bytes_per_s / 1e9:.0f} GB/s.",
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, values: list[str]) -> str:
    return f"| {name} | " + " | ".join(values) + " |"


def _bandwidth_share(serving: Serving, measured: Measured) -> float:
    """Return the share that reading the weights once a call takes, with one image running."""
    read = serving.num_calls * serving.weight_bytes
    return read / serving.seconds_alone / measured.memory_bytes_per_s


def _weight_bytes(pipeline: Pipeline) -> int:
    assert pipeline.prior is not None
    return sum(parameter.nbytes for parameter in pipeline.prior.network.parameters())


def _minutes(entries: list[dict[str, Any]]) -> float:
    return float(entries[-1]["time"] - entries[0]["time"]) / 60


def _parameters(folder: Path) -> int:
    prior = Pipeline.load(folder).prior
    assert prior is not None
    return sum(parameter.numel() for parameter in prior.network.parameters())


if __name__ == "__main__":
    main()
