"""``AutoencoderKL`` of diffusers: a folder with ``config.json`` and weights, or a pipeline's part "vae"."""

from collections.abc import Mapping
from functools import partial

from models.autoencoders.continuous import ContinuousConfig
from models.importers.autoencoder_parts import check_settings, finish_continuous, read_image_size_px
from models.importers.base import Imported, Source
from models.importers.compvis import made
from models.importers.diffusers_vq import current_name, read_network
from models.importers.ldm_names import diffusers_name
from models.networks.ldm_autoencoder import LdmConfig

_CLASS = "AutoencoderKL"
_PART = "vae"
_UNSET_SIZE_PX = 32  # sample_size's default
_USUAL_SCALE = 0.18215  # scaling_factor's, which files of the first versions leave out
PROJECTIONS = {"to_latents": "quant_conv", "from_latents": "post_quant_conv"}


def recognises(source: Source) -> bool:
    """Whether the configuration names the class."""
    return _find(source) is not None


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the autoencoder.

    settings: ``image_size_px``; where it is left out, the configuration's ``sample_size``.

    Raises: ImportFailed.
    """
    check_settings(settings)
    found = _find(source)
    assert found is not None, "a source that is recognised"
    said = found.config
    network = read_network(
        {"latent_channels": 4, **said}, image_channels=said.get("in_channels", 3), has_moments=True
    )
    size = said.get("sample_size", _UNSET_SIZE_PX)
    size_px, notes = read_image_size_px(settings, None if size == _UNSET_SIZE_PX else size)
    config = made(
        ContinuousConfig,
        network=network,
        image_size_px=size_px,
        has_encoder_projection=said.get("use_quant_conv", True),
        has_decoder_projection=said.get("use_post_quant_conv", True),
    )
    return finish_continuous(
        config,
        {current_name(name): tensor for name, tensor in found.tensors.items()},
        partial(their_name, network=network),
        notes,
        scaling_factor=said.get("scaling_factor", _USUAL_SCALE),
        shift_factor=said.get("shift_factor"),
    )


def their_name(name: str, network: LdmConfig) -> str:
    """Return the name that diffusers has for our ``name``."""
    part, _, rest = name.partition(".")
    return f"{PROJECTIONS[part]}.{rest}" if part in PROJECTIONS else diffusers_name(name, network)


def _find(source: Source) -> Source | None:
    """Return the folder of the class, which may be a part of a pipeline."""
    for found in (source, source.parts.get(_PART)):
        if found is not None and found.config.get("_class_name") == _CLASS:
            return found
    return None
