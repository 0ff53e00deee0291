"""The size of a prior's network, and what else of its shape follows from its tokenizer and data."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from models.autoencoders.shuffle import ShuffleAutoencoder
from models.autoencoders.vq import Tokenizer
from models.networks.code_transformer import CodeTransformerConfig
from models.networks.dit import DiTConfig
from models.networks.text_encoder import PromptEncoder
from models.options import Count, NotNegative
from training.config_file import TrainingError
from training.data.captioned import LabelNames

Shape = TypeVar("Shape", DiTConfig, CodeTransformerConfig)

_PATCH_SIZE = 2
_OLDER_LABEL_SIZES = ("num_classes", "num_styles", "num_groups")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class NetworkSettings:
    """The table ``[prior]`` of a training's TOML file.

    What follows from tokenizer and data may be left out; if it is given, it must agree. A ``patch_size`` that
    is left out is 2, or 1 where codes are drawn one after another. ``num_classes``,
    ``num_styles`` and ``num_groups`` are an older way to give ``label_sizes``.
    """

    patch_size: Count | None = None
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
    settings: NetworkSettings,
    autoencoder: ShuffleAutoencoder,
    label_names: LabelNames,
    encoder: PromptEncoder | None,
    *,
    takes_source: bool = False,
) -> DiTConfig:
    """Return the shape of a prior for an autoencoder's latents, sets of labels, prompts and sources.

    Raises: TrainingError naming a setting that doesn't agree with them.
    """
    found = _found(autoencoder, label_names, encoder)
    found["source_channels"] = found["latent_channels"] if takes_source else 0
    return _agreeing(DiTConfig, settings, found, {"patch_size": _PATCH_SIZE})


def code_network_config(
    settings: NetworkSettings,
    tokenizer: Tokenizer,
    label_names: LabelNames,
    encoder: PromptEncoder | None,
    *,
    is_causal: bool,
) -> CodeTransformerConfig:
    """Return the shape of a prior for a tokenizer's codes; see ``network_config``."""
    found = _found(tokenizer, label_names, encoder)
    found |= {"codebook_size": tokenizer.config.codebook_size, "is_causal": is_causal}
    return _agreeing(CodeTransformerConfig, settings, found, {"patch_size": 1 if is_causal else _PATCH_SIZE})


def _found(
    autoencoder: ShuffleAutoencoder, label_names: LabelNames, encoder: PromptEncoder | None
) -> dict[str, Any]:
    latent_channels, *grid = autoencoder.latent_shape
    return {
        "latent_channels": latent_channels,
        "grid": tuple(grid),
        "label_sizes": tuple(len(names) for names in label_names.values()),
        "text_tokens": encoder.config.max_tokens if encoder else 0,
        "text_channels": encoder.config.hidden_size if encoder else 0,
    }


def _agreeing(
    kind: Callable[..., Shape], settings: NetworkSettings, found: dict[str, Any], default: dict[str, Any]
) -> Shape:
    """Return a shape of what is found and what settings give, which must agree."""
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    older = {name: given.pop(name) for name in _OLDER_LABEL_SIZES if name in given}
    if older and "label_sizes" not in given:
        given["label_sizes"] = tuple(size for size in older.values() if size)
    try:
        config = kind(**{**default, **found, **given})
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
