"""``AutoencoderKL`` of diffusers: a folder with ``config.json`` and weights, alone or in a pipeline."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.autoencoders.kl import KlConfig
from models.importers.base import Imported, ImportFailed, Source
from models.importers.compvis import made
from models.importers.diffusers_vq import current_name, read_network
from models.importers.kl_parts import finish
from models.importers.ldm_names import diffusers_name
from models.importers.vq_parts import read_image_size_px
from models.networks.ldm_autoencoder import LdmConfig

_UNSET_SIZE_PX = 32  # sample_size's default, which some folders keep, whatever their pictures
_NAMES = {"to_moments": "quant_conv", "from_latents": "post_quant_conv"}


def recognises(source: Source) -> bool:
    """Whether the configuration names the class."""
    return source.config.get("_class_name") == "AutoencoderKL"


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the autoencoder.

    settings: ``image_size_px``; where it is left out, the configuration's ``sample_size``.

    Raises: ImportFailed.
    """
    said = source.config
    channels = said.get("latent_channels", 4)
    network = read_network(
        {**said, "latent_channels": channels}, image_channels=said.get("in_channels", 3), has_moments=True
    )
    size = said.get("sample_size", _UNSET_SIZE_PX)
    size_px, notes = read_image_size_px(settings, None if size == _UNSET_SIZE_PX else size)
    config = made(
        KlConfig,
        network=network,
        image_size_px=size_px,
        latent_channels=channels,
        projects_moments=said.get("use_quant_conv", True),
        projects_latents=said.get("use_post_quant_conv", True),
    )
    tensors = {current_name(name): tensor for name, tensor in source.tensors.items()}
    mean, std = read_figures(said, channels)
    return finish(config, tensors, partial(kl_name, network=network), mean, std, notes)


def read_figures(
    said: Mapping[str, Any], channels: int, default_scale: float = 0.18215
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (d, 1, 1) of the latents, from a configuration's factors.

    ``latents_mean`` and ``latents_std``, where they are there, are of each channel.

    Raises: ImportFailed.
    """
    scale = _number(said, "scaling_factor", default_scale)
    if scale <= 0:
        raise ImportFailed(f"scaling_factor must be positive, got {scale}")
    shift = _number(said, "shift_factor", 0.0)
    means = _numbers(said, "latents_mean", shift, channels)
    stds = _numbers(said, "latents_std", 1.0, channels)
    if not bool((stds > 0).all()):
        raise ImportFailed(f"latents_std must be positive, got {said['latents_std']}"[:200])
    return means.view(-1, 1, 1), stds.view(-1, 1, 1) / scale


def kl_name(name: str, network: LdmConfig) -> str:
    """Return the name that an ``AutoencoderKL`` has for our ``name``."""
    part, _, rest = name.partition(".")
    return f"{_NAMES[part]}.{rest}" if part in _NAMES else diffusers_name(name, network)


def _number(said: Mapping[str, Any], name: str, default: float) -> float:
    value = said.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise ImportFailed(f"{name} must be a number, got {str(value)[:40]!r}")
    return float(value)


def _numbers(said: Mapping[str, Any], name: str, default: float, channels: int) -> Tensor:
    values = said.get(name)
    if values is None:
        return torch.full((channels,), default)
    if not isinstance(values, list | tuple) or len(values) != channels:
        raise ImportFailed(f"{name} must be a list of {channels} numbers, got {str(values)[:80]}")
    return torch.tensor([_number({name: value}, name, default) for value in values])
