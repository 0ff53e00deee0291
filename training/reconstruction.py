"""Train an autoencoder to reconstruct pictures, whatever is between its encoder and its decoder."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.autoencoders.base import Quantizing
from models.autoencoders.shuffle import ShuffleAutoencoder
from models.autoencoders.vq import channels_last
from models.checkpoint import fingerprint
from models.networks.shuffle_autoencoder import ShuffleConfig
from training import preflight
from training.bottlenecks import Bottleneck, Squeezed
from training.compiling import Compiler
from training.data.dataset import ImageDataset, scale_to_unit
from training.data.sources import load_dataset
from training.discriminator import Adversary, PatchDiscriminator
from training.evaluation.metrics import measure_squared_errors, psnr_db
from training.evaluation.plots import save_grid
from training.examples import take
from training.lite0 import Lite0, perceptual_distance
from training.losses import reconstruction_loss
from training.precision import autocast
from training.reconstruction_config import ReconstructionConfig
from training.run import Processes, Run, batch_rows, generator_for, learning_rate_factor
from training.searched_codes import SearchedCodes

logger = logging.getLogger(__name__)

AnyAutoencoder = TypeVar("AnyAutoencoder", bound=ShuffleAutoencoder)


@dataclass(frozen=True)
class Pictures:
    """What is trained on, and what is measured on."""

    train: ImageDataset
    test: ImageDataset


def load_pictures(config: ReconstructionConfig, shape: ShuffleConfig) -> Pictures:
    """Load both splits of the data, in the size that ``shape`` says.

    Raises: DataError.
    """
    size = {"image_size_px": shape.image_size_px, "channels": shape.image_channels}
    train, test = (
        load_dataset(config.data, split, **size, max_bad_share=config.max_bad_share)
        for split in ("train", "test")
    )
    return Pictures(train, test)


def prepare(
    autoencoder: AnyAutoencoder, config: ReconstructionConfig, pictures: Pictures, processes: Processes
) -> AnyAutoencoder:
    """Return ``autoencoder`` where it is trained, after a look at whether there is room for it.

    Raises: TrainingError.
    """
    preflight.check(
        (
            preflight.too_few(len(pictures.train), config.batch_size, processes),
            preflight.too_full(config.folder, autoencoder),
        )
    )
    return channels_last(autoencoder.to(processes.device))


def fit_autoencoder(
    config: ReconstructionConfig,
    run: Run,
    pictures: Pictures,
    autoencoder: ShuffleAutoencoder,
    bottleneck: Bottleneck,
    searched: SearchedCodes | None = None,
) -> None:
    """Take the steps that are left; measure the latents' scale if the encoder learnt; round if asked."""
    processes, data = run.processes, pictures.train
    trained = autoencoder if bottleneck.trains_encoder else autoencoder.decoder
    optimizer = torch.optim.AdamW(
        trained.parameters(),
        lr=config.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=processes.device.type == "cuda",
    )
    adversary = None
    if config.adversarial_weight:
        discriminator = PatchDiscriminator(autoencoder.config.image_channels).to(processes.device)
        adversary = Adversary(processes.wrap(discriminator), config.adversarial_learning_rate)
    judge = Lite0.load().to(processes.device) if config.perceptual_weight else None
    first_step = 0
    if state := run.load({"data": fingerprint({}, {"images": data.images})}):
        autoencoder.load_state_dict(state["tokenizer"])
        optimizer.load_state_dict(state["optimizer"])
        bottleneck.load_state_dict(state)
        if adversary is not None:
            adversary.load_state_dict(state["adversary"])
        first_step = state["step"]

    encoder: Any = autoencoder.encoder
    compiler = Compiler(is_on=config.is_compiled)
    stepper = Stepper(
        autoencoder,
        compiler.compile(processes.wrap(encoder) if bottleneck.trains_encoder else encoder),
        compiler.compile(processes.wrap(autoencoder.decoder)),
        bottleneck,
        optimizer,
        adversary,
        judge,
        config,
        compiler,
    )
    preflight.say_what_begins(trained, len(data), config.batch_size, config.num_steps, processes)
    if processes.is_main:
        bottleneck.announce(first_step)
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
            autoencoder,
            lambda: {
                "tokenizer": autoencoder.state_dict(),
                "optimizer": optimizer.state_dict(),
                **bottleneck.state_dict(),
                **({} if adversary is None else {"adversary": adversary.state_dict()}),
            },
        )

    autoencoder.eval()
    if bottleneck.trains_encoder:
        _measure_scale(autoencoder, data)
    if config.in_half_precision:
        for tensor in autoencoder.exported().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
    run.draw_losses()


