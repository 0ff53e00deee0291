"""The size of a prior's network, and what else of its shape follows from its tokenizer and data."""

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from models.autoencoders.vq import Tokenizer
from models.networks.dit import DiTConfig
from models.networks.text_encoder import PromptEncoder
from models.options import Count, NotNegative
from training.config_file import TrainingError
from training.data.captioned import LabelNames


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class NetworkSettings:
    """The table ``[prior]`` of a training's TOML file.

    What follows from tokenizer and data may be left out; if it is given, it must agree. ``num_classes``,
    ``num_styles`` and ``num_groups`` are an older way to give ``label_sizes``.
    """

    patch_size: Count = 2
    hidden_size: Count = 256
    depth: Count = 8
    num_heads: Count = 4
    mlp_ratio: Annotated[float, Field(gt=0)] = 8 / 3
    latent_channels: Count | None = None
    grid: tuple[Count, ...] | None = None
    label_sizes: tuple[Count, ...] | None = None
    text_tokens: NotNegative | None = None
    text_channels: NotNegative | None = None
    num_classes: NotNegative | None = None
    num_styles: NotNegative | None = None
    num_groups: NotNegative | None = None


def network_config(
    settings: NetworkSettings, tokenizer: Tokenizer, label_names: LabelNames, encoder: PromptEncoder | None
) -> DiTConfig:
    """Return the shape of a prior for a tokenizer's latents, sets of labels, and prompts.

    Raises: TrainingError naming a setting that doesn't agree with them.
    """
    latent_channels, *grid = tokenizer.latent_shape
    found: dict[str, Any] = {
        "latent_channels": latent_channels,
        "grid": tuple(grid),
        "label_sizes": tuple(len(names) for names in label_names.values()),
        "text_tokens": encoder.config.max_tokens if encoder else 0,
        "text_channels": encoder.config.hidden_size if encoder else 0,
    }
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    try:
        config = DiTConfig(**{**found, **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise TrainingError(f"prior: {first['msg']}") from error
    for name, value in found.items():
        if getattr(config, name) != value:
            raise TrainingError(
                f"prior.{name}: tokenizer and data give {value}, the settings say {getattr(config, name)};"
                " leave it out"
            )
    return config
