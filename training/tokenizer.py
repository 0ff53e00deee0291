"""Train a tokenizer: ``smalti train tokenizer --config training/configs/fashion-mnist-tokenizer.toml``."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.autoencoders.quantizers import Quantized, VectorQuantizer
from models.autoencoders.vq import Tokenizer, channels_last
from models.checkpoint import fingerprint, save_checkpoint
from training import preflight
from training.checkpoints import check_exported
from training.compiling import Compiler
from training.config_file import TrainingError
from training.data.dataset import ImageDataset, scale_to_unit
from training.data.sources import load_dataset
from training.discriminator import Adversary, PatchDiscriminator
from training.evaluation.metrics import measure_squared_errors, psnr_db
from training.evaluation.plots import save_grid
from training.examples import take
from training.lite0 import Lite0, perceptual_distance
from training.losses import reconstruction_loss
from training.precision import autocast
from training.run import (
    Processes,
    Run,
    batch_rows,
    generator_for,
    learning_rate_factor,
)
from training.searched_codes import SearchedCodes, search_training_codes
from training.tokenizer_config import TokenizerTrainingConfig, problems

logger = logging.getLogger(__name__)


def train_tokenizer(config: TokenizerTrainingConfig, *, resume: bool = False) -> Path:
    """Train to the end and return the path of ``tokenizer.safetensors``.

    Raises: TrainingError when the run can't start or go on.
    """
    processes = Processes.join(config.num_threads)
    preflight.check(problems(config))
    path = config.folder / "tokenizer.safetensors"
    with Run(config, processes, resume=resume) as run:
        if not (resume and run.is_finished(path)):
            _train(config, run, path)
    return path


def _train(config: TokenizerTrainingConfig, run: Run, path: Path) -> None:
    """Take the steps that are left, and write the tokenizer to ``path``."""
    processes = run.processes
    shape = {"image_size_px": config.tokenizer.image_size_px, "channels": config.tokenizer.image_channels}
    data, test = (
        load_dataset(config.data, split, **shape, max_bad_share=config.max_bad_share)
        for split in ("train", "test")
    )
    torch.manual_seed(config.seed)
    tokenizer = channels_last(_start(config).to(processes.device))
    preflight.check(
        (
            preflight.too_few(len(data), config.batch_size, processes),
            preflight.too_full(config.folder, tokenizer),
        )
    )
    trained = tokenizer if config.finetune_decoder is None else tokenizer.decoder
    optimizer = torch.optim.AdamW(
        trained.parameters(),
        lr=config.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=processes.device.type == "cuda",
    )
    searched = None
    if config.num_searched_images:
        searched = search_training_codes(
            tokenizer, data.images, config.num_searched_images, config.folder, config.seed, processes
        )
    adversary = None
    if config.adversarial_weight:
        discriminator = PatchDiscriminator(config.tokenizer.image_channels).to(processes.device)
        adversary = Adversary(processes.wrap(discriminator), config.adversarial_learning_rate)
    judge = Lite0.load().to(processes.device) if config.perceptual_weight else None
    num_continuous_steps, first_step = config.num_continuous_steps, 0
    if state := run.load({"data": fingerprint({}, {"images": data.images})}):
        if config.continuous_steps is None:
            num_continuous_steps = state.get("continuous_steps", state["config"]["continuous_steps"])
        tokenizer.load_state_dict(state["tokenizer"])
        optimizer.load_state_dict(state["optimizer"])
        if adversary is not None:
            adversary.load_state_dict(state["adversary"])
        first_step = state["step"]

    encode: Any = processes.wrap(tokenizer.encoder) if config.finetune_decoder is None else tokenizer.encoder
    decode: Any = processes.wrap(tokenizer.decoder)
    compiler = Compiler(is_on=config.is_compiled)
    encode, decode = compiler.compile(encode), compiler.compile(decode)
    stepper = _Stepper(
        tokenizer, encode, decode, optimizer, adversary, judge, config, num_continuous_steps, compiler
    )
    preflight.say_what_begins(trained, len(data), config.batch_size, config.num_steps, processes)
    if config.finetune_decoder is None and first_step < num_continuous_steps and processes.is_main:
        logger.info("no codebook until step %d: what is logged before is without it", num_continuous_steps)
    images = processes.keep(data.images)
    for step in run.steps(first_step):
        factor = learning_rate_factor(step, config.num_steps, config.warmup_steps, config.decay_fraction)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        logged = stepper.take(*_batch(images, searched, config, step, processes), step)
        if run.is_logged(step):
            run.log(step, **{name: float(value) for name, value in logged.items()})
        run.end_step(
            step,
            tokenizer,
            lambda: {
                "tokenizer": tokenizer.state_dict(),
                "optimizer": optimizer.state_dict(),
                "continuous_steps": num_continuous_steps,
                **({} if adversary is None else {"adversary": adversary.state_dict()}),
            },
        )

    tokenizer.eval()
    if config.finetune_decoder is None:
        _measure_scale(tokenizer, data)
    run.draw_losses()
    if processes.is_main:
        check_exported(tokenizer.exported(), path)
        save_checkpoint(path, tokenizer.exported(), config.tokenizer)
        _save_reconstructions(config.folder / "reconstructions.png", tokenizer, test.images[:32])
        logger.info("%s: PSNR %.2f dB on the test split", path, reconstruction_psnr(tokenizer, test.images))


def _batch(
    all_images: Tensor,
    searched: SearchedCodes | None,
    config: TokenizerTrainingConfig,
    step: int,
    processes: Processes,
) -> tuple[Tensor, Tensor | None]:
    """Return images (B, C, H, W) in [-1, 1], and the codes of the last half where they were searched."""
    size = config.batch_size if searched is None else config.batch_size // 2
    images = take(all_images, batch_rows(len(all_images), size, step, config.seed, processes))
    if config.horizontal_flips:
        generator = generator_for(config.seed, step, processes.rank, device=images.device)
        flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    codes = None
    if searched is not None:
        rows = batch_rows(len(searched.images), size, step, config.seed, processes)
        images = torch.cat([images, searched.images[rows].to(images.device)])
        codes = searched.codes[rows].to(processes.device)
    images = scale_to_unit(images.to(processes.device))
    return images.contiguous(memory_format=torch.channels_last), codes


def _start(config: TokenizerTrainingConfig) -> Tokenizer:
    """Return the tokenizer to train: a new one, or a finished one to train on, whole or its decoder alone."""
    if config.finetune_decoder is not None:
        tokenizer = Tokenizer.load(config.finetune_decoder)
        if tokenizer.config != config.tokenizer:
            raise TrainingError(
                f"finetune_decoder: {config.finetune_decoder} has another shape: {tokenizer.config}"
            )
        tokenizer.decoder.requires_grad_(True)
        return tokenizer
    tokenizer = Tokenizer(config.tokenizer)
    if config.start_from is not None:
        finished = Tokenizer.load(config.start_from)
        num_blocks = finished.config.num_blocks
        if (
            dataclasses.replace(config.tokenizer, num_blocks=num_blocks) != finished.config
            or num_blocks > config.tokenizer.num_blocks
        ):
            raise TrainingError(f"start_from: {config.start_from} has another shape: {finished.config}")
        _copy_weights(finished, tokenizer)
        if isinstance(tokenizer.quantizer, VectorQuantizer):
            tokenizer.quantizer.start_averages(config.batch_size * math.prod(config.tokenizer.grid))
    return tokenizer


def _copy_weights(finished: Tokenizer, tokenizer: Tokenizer) -> None:
    """Copy all weights into a tokenizer of as many blocks, or more: those it has more stay the identity."""
    weights = {name: w for name, w in finished.exported().items() if ".stages." not in name}
    tokenizer.load_state_dict(weights, strict=False)
    for old, new in ((finished.encoder, tokenizer.encoder), (finished.decoder, tokenizer.decoder)):
        layers = iter(new.stages)
        for old_layer in old.stages:
            layer = next(layer for layer in layers if type(layer) is type(old_layer))
            layer.load_state_dict(old_layer.state_dict())


@dataclasses.dataclass(frozen=True)
class _Done:
    """What the passes of a step gave."""

    latents: Tensor
    quantized: Quantized | None
    reconstructed: Tensor
    loss: Tensor


@dataclasses.dataclass(frozen=True)
class _Stepper:
    """Takes the steps of a run; ``encode`` and ``decode`` are the tokenizer's parts, compiled or wrapped."""

    tokenizer: Tokenizer
    encode: Any
    decode: Any
    optimizer: torch.optim.Optimizer
    adversary: Adversary | None
    judge: Lite0 | None
    config: TokenizerTrainingConfig
    num_continuous_steps: int
    compiler: Compiler

    def take(self, images: Tensor, codes: Tensor | None, step: int) -> dict[str, Tensor]:
        """Take one step; return the loss and the PSNR of the mean error, and the discriminator's loss.

        codes: of the last of the images, where they aren't to be encoded.
        """
        config, tokenizer = self.config, self.tokenizer
        tokenizer.train(config.finetune_decoder is None)
        adversary = self.adversary if step >= config.adversarial_start else None
        done = self.compiler.run(lambda: self._backward(images, codes, step, adversary))
        nn.utils.clip_grad_norm_(tokenizer.parameters(), config.gradient_clip)
        self.optimizer.step()
        quantized = done.quantized
        if quantized is not None and tokenizer.training and isinstance(tokenizer.quantizer, VectorQuantizer):
            generator = generator_for(config.seed, step, -3)
            tokenizer.quantizer.update(done.latents.detach(), quantized.codes, generator)
        error = (done.reconstructed.detach().float() - images).square().mean()
        logged = {"loss": done.loss, "psnr": psnr_db(error)}
        if adversary is not None:
            logged["discriminator"] = adversary.learn(images, done.reconstructed)
        return logged

    def _backward(
        self, images: Tensor, codes: Tensor | None, step: int, adversary: Adversary | None
    ) -> "_Done":
        """Give the parameters the step's gradients."""
        config, tokenizer = self.config, self.tokenizer
        with autocast(images.device):
            if config.finetune_decoder is None:
                latents, quantized = self._quantize(images, step)
            else:
                quantized = None
                with torch.no_grad():
                    latents = self._known_latents(images, codes)
            reconstructed = self.decode(latents if quantized is None else quantized.latents)
        loss = reconstruction_loss(
            reconstructed,
            images,
            l1_weight=config.l1_weight,
            l2_weight=config.l2_weight,
            edge_weight=config.edge_weight,
            ssim_weight=config.ssim_weight,
        )
        if self.judge is not None:
            with autocast(images.device):
                seen = perceptual_distance(self.judge, reconstructed.float(), images).mean()
            loss = loss + config.perceptual_weight * seen
        total = loss if quantized is None else loss + quantized.loss
        if adversary is not None:
            pull = adversary.loss_for(reconstructed, loss, tokenizer.decoder.last_weights)
            total = total + config.adversarial_weight * pull
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        return _Done(latents, quantized, reconstructed, total.detach())

    def _known_latents(self, images: Tensor, codes: Tensor | None) -> Tensor:
        """Return what a decoder trained by itself is given: the latents of codes."""
        quantizer = self.tokenizer.quantizer
        if codes is None:
            return quantizer.quantize(quantizer.squash(self.encode(images))).latents
        encoded = quantizer.squash(self.encode(images[: -len(codes)]))
        return torch.cat([quantizer.quantize(encoded).latents, quantizer.lookup(codes)])

    def _quantize(self, images: Tensor, step: int) -> tuple[Tensor, Quantized | None]:
        """Return latents, and what they are snapped to once the codebook has been started."""
        config, quantizer = self.config, self.tokenizer.quantizer
        latents = quantizer.squash(self.encode(images))
        if step < self.num_continuous_steps:
            return latents, None
        if isinstance(quantizer, VectorQuantizer) and not quantizer.is_initialised:
            quantizer.initialise(latents, generator_for(config.seed, step, -2))
        return latents, quantizer.quantize(latents)


