"""VQ, FSQ and KL side by side: the same networks and data, as many seconds, and a flow prior on each.

    python -m benchmarks.autoencoders train vq --minutes 20
    python -m benchmarks.autoencoders train fsq --minutes 20
    python -m benchmarks.autoencoders train kl --minutes 20
    python -m benchmarks.autoencoders prior vq --minutes 20
    python -m benchmarks.autoencoders prior fsq --minutes 20
    python -m benchmarks.autoencoders prior kl --minutes 20
    python -m benchmarks.autoencoders measure
    python -m benchmarks.autoencoders report

Each writes into ``runs/autoencoders`` (``--out``), and what was interrupted goes on. A training's steps are
counted so that they take the minutes, by the time of some steps of a run that is made for it, compiling left
out. The report is a table in Markdown.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.prior_families import NUM_TIMED_STEPS, seconds_per_step
from models.pipeline import AUTOENCODER_FILE, Pipeline
from models.spec import SPEC_FILE
from training.autoencoder import AutoencoderTrainingConfig, train_autoencoder
from training.config_file import load_config
from training.evaluation.evaluate import evaluate
from training.evaluation.options import EvaluationOptions
from training.losses_log import read_losses
from training.prior import train_prior
from training.prior_configs import PriorTrainingConfig
from training.tokenizer import train_tokenizer
from training.tokenizer_config import TokenizerTrainingConfig

ROOT = Path(__file__).parent.parent
CONFIGS = {
    "vq": "fashion-mnist-tokenizer.toml",
    "fsq": "fashion-mnist-fsq.toml",
    "kl": "fashion-mnist-kl.toml",
}
PRIOR_CONFIG = "fashion-mnist-prior.toml"
SCORES = ("frechet_distance", "class_accuracy", "density", "coverage")

AnyConfig = TokenizerTrainingConfig | AutoencoderTrainingConfig | PriorTrainingConfig


@dataclass(frozen=True)
class Place:
    """Where everything is written, the folder of the TOML files, and data other than theirs."""

    out: Path = ROOT / "runs" / "autoencoders"
    configs: Path = ROOT / "training" / "configs"
    data: str | None = None

    def pipeline(self, name: str) -> Path:
        """The folder of the pipeline that an arm ends in."""
        return self.out / name / f"fashion-mnist-{name}"


def main() -> None:
    """Train an autoencoder or a prior on it, measure them all, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Place.out)
    parser.add_argument("--data", help="other data than Fashion-MNIST")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parts = parser.add_subparsers(dest="part", required=True)
    for part in ("train", "prior"):
        training = parts.add_parser(part)
        training.add_argument("name", choices=CONFIGS)
        training.add_argument("--minutes", type=float, default=20.0)
    measuring = parts.add_parser("measure")
    measuring.add_argument("--num-images", type=int, default=10_000, help="to judge each by")
    parts.add_parser("report")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    place = Place(arguments.out, data=arguments.data)
    match arguments.part:
        case "train":
            train_for(autoencoder_config(arguments.name, place), arguments.minutes)
        case "prior":
            train_for(prior_config(arguments.name, place), arguments.minutes)
        case "measure":
            classifiers = ROOT / "runs" / "classifiers"
            measure(place, EvaluationOptions(num_images=arguments.num_images, classifier_folder=classifiers))
        case "report":
            sys.stdout.write(report(place))


def autoencoder_config(name: str, place: Place) -> TokenizerTrainingConfig | AutoencoderTrainingConfig:
    """Return an arm's settings, with everything written under the place's folder."""
    path, folder = place.configs / CONFIGS[name], place.out / name / "autoencoder"
    config: TokenizerTrainingConfig | AutoencoderTrainingConfig
    if name == "kl":
        config = replace(load_config(path, AutoencoderTrainingConfig), output=place.out / name / "latents")
    else:
        config = load_config(path, TokenizerTrainingConfig)
    data = place.data or config.data
    return replace(config, folder=folder, data=data, num_threads=torch.get_num_threads())


def prior_config(name: str, place: Place) -> PriorTrainingConfig:
    """Return the settings of the flow prior on an arm's latents: the same for all arms, but for these."""
    config = load_config(place.configs / PRIOR_CONFIG, PriorTrainingConfig)
    return replace(
        config,
        tokenizer=weights_of(autoencoder_config(name, place)),
        folder=place.out / name / "prior",
        output=place.pipeline(name),
        data=place.data or config.data,
        shares_with=None,
        num_threads=torch.get_num_threads(),
    )


def weights_of(config: TokenizerTrainingConfig | AutoencoderTrainingConfig) -> Path:
    """Return where an autoencoder's training leaves its weights."""
    folder = config.output if isinstance(config, AutoencoderTrainingConfig) else config.folder
    return folder / AUTOENCODER_FILE


