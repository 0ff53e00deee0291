"""Train a prior: ``smalti train prior --config training/configs/fashion-mnist-prior.toml``."""

from collections.abc import Callable, Iterator
from dataclasses import field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from models.autoencoders.stages import DecodeStage
from models.autoencoders.vq import Tokenizer
from models.checkpoint import fingerprint
from models.conditioning import Conditions
from models.media.image import ImageSpec
from models.networks.dit import DiT, DiTConfig
from models.networks.text_encoder import TENSORS_FILE, find_minilm
from models.options import ConfigError, Count, FlowOptions, UnitTime
from models.pipeline import PRIOR_FILE, save_pipeline
from models.priors.flow import FlowStage, flow_loss
from models.spec import SPEC_FILE, CodesSpec, PipelineSpec
from models.stage import Sample, SampleSpec, run_path
from training import preflight
from training.checkpoints import check_exported, file_digest
from training.compiling import Compiler
from training.config_file import TrainingError
from training.data.bad_files import MAX_BAD_SHARE
from training.data.captioned import LabelNames, is_captioned
from training.data.code_folder import code_folder
from training.evaluation.plots import save_grid
from training.examples import (
    Examples,
    TrainingData,
    encode_examples,
    load_text_encoder,
    read_coded_data,
    read_training_data,
    take,
)
from training.fit import FitConfig, fit
from training.network import NetworkSettings, network_config
from training.precision import autocast
from training.run import Processes, Run, batch_rows, generator_for


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PriorTrainingConfig(FitConfig):
    """What ``smalti train prior`` reads from its TOML file.

    ``data`` may be ``codes:DIR``, a folder of codes that this tokenizer made (``docs/codes.md``).
    ``tokenizer`` is a ``tokenizer.safetensors``; ``output`` is the finished pipeline's folder, named as it.
    Where ``data`` is a folder with captions, the prior takes prompts, and ``text_encoder`` is a folder with
    ``text_encoder.safetensors``; without it, all-MiniLM-L6-v2 comes from its package. A share of
    ``condition_dropout`` of the samples is trained without conditions. ``start_from`` is a
    ``prior.safetensors`` whose weights the run starts with, instead of random ones. With
    ``horizontal_flips`` each image is also learnt from flipped; not in a folder with captions, where what is
    said of an image may not hold of its mirror image, nor in one of codes, which has its own (``--flips``).
    """

    tokenizer: Path
    output: Path
    prior: NetworkSettings = field(default_factory=NetworkSettings)
    defaults: FlowOptions = field(default_factory=FlowOptions)
    data: str = "fashion-mnist"
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = MAX_BAD_SHARE
    text_encoder: Path | None = None
    start_from: Path | None = None
    example_prompt: str | None = None
    batch_size: Count = 256
    num_steps: Count = 4000
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    muon_learning_rate: Annotated[float, Field(gt=0)] = 2e-2
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    decay_fraction: UnitTime = 0.4
    ema_decay: UnitTime = 0.999
    condition_dropout: UnitTime = 0.1
    time_mean: float = 0.0
    time_std: Annotated[float, Field(gt=0)] = 1.0
    horizontal_flips: bool = True
    log_every: Count = 50
    samples_every: Count = 1000


def train_prior(config: PriorTrainingConfig, *, resume: bool = False) -> Path:
    """Train to the end, write the pipeline and return its folder.

    Raises: TrainingError when the run can't start or go on; DataError.
    """
    processes = Processes.join(config.num_threads)
    preflight.check(_problems(config))
    with Run(config, processes, resume=resume) as run:
        if not (resume and run.is_finished(config.output / SPEC_FILE)):
            _train(config, run)
    return config.output


def _problems(config: PriorTrainingConfig) -> Iterator[str | None]:
    """Yield what the settings alone show to be wrong."""
    yield preflight.unwritable("folder", config.folder)
    yield preflight.unusable_output(config.output)
    yield preflight.missing_file("tokenizer", config.tokenizer)
    yield preflight.missing_file("start_from", config.start_from)
    is_prompted = is_captioned(Path(config.data))
    if config.example_prompt is not None and not is_prompted:
        yield f"example_prompt: {config.data} has no captions, so the prior takes no prompt: leave it out"
    if config.defaults.guidance_scale != 1 and config.condition_dropout == 0:
        yield (
            f"defaults.guidance_scale: {config.defaults.guidance_scale} needs a prior that was also trained"
            " without conditions: set condition_dropout above 0"
        )
    if is_prompted and config.text_encoder is None:
        try:
            find_minilm()
        except ConfigError as error:
            yield f"text_encoder: {error}"


