"""The commands that build data sets, train and evaluate; they import what they need when they run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.terminal import CommandError, GuidanceScale, NumSteps, SamplerChoice, Temperature, given, say
from workers.logs import show_log

train = typer.Typer(help="Train a tokenizer or a KL autoencoder, then a prior.", no_args_is_help=True)
data_sets = typer.Typer(help="Build data sets to train on.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Option("--config", help="A TOML file, as in training/configs/.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="fashion-mnist, or a folder of images with captions.jsonl or a folder for each class;"
        " for a prior also codes:DIR.",
    ),
]


@train.command("tokenizer")
def train_tokenizer(config: ConfigFile, resume: Resume = False, data: Data = None) -> None:
    """Train image ⇄ codes; prints the path of the weights."""
    from training.tokenizer import train_tokenizer
    from training.tokenizer_config import TokenizerTrainingConfig

    _train(train_tokenizer, TokenizerTrainingConfig, config, resume, data)


@train.command("autoencoder")
def train_autoencoder(config: ConfigFile, resume: Resume = False, data: Data = None) -> None:
    """Train image ⇄ latents, without codes; prints the pipeline's folder."""
    from training.autoencoder import AutoencoderTrainingConfig, train_autoencoder

    _train(train_autoencoder, AutoencoderTrainingConfig, config, resume, data)


@train.command("prior")
def train_prior(
    config: ConfigFile,
    resume: Resume = False,
    data: Data = None,
    family: Annotated[str, typer.Option(help="flow, autoregressive or masked.")] = "flow",
) -> None:
    """Train a prior on a tokenizer's latents, or on its codes; prints the pipeline's folder."""
    from training.prior import train_prior
    from training.prior_configs import PRIOR_CONFIGS

    if family not in PRIOR_CONFIGS:
        raise CommandError(f"--family: known are {', '.join(PRIOR_CONFIGS)}, got {family!r}")
    _train(train_prior, PRIOR_CONFIGS[family], config, resume, data)


@train.command("distilled")
def train_distilled(config: ConfigFile, resume: Resume = False, data: Data = None) -> None:
    """Train a pipeline's prior to need a few steps only; prints the new pipeline's folder."""
    from training.distill import DistillConfig, train_distilled

    _train(train_distilled, DistillConfig, config, resume, data)


@data_sets.command("emoji")
def build_emoji(
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    packages: Annotated[
        Path | None, typer.Option(help="A folder with the packages as `npm pack` makes them; else npm runs.")
    ] = None,
    with_share_alike: Annotated[
        bool,
        typer.Option("--with-share-alike", help="Also styles whose licence binds what is made of them."),
    ] = False,
) -> None:
    """Draw emoji in several styles, with names and keywords, from npm packages; prints what it made."""
    from training.emoji.build import build_emoji

    try:
        built = build_emoji(out, packages=packages, with_share_alike=with_share_alike)
    except ImportError as error:
        raise CommandError(f"{error.name} is missing: pip install 'smalti[training]'") from error
    for split, number in built.num_images.items():
        typer.echo(f"{split}: {number} images")
    for reason, number in built.left_out.items():
        say(f"left out, {reason}: {number}")
    typer.echo(out)


@data_sets.command("credited")
def take_credited(
    source: Annotated[Path, typer.Argument(help="A folder with a folder of photographs for each class.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    credits: Annotated[
        Path | None,
        typer.Option(help="A line for each picture, with who made it.  [default: CREDITS.txt in the folder]"),
    ] = None,
) -> None:
    """Take the photographs whose makers are named, with their credits; prints how many."""
    from training.data.credited import take_credited

    taken = take_credited(source, out, credits)
    for name, number in taken.num_pictures.items():
        typer.echo(f"{name}: {number} images")
    if taken.num_left_out:
        say(f"left out, without a credit: {taken.num_left_out}")
    typer.echo(out)


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A pipeline's folder, such as weights/fashion-mnist.")],
    data: Data = None,
    num_images: Annotated[int | None, typer.Option(help="How many to generate.  [default: 10000]")] = None,
    num_steps: NumSteps = None,
    guidance_scale: GuidanceScale = None,
    sampler: SamplerChoice = None,
    temperature: Temperature = None,
    effort: Annotated[
        int | None, typer.Option(help="Also measure codes that are searched for, in so many sweeps.")
    ] = None,
    with_lite0: Annotated[
        bool | None,
        typer.Option("--lite0", help="Also measure in features of EfficientNet-Lite0: photographs."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ….  [default: cpu]")] = None,
) -> None:
    """Measure a pipeline against real images; writes metrics.json, samples.png and the model card."""
    from training.evaluation.measure import measure

    options = {
        "data": data,
        "num_images": num_images,
        "num_steps": num_steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
        "temperature": temperature,
        "effort": effort,
        "with_lite0": with_lite0,
        "device": device,
    }
    show_log("INFO")
    typer.echo(measure(folder, given(options)))


def _train(run: Any, config_class: type[Any], config: Path, resume: bool, data: str | None) -> None:
    from dataclasses import replace

    from training.config_file import TrainingError, load_config
    from training.stopping import Stopped

    show_log("INFO")
    try:
        loaded = load_config(config, config_class)
        typer.echo(run(replace(loaded, data=data) if data else loaded, resume=resume))
    except Stopped as stopped:
        say(str(stopped))
        raise typer.Exit(stopped.status) from stopped
    except KeyboardInterrupt as interrupted:
        say("stopped between steps; if the run had begun, --resume goes on from its last checkpoint")
        raise typer.Exit(130) from interrupted
    except TrainingError as error:
        *earlier, last = str(error).split("\n")
        for line in earlier:
            say(line)
        raise TrainingError(last) from error
