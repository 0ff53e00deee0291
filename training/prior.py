"""Train a prior: ``smalti train prior --config training/configs/fashion-mnist-prior.toml``.

``--family`` chooses between flow, autoregressive and masked priors.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.autoencoders.base import Autoencoder, Quantizing
from models.autoencoders.shuffle import ShuffleAutoencoder
from models.autoencoders.stages import DecodeStage
from models.autoencoders.vq import Tokenizer
from models.checkpoint import fingerprint
from models.conditioning import Conditions
from models.media.image import ImageSpec
from models.networks.code_transformer import CodeTransformer, CodeTransformerConfig
from models.networks.dit import DiT, DiTConfig
from models.networks.text_encoder import TENSORS_FILE, PromptEncoder, find_minilm
from models.options import ConfigError, Options, requested
from models.pipeline import AUTOENCODER_FILE, PRIOR_FILE, autoencoder_spec, save_pipeline
from models.priors.autoregressive import autoregressive_loss
from models.priors.base import Prior
from models.priors.flow import flow_loss
from models.priors.masked import masked_loss
from models.registry import PRIORS, load_kind
from models.spec import SPEC_FILE, PipelineSpec
from models.stage import Sample, SampleSpec, run_path
from training import preflight
from training.checkpoints import check_exported, file_digest
from training.compiling import Compiler
from training.config_file import TrainingError
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
from training.fit import PriorNetwork, fit
from training.latents import load_autoencoder
from training.network import code_network_config, network_config
from training.precision import autocast, fast_dtype
from training.prior_configs import (
    AutoregressiveTrainingConfig,
    MaskedTrainingConfig,
    PriorConfig,
    PriorTrainingConfig,
)
from training.run import Processes, Run, batch_rows, generator_for
from training.small_pictures import add_sources


def train_prior(config: PriorConfig, *, resume: bool = False) -> Path:
    """Train to the end, write the pipeline and return its folder.

    Raises: TrainingError when the run can't start or go on; DataError.
    """
    processes = Processes.join(config.num_threads)
    preflight.check(_problems(config))
    with Run(config, processes, resume=resume) as run:
        if not (resume and run.is_finished(config.output / SPEC_FILE)):
            _train(config, run)
    return config.output


def _problems(config: PriorConfig) -> Iterator[str | None]:
    """Yield what the settings alone show to be wrong."""
    yield preflight.unwritable("folder", config.folder)
    yield preflight.unusable_output(config.output)
    yield preflight.missing_file("tokenizer", config.tokenizer)
    yield preflight.missing_file("start_from", config.start_from)
    if _source_size_px(config) is not None and code_folder(config.data) is not None:
        yield f"source_size_px: {config.data} has codes, and no pictures to make smaller: leave it out"
    if config.shares_with is not None:
        shared = config.output.parent / config.shares_with / AUTOENCODER_FILE
        if config.tokenizer.resolve() != shared.resolve():
            yield f"shares_with: the tokenizer must be {shared} then, got {config.tokenizer}"
    is_prompted = is_captioned(Path(config.data))
    if config.example_prompt is not None and not is_prompted:
        yield f"example_prompt: {config.data} has no captions, so the prior takes no prompt: leave it out"
    guidance_scale = requested(config.defaults).get("guidance_scale", 1)
    if guidance_scale != 1 and config.condition_dropout == 0:
        yield (
            f"defaults.guidance_scale: {guidance_scale} needs a prior that was also trained"
            " without conditions: set condition_dropout above 0"
        )
    if is_prompted and config.text_encoder is None:
        try:
            find_minilm()
        except ConfigError as error:
            yield f"text_encoder: {error}"


def _train(config: PriorConfig, run: Run) -> None:
    """Take the steps that are left, and write the pipeline."""
    processes = run.processes
    tokenizer = load_autoencoder(config.tokenizer).to(processes.device)
    if config.family != PriorTrainingConfig.family and not isinstance(tokenizer, Quantizing):
        raise TrainingError(
            f"tokenizer: {config.tokenizer} has no codes, which priors of the family {config.family} learn:"
            f" take --family {PriorTrainingConfig.family}"
        )
    folder_of_codes = code_folder(config.data)
    if folder_of_codes is not None:
        data = read_coded_data(folder_of_codes, tokenizer)
    else:
        data = read_training_data(
            config.data,
            image_size_px=tokenizer.signal_shape[1],
            channels=tokenizer.signal_shape[0],
            max_bad_share=config.max_bad_share,
        )
    encoder = load_text_encoder(config.text_encoder, config.folder) if data.captions else None
    shape = _shape(config, tokenizer, data.label_names, encoder)
    spec = prior_spec(config, tokenizer, data.label_names, takes_prompt=shape.takes_prompt)
    torch.manual_seed(config.seed)
    network = _first_network(config, shape).to(processes.device)
    source_size_px = _source_size_px(config)
    flips = 2 if config.horizontal_flips and not data.captions and data.codes is None else 1
    num_examples = len(data.labels) * flips
    preflight.check(
        (
            _too_large(source_size_px, tokenizer),
            preflight.other_pipeline(config.output, spec),
            preflight.too_few(num_examples, config.batch_size, processes),
            preflight.too_full(config.folder, network),
        )
    )
    preflight.say_what_begins(network, num_examples, config.batch_size, config.num_steps, processes)
    examples = encode_examples(
        tokenizer,
        data,
        encoder,
        with_flips=config.horizontal_flips,
        cache=config.folder,
        as_codes=isinstance(network, CodeTransformer),
    )
    if source_size_px is not None:
        null = network.null_conditions()
        examples = add_sources(examples, tokenizer, data.images, source_size_px, null)
    examples = examples.kept_by(processes.keep)
    if isinstance(network, CodeTransformer):
        network.config = replace(network.config, common_code=most_frequent(examples.targets))
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
            config.family,
            config.defaults,
            config.seed,
        ),
    )
    if processes.is_main:
        check_exported(network.state_dict(), config.output / PRIOR_FILE)
        save_pipeline(config.output, spec, tokenizer, network, encoder, in_eight_bits=config.in_eight_bits)


def make_loss(
    config: PriorConfig,
    processes: Processes,
    compiler: Compiler,
    network: PriorNetwork,
    examples: Examples,
) -> Callable[[int], Tensor]:
    """Return the loss of a step, by its number: the same however often it is asked."""
    null = network.null_conditions()
    wrapped = compiler.compile(processes.wrap(network))

    def predict(*inputs: Any) -> Tensor:
        with autocast(null.labels.device):
            predicted: Tensor = wrapped(*inputs)
            return predicted

    def loss_of(step: int) -> Tensor:
        rows = batch_rows(len(examples), config.batch_size, step, config.seed, processes)
        generator = generator_for(config.seed, step, processes.rank, device=processes.device)
        targets = take(examples.targets, rows).to(processes.device)
        conditions = examples.conditions(rows, generator).to(processes.device)
        dropout = config.condition_dropout
        match config:
            case AutoregressiveTrainingConfig():
                return autoregressive_loss(
                    predict, targets.long(), conditions, null, generator, condition_dropout=dropout
                )
            case MaskedTrainingConfig():
                assert isinstance(network, CodeTransformer)
                return masked_loss(
                    predict,
                    targets.long(),
                    conditions,
                    null,
                    generator,
                    no_code=network.no_code,
                    condition_dropout=dropout,
                    likelihood_weight=config.likelihood_weight,
                )
        assert isinstance(config, PriorTrainingConfig)
        return flow_loss(
            predict,
            targets.float(),
            conditions,
            null,
            generator,
            time_mean=config.time_mean,
            time_std=config.time_std,
            condition_dropout=dropout,
            source_dropout=config.source_dropout,
        )

    return loss_of


def _source_size_px(config: PriorConfig) -> int | None:
    """Return how large the pictures are that the prior learns to draw larger; None where it learns others."""
    return config.source_size_px if isinstance(config, PriorTrainingConfig) else None


def _too_large(source_size_px: int | None, tokenizer: ShuffleAutoencoder) -> str | None:
    size_px = tokenizer.config.image_size_px
    if source_size_px is None or source_size_px < size_px:
        return None
    return f"source_size_px: the tokenizer's pictures have {size_px}: less is needed, got {source_size_px}"


def most_frequent(codes: Tensor) -> int:
    """Return the code of which there are most in codes (N, …)."""
    return int(torch.bincount(codes.flatten()).argmax())


def _text_folder(config: PriorConfig) -> Path:
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
    config: PriorConfig, tokenizer: ShuffleAutoencoder, label_names: LabelNames, *, takes_prompt: bool
) -> PipelineSpec:
    """Return the specification of the pipeline that a training ends in."""
    pictures = autoencoder_spec(config.output.name, tokenizer.kind, tokenizer)
    size_px = _source_size_px(config)
    source = {}
    if size_px is not None:
        channels = tokenizer.config.image_channels
        source["source"] = ImageSpec(width_px=size_px, height_px=size_px, channels=1 if channels == 1 else 3)
    return replace(
        pictures,
        takes=source,
        labels=label_names,
        takes_prompt=takes_prompt,
        prior=config.family,
        defaults=config.defaults,
        example_prompt=config.example_prompt,
        shares_with=config.shares_with,
    )


def _shape(
    config: PriorConfig, tokenizer: ShuffleAutoencoder, label_names: LabelNames, encoder: PromptEncoder | None
) -> DiTConfig | CodeTransformerConfig:
    if config.family == PriorTrainingConfig.family:
        takes_source = _source_size_px(config) is not None
        return network_config(config.prior, tokenizer, label_names, encoder, takes_source=takes_source)
    assert isinstance(tokenizer, Tokenizer)
    given = config.prior, tokenizer, label_names, encoder
    return code_network_config(*given, is_causal=config.family == AutoregressiveTrainingConfig.family)


def _first_network(config: PriorConfig, shape: DiTConfig | CodeTransformerConfig) -> PriorNetwork:
    network: PriorNetwork
    if config.start_from is None:
        return DiT(shape) if isinstance(shape, DiTConfig) else CodeTransformer(shape)
    if isinstance(shape, DiTConfig):
        network = DiT.load(config.start_from)
        if shape.source_channels and not network.config.source_channels:
            network = network.taking_source(shape.source_channels)
    else:
        network = CodeTransformer.load(config.start_from)
        network.config = replace(network.config, common_code=0)  # which is of the data
    if network.config != shape:
        raise TrainingError(f"start_from: {config.start_from} has another shape: {network.config}")
    return network


@torch.inference_mode()
def save_samples(
    path: Path,
    autoencoder: Autoencoder,
    network: PriorNetwork,
    conditions: Conditions,
    family: str,
    options: Options,
    seed: int,
) -> None:
    """Save a picture of a sample for each of ``conditions``, from the same seed every time."""
    null = network.null_conditions()
    samples = [
        Sample(SampleSpec(seed, options, conditions[i : i + 1], null), index=i)
        for i in range(len(conditions))
    ]
    if isinstance(network, CodeTransformer):  # whose cache is of one precision, that of its weights
        network = copy.deepcopy(network).to(fast_dtype(conditions.labels.device.type))
    prior: Prior = load_kind(PRIORS, family)(network)
    with autocast(conditions.labels.device):
        run_path([prior.make_stage(len(samples))], samples)
    run_path([DecodeStage(autoencoder, len(samples))], samples)
    images = torch.stack([sample.value for sample in samples if sample.value is not None])
    save_grid(path, images.cpu(), num_columns=8)
