"""VQGAN of taming-transformers, the VQ autoencoders of latent-diffusion, and IBQ, which share their names.

Esser et al. 2021 (arXiv:2012.09841), Rombach et al. 2022 (arXiv:2112.10752), Shi et al. 2024
(arXiv:2412.02692). They are Lightning's ``.ckpt``, with a YAML file that says how they were made.
"""

from collections.abc import Mapping
from functools import partial

from models.autoencoders.lookups import LookupName
from models.autoencoders.vqgan import VqganConfig
from models.importers.base import Imported, ImportFailed, Source
from models.importers.compvis import (
    FirstStage,
    as_mapping,
    check_ddconfig,
    check_said,
    class_name_of,
    first_stage,
    infer_config,
    made,
    size_of,
)
from models.importers.ldm_names import compvis_name
from models.importers.vq_parts import finish, read_image_size_px
from models.networks.ldm_autoencoder import LdmConfig

_LOOKUP_SETTING = "lookup"
_GUMBEL_NAMES = {
    "quantizer.codebook": "quantize.embed.weight",
    "quantizer.scores.weight": "quantize.proj.weight",
    "quantizer.scores.bias": "quantize.proj.bias",
}
_CODEBOOK = "quantize.embedding.weight"
_IBQ_BLOCKS = 4  # a level; the others have two


def recognises(source: Source) -> bool:
    """Whether there is a codebook beside networks with these names: alone, or inside a whole model."""
    return any(
        {f"{prefix}encoder.mid.block_1.conv1.weight", f"{prefix}{codebook}"} <= source.tensors.keys()
        for prefix in ("", "first_stage_model.")
        for codebook in (_CODEBOOK, _GUMBEL_NAMES["quantizer.codebook"])
    )


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the tokenizer.

    settings: ``image_size_px``, and ``lookup`` ("euclidean", or "dot_product" of IBQ) where no YAML says it.

    Raises: ImportFailed.
    """
    stage = first_stage(source, takes_averages=_is_of_ibq(source, settings))
    network = infer_config(stage.tensors, has_tanh=bool(stage.ddconfig.get("tanh_out")))
    check_ddconfig(network, stage.ddconfig)
    lookup = _lookup(stage, network, settings)
    codebook = _GUMBEL_NAMES["quantizer.codebook"] if lookup == "scores" else _CODEBOOK
    found = {
        "n_embed": size_of(stage.tensors, codebook, 0),
        "embed_dim": size_of(stage.tensors, codebook, 1),
    }
    check_said({name: stage.params[name] for name in found if name in stage.params}, found)
    size_px, notes = read_image_size_px(settings, stage.ddconfig.get("resolution"))
    config = made(
        VqganConfig,
        network=network,
        image_size_px=size_px,
        codebook_size=found["n_embed"],
        code_channels=found["embed_dim"],
        lookup=lookup,
    )
    names = partial(_their_name, network=network, lookup=lookup)
    return finish(config, stage.tensors, names, stage.notes + notes)


def _is_of_ibq(source: Source, settings: Mapping[str, str]) -> bool:
    """Whether it is of IBQ's authors, who evaluate with moving averages."""
    class_name = class_name_of(as_mapping(source.config.get("model")))
    return ".IBQ." in class_name or settings.get(_LOOKUP_SETTING) == "dot_product"


def _lookup(stage: FirstStage, network: LdmConfig, settings: Mapping[str, str]) -> LookupName:
    if _GUMBEL_NAMES["quantizer.scores.weight"] in stage.tensors:
        return "scores"
    if stage.params.get("l2_normalize"):
        raise ImportFailed("the configuration says l2_normalize: no published model of this format has that")
    if _LOOKUP_SETTING in settings:
        match settings[_LOOKUP_SETTING]:
            case "euclidean":
                return "euclidean"
            case "dot_product":
                return "dot_product"
            case other:
                raise ImportFailed(f"lookup must be euclidean or dot_product, got {other[:40]!r}")
    if stage.class_name:
        return "dot_product" if stage.class_name.split(".")[-1] == "IBQ" else "euclidean"
    if network.num_blocks == _IBQ_BLOCKS:
        raise ImportFailed(
            "without the YAML file beside it, nobody can tell whether its codes are the nearest or, as IBQ's,"
            " have the largest product: put the file there, or give --set lookup=euclidean or dot_product"
        )
    return "euclidean"


def _their_name(name: str, network: LdmConfig, lookup: LookupName) -> str:
    if name.startswith("quantizer."):
        return _GUMBEL_NAMES[name] if lookup == "scores" else _CODEBOOK
    part, _, rest = name.partition(".")
    match part:
        case "to_codes":
            return f"quant_conv.{rest}"
        case "from_codes":
            return f"post_quant_conv.{rest}"
        case _:
            return compvis_name(name, network)