def train_for(config: AnyConfig, minutes: float) -> None:
    """Train for so many minutes; what was interrupted goes on."""
    timed = timing_config(config)
    log = timed.folder / "losses.jsonl"
    if not log.exists() or read_losses(log)[-1]["step"] < NUM_TIMED_STEPS - 1:
        _train(timed)
    seconds = seconds_per_step(log)
    num_steps = max(1, int(60 * minutes / seconds))
    print(f"{config.folder}: {1000 * seconds:.0f} ms a step, so {num_steps} steps", file=sys.stderr)
    _train(replace(config, num_steps=num_steps))


def timing_config(config: AnyConfig) -> AnyConfig:
    """Return the settings of the run that tells how long a step takes."""
    folder = config.folder.with_name(f"{config.folder.name}-timing")
    settings: dict[str, Any] = {
        "folder": folder,
        "num_steps": NUM_TIMED_STEPS,
        "log_every": NUM_TIMED_STEPS // 4,
    }
    if not isinstance(config, TokenizerTrainingConfig):
        settings["output"] = folder.with_name(f"{folder.name}-timed")
    return replace(config, **settings)


def _train(config: AnyConfig) -> None:
    """Train, or go on."""
    train: Callable[..., Path] = train_prior
    if isinstance(config, TokenizerTrainingConfig):
        train = train_tokenizer
    elif isinstance(config, AutoencoderTrainingConfig):
        train = train_autoencoder
    train(config, resume=config.folder.exists())


def trained(place: Place) -> dict[str, Path]:
    """Return the folders of the pipelines that there are."""
    folders = {name: place.pipeline(name) for name in CONFIGS}
    return {name: folder for name, folder in folders.items() if (folder / SPEC_FILE).exists()}


def measure(place: Place, options: EvaluationOptions) -> None:
    """Judge the reconstructions and the images of every arm that isn't yet."""
    for name, folder in trained(place).items():
        if not (folder / "metrics.json").exists():
            evaluate(folder, replace(options, data=prior_config(name, place).data))


def report(place: Place) -> str:
    """Return the table of the arms that were measured."""
    folders = {name: folder for name, folder in trained(place).items() if (folder / "metrics.json").exists()}
    if not folders:
        return "nothing is measured yet\n"
    pipelines = [Pipeline.load(folder) for folder in folders.values()]
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders.values()]
    logs = {
        part: [read_losses(place.out / name / part / "losses.jsonl") for name in folders]
        for part in ("autoencoder", "prior")
    }
    tokenizers = [each["tokenizer"] for each in metrics]
    rows = {
        "parameters of the autoencoder": [f"{_num_parameters(each):,}" for each in pipelines],
        "steps, minutes": [_length(log) for log in logs["autoencoder"]],
        "PSNR, mean over test images, dB": [f"{each['psnr_db_mean_of_images']:.2f}" for each in tokenizers],
        "PSNR of the mean error, dB": [f"{each['psnr_db_of_mean_error']:.2f}" for each in tokenizers],
        "SSIM": [f"{each['ssim']:.4f}" for each in tokenizers],
        "bits an image, at most": [
            f"{_bits(each, log):,.0f}" for each, log in zip(pipelines, logs["autoencoder"], strict=True)
        ],
        "codes used": [_share(each["codebook_used_share"]) for each in tokenizers],
        "the prior's steps, minutes": [_length(log) for log in logs["prior"]],
    }
    for judge in metrics[0]["classifiers"]:
        judged = [each["classifiers"][judge] for each in metrics]
        for name in SCORES:
            title, floor = name.replace("_", " "), judged[0]["real"][name]
            for of in ("reconstructions", "generated"):
                label = f"{title} of {of}, {judge} (real {floor:.3f})"
                rows[label] = [f"{each[of][name]:.3f}" for each in judged]
    lines = [f"| | {' | '.join(folders)} |", "|---" * (1 + len(folders)) + "|"]
    lines += [f"| {label} | {' | '.join(values)} |" for label, values in rows.items()]
    return "\n".join(lines) + f"\n\n{torch.get_num_threads()} threads.\n"


def _num_parameters(pipeline: Pipeline) -> int:
    assert isinstance(pipeline.autoencoder, torch.nn.Module)
    return sum(parameter.numel() for parameter in pipeline.autoencoder.parameters())


def _length(log: list[dict[str, Any]]) -> str:
    return f"{log[-1]['step'] + 1:,}, {(log[-1]['time'] - log[0]['time']) / 60:.1f}"


def _bits(pipeline: Pipeline, log: list[dict[str, Any]]) -> float:
    """Return what latents can tell of an image: codes, or the divergence that training ended with."""
    num_places = math.prod(pipeline.spec.latents[1:])
    if (size := pipeline.spec.codebook_size) is not None:
        return num_places * math.log2(size)
    return float(log[-1]["kl_nats"]) * pipeline.spec.latents[0] * num_places / math.log(2)


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


if __name__ == "__main__":
    main()