@torch.inference_mode()
def _measure_scale(tokenizer: Tokenizer, data: ImageDataset, num_images: int = 10_000) -> None:
    """Set the mean and standard deviation per channel that latents are scaled by."""
    device = tokenizer.latent_mean.device
    batches = scale_to_unit(data.images[:num_images]).split(500)
    latents = torch.cat([tokenizer.encode(batch.to(device)) for batch in batches])
    tokenizer.latent_mean.copy_(latents.mean((0, 2, 3)).view_as(tokenizer.latent_mean))
    tokenizer.latent_std.copy_(latents.std((0, 2, 3)).view_as(tokenizer.latent_std))


@torch.inference_mode()
def reconstruction_psnr(tokenizer: Tokenizer, images: Tensor) -> float:
    """Return the mean over uint8 ``images`` (N, C, H, W) of each reconstruction's PSNR in dB."""
    device = tokenizer.latent_mean.device
    errors = []
    for batch in scale_to_unit(images).split(500):
        codes = tokenizer.quantize(tokenizer.encode(batch.to(device))).codes
        errors.append(measure_squared_errors(tokenizer.decode_codes(codes).cpu(), batch))
    return psnr_db(torch.cat(errors)).mean().item()


@torch.inference_mode()
def _save_reconstructions(path: Path, tokenizer: Tokenizer, images: Tensor) -> None:
    """Save rows of eight of ``images``, each over its row of reconstructions."""
    real = scale_to_unit(images)
    latents = tokenizer.encode(real.to(tokenizer.latent_mean.device))
    made = tokenizer.decode_codes(tokenizer.quantize(latents).codes).cpu()
    rows = [row for pair in zip(real.split(8), made.split(8), strict=True) for row in pair]
    save_grid(path, torch.cat(rows), num_columns=8)
