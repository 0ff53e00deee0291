"""A pipeline: tokenizer, prior and conditioning from one folder."""

from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import fingerprint, load_checkpoint, load_into, save_checkpoint
from models.config import (
    ConfigError,
    PipelineConfig,
    PriorConfig,
    SamplerName,
    SamplingDefaults,
    TokenizerConfig,
)
from models.flow import draw_noise
from models.prior import DiT
from models.samplers import sample
from models.tokenizer import Tokenizer, channels_last


class Pipeline:
    """Everything that turns noise and a class label into images, frozen and on one device.

    The prior computes in ``dtype``; the tokenizer in float32, so that codes are the same everywhere.
    """

    def __init__(
        self,
        config: PipelineConfig,
        tokenizer: Tokenizer,
        prior: DiT,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self.tokenizer = channels_last(tokenizer.to(device)).eval().requires_grad_(False)
        self.prior = prior.to(device, dtype).eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> "Pipeline":
        """Load ``pipeline.json``, ``tokenizer.safetensors`` and ``prior.safetensors`` from ``folder``.

        Raises: ConfigError or CheckpointError when something is missing, damaged, or does not fit.
        """
        folder = Path(folder)
        config = PipelineConfig.load(folder / "pipeline.json")
        tokenizer = load_tokenizer(folder / "tokenizer.safetensors")
        prior = load_prior(folder / "prior.safetensors")
        found = fingerprint(tokenizer.config, tokenizer.exported())
        if found != config.tokenizer_fingerprint:
            raise ConfigError(
                f"{folder}: pipeline.json tells of a tokenizer with the fingerprint"
                f" {config.tokenizer_fingerprint}, but tokenizer.safetensors has {found}"
            )
        return cls(config, tokenizer, prior, torch.device(device), dtype)

    @torch.inference_mode()
    def generate(
        self,
        class_labels: Tensor,
        seed: int,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: SamplerName | None = None,
        cache_interval: int | None = None,
    ) -> Tensor:
        """Return images (B, C, H, W) float32 in [-1, 1] of ``class_labels`` (B,), all in one batch.

        Image i starts from the noise of (seed, i). What is left out comes from the pipeline's defaults.
        """
        latents = self.sample_latents(
            class_labels,
            seed,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            cache_interval=cache_interval,
        )
        return self.tokenizer.decode_codes(self.tokenizer.quantize(latents).codes)

    def sample_latents(
        self,
        class_labels: Tensor,
        seed: int,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: SamplerName | None = None,
        cache_interval: int | None = None,
    ) -> Tensor:
        """Return latents (B, d, h, w) as ``generate`` would snap and decode them."""
        defaults = self.config.defaults
        shape = (self.config.prior.latent_channels, *self.config.prior.grid)
        noise = torch.stack([draw_noise(shape, seed, i) for i in range(len(class_labels))])
        return sample(
            self.prior,
            noise.to(self.device),
            class_labels.to(self.device),
            self.prior.null_label,
            sampler=sampler or defaults.sampler,
            num_steps=num_steps or defaults.num_steps,
            guidance_scale=defaults.guidance_scale if guidance_scale is None else guidance_scale,
            guidance_interval=defaults.guidance_interval,
            cache_interval=cache_interval or 1,
        )


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer from one safetensors file that knows its own configuration."""
    tensors, config = load_checkpoint(path, TokenizerConfig)
    tokenizer = Tokenizer(config)
    load_into(tokenizer, {**tokenizer.training_only_tensors(), **tensors}, path)
    return tokenizer.eval().requires_grad_(False)


def load_prior(path: Path) -> DiT:
    """Load a prior from one safetensors file that knows its own configuration."""
    tensors, config = load_checkpoint(path, PriorConfig)
    prior = DiT(config)
    load_into(prior, tensors, path)
    return prior


def save_pipeline(
    folder: Path,
    name: str,
    class_names: tuple[str, ...],
    tokenizer: Tokenizer,
    prior: DiT,
    defaults: SamplingDefaults,
) -> PipelineConfig:
    """Write a pipeline's folder; the prior's tensors in bfloat16, as it is served. Return its config."""
    tensors = tokenizer.exported()
    config = PipelineConfig(
        name=name,
        class_names=class_names,
        tokenizer=tokenizer.config,
        tokenizer_fingerprint=fingerprint(tokenizer.config, tensors),
        prior=prior.config,
        defaults=defaults,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "tokenizer.safetensors", tensors, tokenizer.config)
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in prior.state_dict().items()}
    save_checkpoint(folder / "prior.safetensors", halves, prior.config)
    config.save(folder / "pipeline.json")
    return config
