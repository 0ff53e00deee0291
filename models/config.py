"""Configurations of tokenizers, priors and pipelines, without torch, so that the front end can read them."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

SamplerName = Literal["euler", "heun", "dpmpp_2m"]
QuantizerName = Literal["vector", "fsq"]
PIPELINE_FORMAT = 1
MAX_STEPS = 200

_FOLDER_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
_CHECKED = ConfigDict(extra="forbid")
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
UnitTime = Annotated[float, Field(ge=0, le=1)]


class ConfigError(ValueError):
    """A configuration that can't be used; the message names the field, the limit and the value."""


@dataclass(frozen=True, config=_CHECKED)
class TokenizerConfig:
    """The shape of a tokenizer: image ⇄ latents ⇄ codes.

    ``downsample_factor`` is the side of the pixel square behind one code. The first stage, at half of the
    resolution, has ``hidden_channels``, and each further halving ``channel_growth`` times more.
    ``fsq_levels`` belongs to ``quantizer="fsq"``: they multiply to ``codebook_size`` and number
    ``latent_channels``.
    """

    image_channels: Literal[1, 3] = 1
    image_size_px: Annotated[int, Field(ge=4, le=4096)] = 28
    downsample_factor: Literal[2, 4, 8, 16, 32] = 2
    hidden_channels: Count = 64
    channel_growth: Annotated[int, Field(ge=1, le=8)] = 1
    num_blocks: Annotated[int, Field(ge=0)] = 2
    latent_channels: Count = 4
    codebook_size: Annotated[int, Field(ge=2, le=2**20)] = 1024
    quantizer: QuantizerName = "vector"
    fsq_levels: tuple[Annotated[int, Field(ge=2)], ...] = ()

    def __post_init__(self) -> None:
        if self.image_size_px % self.downsample_factor:
            raise ConfigError(
                f"image_size_px must be a multiple of downsample_factor {self.downsample_factor},"
                f" got {self.image_size_px}"
            )
        if self.quantizer == "vector" and self.fsq_levels:
            raise ConfigError("fsq_levels is only for quantizer 'fsq'")
        if self.quantizer == "fsq" and (
            math.prod(self.fsq_levels) != self.codebook_size or len(self.fsq_levels) != self.latent_channels
        ):
            raise ConfigError(
                f"fsq_levels must multiply to codebook_size {self.codebook_size} and number"
                f" latent_channels {self.latent_channels}, got {self.fsq_levels}"
            )

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage, from half of the resolution to that of the codes."""
        num_halvings = self.downsample_factor.bit_length() - 1
        return tuple(self.hidden_channels * self.channel_growth**stage for stage in range(num_halvings))

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of codes."""
        side = self.image_size_px // self.downsample_factor
        return side, side