def _train(config: PriorTrainingConfig, run: Run) -> None:
    """Take the steps that are left, and write the pipeline."""
    processes = run.processes
    tokenizer = Tokenizer.load(config.tokenizer).to(processes.device)
    folder_of_codes = code_folder(config.data)
    if folder_of_codes is not None:
        data = read_coded_data(folder_of_codes, tokenizer)
    else:
        data = read_training_data(
            config.data,
            image_size_px=tokenizer.config.image_size_px,
            channels=tokenizer.config.image_channels,
            max_bad_share=config.max_bad_share,
        )
    encoder = load_text_encoder(config.text_encoder, config.folder) if data.captions else None
    shape = network_config(config.prior, tokenizer, data.label_names, encoder)
    spec = prior_spec(config, tokenizer, data.label_names, takes_prompt=shape.takes_prompt)
    torch.manual_seed(config.seed)
    network = _first_network(config, shape).to(processes.device)
    flips = 2 if config.horizontal_flips and not data.captions and data.codes is None else 1
    num_examples = len(data.labels) * flips
    preflight.check(
        (
            preflight.other_pipeline(config.output, spec),
            preflight.too_few(num_examples, config.batch_size, processes),
            preflight.too_full(config.folder, network),
        )
    )
    preflight.say_what_begins(network, num_examples, config.batch_size, config.num_steps, processes)
    examples = encode_examples(
        tokenizer, data, encoder, with_flips=config.horizontal_flips, cache=config.folder
    ).kept_by(processes.keep)
    compiler = Compiler(is_on=config.is_compiled)
    fit(
        run,
        compiler,
        network,
        config,
        make_loss(config, processes, compiler, network, examples),
        made_from={
            "data": data_digest(data),
            "tokenizer": tokenizer.fingerprint(),
            "text_encoder": "" if encoder is None else file_digest(_text_folder(config) / TENSORS_FILE),
        },
        save_preview=lambda average, step: save_samples(
            config.folder / "samples" / f"{step:07d}.png",
            tokenizer,
            average,
            examples.preview_conditions.to(processes.device),
            config.defaults,
            config.seed,
        ),
    )
    if processes.is_main:
        check_exported(network.state_dict(), config.output / PRIOR_FILE)
        save_pipeline(config.output, spec, tokenizer, network, encoder, in_eight_bits=config.in_eight_bits)


def make_loss(
    config: PriorTrainingConfig, processes: Processes, compiler: Compiler, network: DiT, examples: Examples
) -> Callable[[int], Tensor]:
    """Return the loss of a step, by its number: the same however often it is asked."""
    null = network.null_conditions()
    wrapped = compiler.compile(processes.wrap(network))

    def predict(latents: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        with autocast(latents.device):
            return wrapped(latents, t, conditions)

    def loss_of(step: int) -> Tensor:
        rows = batch_rows(len(examples), config.batch_size, step, config.seed, processes)
        generator = generator_for(config.seed, step, processes.rank, device=processes.device)
        return flow_loss(
            predict,
            take(examples.latents, rows).to(processes.device).float(),
            examples.conditions(rows, generator).to(processes.device),
            null,
            generator,
            time_mean=config.time_mean,
            time_std=config.time_std,
            condition_dropout=config.condition_dropout,
        )

    return loss_of


def _text_folder(config: PriorTrainingConfig) -> Path:
    return config.text_encoder or config.folder / "text_encoder"


def data_digest(data: TrainingData) -> str:
    """Return 16 hexadecimal digits that tell this training data from all other."""
    named = {
        "labels": {name: list(names) for name, names in data.label_names.items()},
        "captions": data.captions,
    }
    tensors = {"images": data.images} if data.codes is None else {"codes": data.codes}
    return fingerprint(named, {**tensors, "labels": data.labels})


def prior_spec(
    config: PriorTrainingConfig, tokenizer: Tokenizer, label_names: LabelNames, *, takes_prompt: bool
) -> PipelineSpec:
    """Return the specification of the pipeline that a training ends in."""
    channels, height_px, width_px = tokenizer.signal_shape
    return PipelineSpec(
        name=config.output.name,
        makes=(ImageSpec(width_px=width_px, height_px=height_px, channels=1 if channels == 1 else 3),),
        latents=tokenizer.latent_shape,
        codes=CodesSpec(
            grid=tokenizer.config.grid,
            size=tokenizer.config.codebook_size,
            fingerprint=tokenizer.fingerprint(),
        ),
        labels=label_names,
        takes_prompt=takes_prompt,
        autoencoders={"image": "vq"},
        prior="flow",
        defaults=config.defaults,
        example_prompt=config.example_prompt,
    )


def _first_network(config: PriorTrainingConfig, shape: DiTConfig) -> DiT:
    if config.start_from is None:
        return DiT(shape)
    network = DiT.load(config.start_from)
    if network.config != shape:
        raise TrainingError(f"start_from: {config.start_from} has another shape: {network.config}")
    return network


@torch.inference_mode()
def save_samples(
    path: Path,
    tokenizer: Tokenizer,
    network: DiT,
    conditions: Conditions,
    options: FlowOptions,
    seed: int,
) -> None:
    """Save a picture of a sample for each of ``conditions``, from the same noise every time."""
    null = network.null_conditions()
    samples = [
        Sample(SampleSpec(seed, options, conditions[i : i + 1], null), index=i)
        for i in range(len(conditions))
    ]
    with autocast(conditions.labels.device):
        run_path([FlowStage(network, len(samples))], samples)
    run_path([DecodeStage(tokenizer, len(samples))], samples)
    images = torch.stack([sample.value for sample in samples if sample.value is not None])
    save_grid(path, images.cpu(), num_columns=8)
