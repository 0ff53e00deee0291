"""The KL autoencoders of latent-diffusion: alone, or inside a whole diffusion model's checkpoint.

Rombach et al. 2022 (arXiv:2112.10752). They are Lightning's ``.ckpt``, with a YAML file that says how they
were made.
"""

from collections.abc import Mapping
from functools import partial

from models.autoencoders.continuous import ContinuousConfig
from models.importers.autoencoder_parts import (
    SIZE_SETTING,
    check_settings,
    finish_continuous,
    read_image_size_px,
)
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
from models.importers.ldm_names import compvis_name
from models.networks.ldm_autoencoder import LdmConfig

_SCALE_SETTING = "scaling_factor"
_PROJECTIONS = {"to_latents": "quant_conv", "from_latents": "post_quant_conv"}


def recognises(source: Source) -> bool:
    """Whether there are networks with these names, with projections and without a codebook."""
    return any(
        {f"{prefix}encoder.mid.block_1.conv1.weight", f"{prefix}quant_conv.weight"} <= source.tensors.keys()
        and not any(name.startswith(f"{prefix}quantize.") for name in source.tensors)
        for prefix in ("", "first_stage_model.")
    )


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the autoencoder.

    settings: ``image_size_px``; ``scaling_factor`` of the latents, where the configuration of a whole model
    doesn't say it: 1 without either.

    Raises: ImportFailed.
    """
    check_settings(settings, (SIZE_SETTING, _SCALE_SETTING))
    stage = first_stage(source)
    network = infer_config(stage.tensors, has_tanh=bool(stage.ddconfig.get("tanh_out")))
    check_ddconfig(network, stage.ddconfig)
    if not network.has_moments:
        raise ImportFailed("the encoder makes no mean and variance, and there is no codebook either")
    latent_channels = size_of(stage.tensors, "post_quant_conv.weight", 1)
    found = {"embed_dim": latent_channels}
    check_said({name: stage.params[name] for name in found if name in stage.params}, found)
    size_px, notes = read_image_size_px(settings, stage.ddconfig.get("resolution"))
    scale, scale_notes = _scaling_factor(source, settings)
    config = made(
        ContinuousConfig,
        network=network,
        image_size_px=size_px,
        latent_channels=latent_channels,
        has_encoder_projection=True,
        has_decoder_projection=True,
    )
    return finish_continuous(
        config,
        stage.tensors,
        partial(_their_name, network=network),
        stage.notes + notes + scale_notes,
        scaling_factor=scale,
    )


def _scaling_factor(source: Source, settings: Mapping[str, str]) -> tuple[float, tuple[str, ...]]:
    if _SCALE_SETTING in settings:
        try:
            return float(settings[_SCALE_SETTING]), ()
        except ValueError as error:
            raise ImportFailed(
                f"{_SCALE_SETTING} must be a number, got {settings[_SCALE_SETTING][:40]!r}"
            ) from error
    said = as_mapping(as_mapping(source.config.get("model")).get("params")).get("scale_factor")
    if isinstance(said, int | float):
        return float(said), ()
    return 1.0, (
        f"Its latents are not scaled; import with --set {_SCALE_SETTING}=… (0.18215 for Stable Diffusion's).",
    )


def _their_name(name: str, network: LdmConfig) -> str:
    part, _, rest = name.partition(".")
    return f"{_PROJECTIONS[part]}.{rest}" if part in _PROJECTIONS else compvis_name(name, network)
