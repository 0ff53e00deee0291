"""``VQModel`` of diffusers: a folder with ``config.json`` and weights, alone or as a part of a pipeline."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from models.autoencoders.vqgan import VqganConfig
from models.importers.amused import image_size_px
from models.importers.amused import recognises as is_amused
from models.importers.base import Imported, ImportFailed, Source
from models.importers.compvis import made
from models.importers.ldm_names import diffusers_name
from models.importers.vq_parts import finish, read_image_size_px
from models.networks.ldm_autoencoder import LdmConfig

_UNSET_SIZE_PX = 32  # sample_size's default, which most folders keep, whatever their pictures
_NAMES = {
    "quantizer.codebook": "quantize.embedding.weight",
    "to_codes.weight": "quant_conv.weight",
    "to_codes.bias": "quant_conv.bias",
    "from_codes.weight": "post_quant_conv.weight",
    "from_codes.bias": "post_quant_conv.bias",
}
_FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def recognises(source: Source) -> bool:
    """Whether the configuration names the class, of the folder or in aMUSEd's pipeline."""
    return _find(source).config.get("_class_name") == "VQModel"


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the tokenizer.

    settings: ``image_size_px``; where it is left out, the configuration's ``sample_size``, or the size that
    aMUSEd's prior draws. Its pipeline has pictures in [0, 1], which no configuration tells.

    Raises: ImportFailed.
    """
    found = _find(source)
    is_of_amused = found is not source
    said = found.config
    network = read_network(said, image_channels=said.get("in_channels", 3))
    size = said.get("sample_size", _UNSET_SIZE_PX)
    size = image_size_px(source) if is_of_amused else None if size == _UNSET_SIZE_PX else size
    size_px, notes = read_image_size_px(settings, size)
    channels = said.get("vq_embed_dim")
    config = made(
        VqganConfig,
        network=network,
        image_size_px=size_px,
        codebook_size=said.get("num_vq_embeddings", 256),
        code_channels=network.latent_channels if channels is None else channels,
        is_from_zero=is_of_amused,
    )
    tensors = {current_name(name): tensor for name, tensor in found.tensors.items()}
    imported = finish(config, tensors, partial(vqmodel_name, network=network), notes)
    return replace(imported, parts=("vqvae",) if is_of_amused else ())


def _find(source: Source) -> Source:
    """Return the folder of aMUSEd's tokenizer, where it is a pipeline of aMUSEd's, or the source as it is."""
    return source.parts.get("vqvae", source) if is_amused(source) else source


def read_network(said: Mapping[str, Any], **more: Any) -> LdmConfig:
    """Return the shape of the two networks of an autoencoder of diffusers, from its configuration.

    more: fields of the house's own configuration.

    Raises: ImportFailed.
    """
    for name, known in (("act_fn", "silu"), ("norm_type", "group")):
        if said.get(name, known) != known:
            raise ImportFailed(f"{name} must be {known!r}, got {str(said[name])[:40]!r}")
    if said.get("out_channels", 3) != said.get("in_channels", 3):
        raise ImportFailed(
            f"in_channels and out_channels must be the same, got {said.get('in_channels', 3)} and"
            f" {said.get('out_channels', 3)}"
        )
    down = _attended(said, "down_block_types", "DownEncoderBlock2D")
    up = _attended(said, "up_block_types", "UpDecoderBlock2D")
    widths = said.get("block_out_channels", (64,))
    if down != up[::-1] or not isinstance(widths, list | tuple) or len(widths) != len(down):
        raise ImportFailed(
            "down_block_types and up_block_types must have attention at the same levels, as many as"
            f" block_out_channels; got {list(said.get('down_block_types', ()))},"
            f" {list(said.get('up_block_types', ()))} and {widths}"
        )
    config: LdmConfig = made(
        LdmConfig,
        latent_channels=said.get("latent_channels", 3),
        level_channels=tuple(widths),
        num_blocks=said.get("layers_per_block", 1),
        attention_levels=tuple(level for level, has_attention in enumerate(down) if has_attention),
        has_middle_attention=said.get("mid_block_add_attention", True),
        num_groups=said.get("norm_num_groups", 32),
        **more,
    )
    return config


def current_name(name: str) -> str:
    """Return today's name of a tensor in a file of diffusers before 0.16, where attention's were others."""
    former = re.search(r"\.attentions\.\d+\.(query|key|value|proj_attn)\.", name)
    if former is None:
        return name
    return f"{name[: former.start(1)]}{_FORMER_NAMES[former[1]]}{name[former.end(1) :]}"


def _attended(said: Mapping[str, Any], name: str, plain: str) -> list[bool]:
    """Return for each level whether it has attention.

    Raises: ImportFailed naming a kind of block that isn't known.
    """
    kinds = {plain: False, f"Attn{plain}": True}
    given = said.get(name, (plain,))
    if not isinstance(given, list | tuple) or any(kind not in kinds for kind in map(str, given)):
        raise ImportFailed(f"{name} must be a list of {' and '.join(kinds)}, got {str(given)[:120]}")
    return [kinds[kind] for kind in given]


def vqmodel_name(name: str, network: LdmConfig) -> str:
    """Return the name that a ``VQModel`` has for our ``name``."""
    return _NAMES.get(name) or diffusers_name(name, network)
