"""KL autoencoders of latent-diffusion: f4, f8, f16 and f32, alone or inside a whole diffusion model.

Rombach et al. 2022 (arXiv:2112.10752). They are Lightning's ``.ckpt``, with a YAML file that says how they
were made.
"""

from collections.abc import Mapping
from functools import partial

import torch

from models.autoencoders.kl import KlConfig
from models.importers.base import Imported, ImportFailed, Source
from models.importers.compvis import (
    as_mapping,
    check_ddconfig,
    check_said,
    first_stage,
    infer_config,
    made,
    size_of,
)
from models.importers.kl_parts import finish
from models.importers.ldm_names import compvis_name
from models.importers.vq_parts import read_image_size_px
from models.networks.ldm_autoencoder import LdmConfig

_SCALE_SETTING = "scaling_factor"
_NAMES = {"to_moments": "quant_conv", "from_latents": "post_quant_conv"}
_SD_SCALE = 0.18215


def recognises(source: Source) -> bool:
    """Whether there are moments between networks with these names: alone, or inside a whole model."""
    return any(
        {f"{prefix}encoder.mid.block_1.conv1.weight", f"{prefix}quant_conv.weight"} <= source.tensors.keys()
        and not any(name.startswith(f"{prefix}quantize.") for name in source.tensors)
        for prefix in ("", "first_stage_model.")
    )


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the autoencoder.

    settings: ``image_size_px``; ``scaling_factor``, by which a diffusion model multiplies latents: where it
    is left out, that of the whole model that it is in, or 1.

    Raises: ImportFailed.
    """
    stage = first_stage(source)
    network = infer_config(stage.tensors)
    if not network.has_moments:
        raise ImportFailed("its encoder has no mean and variance: a KL autoencoder has double_z: true")
    check_ddconfig(network, stage.ddconfig)
    channels = size_of(stage.tensors, "post_quant_conv.weight", 1)
    said = {name: stage.params[name] for name in ("embed_dim",) if name in stage.params}
    check_said(said, {"embed_dim": channels})
    size_px, notes = read_image_size_px(settings, stage.ddconfig.get("resolution"))
    config = made(KlConfig, network=network, image_size_px=size_px, latent_channels=channels)
    scale, scale_notes = _scale(source, settings)
    std = torch.full((channels, 1, 1), 1 / scale)
    return finish(
        config,
        stage.tensors,
        partial(compvis_kl_name, network=network),
        torch.zeros_like(std),
        std,
        stage.notes + notes + scale_notes,
    )


def compvis_kl_name(name: str, network: LdmConfig) -> str:
    """Return the name that latent-diffusion has for our ``name``."""
    part, _, rest = name.partition(".")
    return f"{_NAMES[part]}.{rest}" if part in _NAMES else compvis_name(name, network)


def _scale(source: Source, settings: Mapping[str, str]) -> tuple[float, tuple[str, ...]]:
    """Return by what latents are multiplied, and a note where that was a guess."""
    params = as_mapping(as_mapping(source.config.get("model")).get("params"))
    given = settings.get(_SCALE_SETTING, params.get("scale_factor"))
    if given is not None:
        try:
            scale = float(given)
        except (TypeError, ValueError):
            scale = 0.0
        if not 0 < scale < float("inf"):
            raise ImportFailed(f"{_SCALE_SETTING} must be a positive number, got {str(given)[:40]!r}")
        return scale, ()
    if "scale_factor" in source.tensors:  # which a training measured, with scale_by_std
        return float(source.tensors["scale_factor"]), ()
    return 1.0, (
        "Nothing says by what a diffusion model multiplies its latents, so they are as they come from the"
        f" encoder; --set {_SCALE_SETTING}={_SD_SCALE} is Stable Diffusion's.",
    )