def _batch(
    all_images: Tensor,
    searched: SearchedCodes | None,
    config: ReconstructionConfig,
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


@dataclass(frozen=True)
class _Done:
    """What the passes of a step gave."""

    squeezed: Squeezed
    reconstructed: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Stepper:
    """Takes the steps of a run; ``encode`` and ``decode`` are the autoencoder's, compiled or wrapped."""

    autoencoder: ShuffleAutoencoder
    encode: Any
    decode: Any
    bottleneck: Bottleneck
    optimizer: torch.optim.Optimizer
    adversary: Adversary | None
    judge: Lite0 | None
    config: ReconstructionConfig
    compiler: Compiler

    def take(self, images: Tensor, codes: Tensor | None, step: int) -> dict[str, Tensor]:
        """Take one step; return the loss, the PSNR of the mean error, and what else there is to log.

        codes: of the last of the images, where they aren't to be encoded.
        """
        config, autoencoder = self.config, self.autoencoder
        autoencoder.train(self.bottleneck.trains_encoder)
        adversary = self.adversary if step >= config.adversarial_start else None
        done = self.compiler.run(lambda: self._backward(images, codes, step, adversary))
        nn.utils.clip_grad_norm_(autoencoder.parameters(), config.gradient_clip)
        self.optimizer.step()
        self.bottleneck.learn(done.squeezed, step)
        error = (done.reconstructed.detach().float() - images).square().mean()
        logged = {"loss": done.loss, "psnr": psnr_db(error), **done.squeezed.logged}
        if adversary is not None:
            logged["discriminator"] = adversary.learn(images, done.reconstructed)
        return logged

    def _backward(
        self, images: Tensor, codes: Tensor | None, step: int, adversary: Adversary | None
    ) -> _Done:
        """Give the parameters the step's gradients."""
        config = self.config
        with autocast(images.device):
            squeezed = self.bottleneck.squeeze(self.encode, images, codes, step)
            reconstructed = self.decode(squeezed.latents)
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
        total = loss if squeezed.loss is None else loss + squeezed.loss
        if adversary is not None:
            pull = adversary.loss_for(reconstructed, loss, self.autoencoder.decoder.last_weights)
            total = total + config.adversarial_weight * pull
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        return _Done(squeezed, reconstructed, total.detach())


@torch.inference_mode()
def _measure_scale(autoencoder: ShuffleAutoencoder, data: ImageDataset, num_images: int = 10_000) -> None:
    """Set the mean and standard deviation per channel that latents are scaled by."""
    device = autoencoder.latent_mean.device
    batches = scale_to_unit(data.images[:num_images]).split(500)
    latents = torch.cat([autoencoder.encode(batch.to(device)) for batch in batches])
    autoencoder.latent_mean.copy_(latents.mean((0, 2, 3)).view_as(autoencoder.latent_mean))
    autoencoder.latent_std.copy_(latents.std((0, 2, 3)).view_as(autoencoder.latent_std))


def show_result(
    config: ReconstructionConfig, autoencoder: ShuffleAutoencoder, pictures: Pictures, path: Path
) -> None:
    """Save some reconstructions beside the run's log, and say how good all are of the test split."""
    images = pictures.test.images
    _save_reconstructions(config.folder / "reconstructions.png", autoencoder, images[:32])
    logger.info("%s: PSNR %.2f dB on the test split", path, _mean_psnr(autoencoder, images))


@torch.inference_mode()
def _reconstruct(autoencoder: ShuffleAutoencoder, images: Tensor) -> Tensor:
    """Return ``images`` (N, C, H, W) in [-1, 1] through the autoencoder, and its codebook if any."""
    latents = autoencoder.encode(images.to(autoencoder.latent_mean.device))
    if isinstance(autoencoder, Quantizing):
        latents = autoencoder.quantize(latents).latents
    return autoencoder.decode(latents).cpu()


def _mean_psnr(autoencoder: ShuffleAutoencoder, images: Tensor) -> float:
    """Return the mean over uint8 ``images`` (N, C, H, W) of each reconstruction's PSNR in dB."""
    batches = scale_to_unit(images).split(500)
    errors = [measure_squared_errors(_reconstruct(autoencoder, batch), batch) for batch in batches]
    return psnr_db(torch.cat(errors)).mean().item()


def _save_reconstructions(path: Path, autoencoder: ShuffleAutoencoder, images: Tensor) -> None:
    """Save rows of eight of ``images``, each over its row of reconstructions."""
    real = scale_to_unit(images)
    made = _reconstruct(autoencoder, real)
    rows = [row for pair in zip(real.split(8), made.split(8), strict=True) for row in pair]
    save_grid(path, torch.cat(rows), num_columns=8)
