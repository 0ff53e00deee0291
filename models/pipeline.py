"""A pipeline: tokenizer, prior and conditioning from one folder."""

from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import fingerprint, load_checkpoint, load_into, save_checkpoint
from models.conditioning import Conditions
from models.config import ConfigError, PipelineConfig, PriorConfig, Sampling, TokenizerConfig
from models.flow import draw_noise
from models.prior import DiT
from models.samplers import sample
from models.text_encoder import PromptEncoder
from models.tokenizer import Tokenizer, channels_last


class Pipeline:
    """Everything that turns noise and conditions into images, frozen and on one device.

    The prior computes in ``dtype``; the tokenizer in float32, so that codes are the same everywhere.
    """

    def __init__(
        self,
        config: PipelineConfig,
        tokenizer: Tokenizer,
        prior: DiT,
        device: torch.device,
        dtype: torch.dtype,
        prompt_encoder: PromptEncoder | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self.tokenizer = channels_last(tokenizer.to(device)).eval().requires_grad_(False)
        self.prior = prior.to(device, dtype).eval().requires_grad_(False)
        self.prompt_encoder = prompt_encoder

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> "Pipeline":
        """Load ``pipeline.json`` and the tensors from ``folder``, and what it shares from the one beside it.

        Raises: ConfigError or CheckpointError when something is missing, damaged, or does not fit.
        """
        folder = Path(folder)
        config = PipelineConfig.load(folder / "pipeline.json")
        shared = folder.parent / config.shares_with if config.shares_with else folder
        tokenizer = load_tokenizer(shared / "tokenizer.safetensors")
        prior = load_prior(folder / "prior.safetensors")
        found = fingerprint(tokenizer.config, tokenizer.exported())
        if found != config.tokenizer_fingerprint:
            raise ConfigError(
                f"{folder}: pipeline.json tells of a tokenizer with the fingerprint"
                f" {config.tokenizer_fingerprint}, but {shared}/tokenizer.safetensors has {found}"
            )
        prompt_encoder = None
        if config.prior.takes_prompt:
            prompt_encoder = PromptEncoder.load(shared, device)
            _check_prompts_fit(prompt_encoder, config.prior, shared)
        return cls(config, tokenizer, prior, torch.device(device), dtype, prompt_encoder)

    def conditions(
        self,
        *,
        class_label: int | None = None,
        style: int | None = None,
        group: int | None = None,
        prompt: str | None = None,
    ) -> Conditions:
        """Return one row of conditions; None leaves one out. Labels count from 0.

        What the prior does not know is left out, too: ask ``config`` before.
        """
        config = self.config.prior
        null = self.prior.null_conditions()
        asked = ((class_label, config.num_classes), (style, config.num_styles), (group, config.num_groups))
        labels = [size if label is None else label for label, size in asked if size]
        text = null.text
        if self.prompt_encoder is not None and prompt is not None:
            text = self.prompt_encoder.encode(prompt).states[None].to(self.device)
        return Conditions(torch.tensor([labels], dtype=torch.long, device=self.device), text)

    @torch.inference_mode()
    def generate(
        self,
        conditions: Conditions,
        seed: int,
        sampling: Sampling | None = None,
        *,
        cache_interval: int = 1,
    ) -> Tensor:
        """Return images (B, C, H, W) float32 in [-1, 1] of ``conditions`` (B rows), all in one batch.

        Image i starts from the noise of (seed, i). Without ``sampling``, the pipeline's defaults are taken.
        """
        shape = (self.config.prior.latent_channels, *self.config.prior.grid)
        noise = torch.stack([draw_noise(shape, seed, i) for i in range(len(conditions))])
        latents = sample(
            self.prior,
            noise.to(self.device),
            conditions.to(self.device),
            self.prior.null_conditions(len(conditions)),
            sampling or self.config.defaults,
            cache_interval=cache_interval,
        )
        return self.tokenizer.decode_codes(self.tokenizer.quantize(latents).codes)


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
    config: PipelineConfig,
    tokenizer: Tokenizer,
    prior: DiT,
    prompt_encoder: PromptEncoder | None = None,
) -> None:
    """Write a pipeline's folder; the prior's tensors in bfloat16, as it is served.

    What it shares with another is not written again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not config.shares_with:
        save_checkpoint(folder / "tokenizer.safetensors", tokenizer.exported(), tokenizer.config)
        if prompt_encoder is not None:
            prompt_encoder.save(folder)
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in prior.state_dict().items()}
    save_checkpoint(folder / "prior.safetensors", halves, prior.config)
    config.save(folder / "pipeline.json")


def _check_prompts_fit(prompt_encoder: PromptEncoder, prior: PriorConfig, folder: Path) -> None:
    config = prompt_encoder.config
    given = (config.max_tokens, config.hidden_size)
    wanted = (prior.text_tokens, prior.text_channels)
    if given != wanted:
        raise ConfigError(
            f"{folder}: the prior wants (tokens, channels) {wanted}, the text encoder gives {given}"
        )