@dataclass(frozen=True, config=_CHECKED)
class PriorConfig:
    """The shape of a prior: a diffusion transformer over a grid of 1, 2 or 3 axes.

    ``num_classes``, ``num_styles`` and ``num_groups`` are of the labels it can be asked for; 0 where it knows
    none. ``text_tokens`` of a prompt, each with ``text_channels``, can be attended to; both are 0 where it
    takes no prompt.
    """

    latent_channels: Count = 4
    grid: Annotated[tuple[Count, ...], Field(min_length=1, max_length=3)] = (14, 14)
    patch_size: Count = 2
    hidden_size: Count = 256
    depth: Count = 8
    num_heads: Count = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 8 / 3
    num_classes: NotNegative = 10
    num_styles: NotNegative = 0
    num_groups: NotNegative = 0
    text_tokens: NotNegative = 0
    text_channels: NotNegative = 0

    def __post_init__(self) -> None:
        if any(side % self.patch_size for side in self.grid):
            raise ConfigError(
                f"every side of grid must be a multiple of patch_size {self.patch_size}, got {self.grid}"
            )
        if self.hidden_size % self.num_heads or self.head_size % 2 or self.head_size < 2 * len(self.grid):
            raise ConfigError(
                f"hidden_size {self.hidden_size} must give each of num_heads {self.num_heads} heads an"
                f" even number of channels, at least {2 * len(self.grid)} for {len(self.grid)} axes"
            )
        if bool(self.text_tokens) != bool(self.text_channels):
            raise ConfigError(
                "text_tokens and text_channels must both be 0 or neither, got"
                f" {self.text_tokens} and {self.text_channels}"
            )

    @property
    def label_sizes(self) -> tuple[int, ...]:
        """How many labels each set has, of those that there are: classes, styles, groups."""
        return tuple(size for size in (self.num_classes, self.num_styles, self.num_groups) if size)

    @property
    def takes_prompt(self) -> bool:
        return self.text_tokens > 0

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def num_tokens(self) -> int:
        return math.prod(side // self.patch_size for side in self.grid)


@dataclass(frozen=True, config=_CHECKED)
class Sampling:
    """How latents are sampled; a pipeline's are what a request gets that names none of these.

    Guidance is applied where the time ``t`` (0 is noise, 1 is data) lies in ``guidance_interval``
    (Kynkäänniemi et al. 2024, arXiv:2404.07724). With a ``time_easing`` of 0 all steps of time are equal;
    up to 1, those near the noise and near the data get shorter (``samplers.time_grid``).
    """

    num_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 16
    sampler: SamplerName = "dpmpp_2m"
    guidance_scale: Annotated[float, Field(ge=0, le=20)] = 1.0
    guidance_interval: tuple[UnitTime, UnitTime] = (0.0, 1.0)
    time_easing: UnitTime = 0.0

    def __post_init__(self) -> None:
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ConfigError(f"guidance_interval must be (low, high), got {self.guidance_interval}")


@dataclass(frozen=True, config=_CHECKED)
class PipelineConfig:
    """Everything about a pipeline but its tensors; kept as ``pipeline.json`` beside them.

    ``tokenizer_fingerprint`` says which tokenizer made a grid of codes: the first 16 hexadecimal digits
    of the SHA-256 of its configuration and tensors. ``example_prompt`` is shown to people who ask what a
    pipeline takes. ``shares_with`` names the folder beside it that has its tokenizer and text encoder, where
    it has none of its own.
    """

    name: Annotated[str, Field(pattern=_FOLDER_NAME)]
    class_names: tuple[str, ...]
    tokenizer: TokenizerConfig
    tokenizer_fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    prior: PriorConfig
    defaults: Sampling
    style_names: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()
    example_prompt: str | None = None
    shares_with: Annotated[str, Field(pattern=_FOLDER_NAME)] | None = None

    def __post_init__(self) -> None:
        for names, wanted in (
            ("class_names", self.prior.num_classes),
            ("style_names", self.prior.num_styles),
            ("group_names", self.prior.num_groups),
        ):
            if len(getattr(self, names)) != wanted:
                raise ConfigError(f"{names} must number {wanted}, got {len(getattr(self, names))}")
        latents = (self.tokenizer.latent_channels, *self.tokenizer.grid)
        if (self.prior.latent_channels, *self.prior.grid) != latents:
            raise ConfigError(
                f"the prior's latents {(self.prior.latent_channels, *self.prior.grid)} are not the"
                f" tokenizer's {latents}"
            )

    def save(self, path: Path) -> None:
        """Write ``pipeline.json``."""
        path.write_text(json.dumps({"format": PIPELINE_FORMAT, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "PipelineConfig":
        """Read ``pipeline.json``.

        Raises: ConfigError when the file is missing, is no JSON, or has missing, unknown or bad fields.
        """
        try:
            raw = json.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON: {error}") from error
        if not isinstance(raw, dict) or raw.pop("format", None) != PIPELINE_FORMAT:
            raise ConfigError(f"{path}: format must be {PIPELINE_FORMAT}; was it written by another version?")
        try:
            return TypeAdapter(cls).validate_python(raw)
        except ValidationError as error:
            raise ConfigError(f"{path}: {error}") from error
