"""The tokenizers of Open-MAGVIT2 and of SimVQ, whose networks differ in the decoder's norms alone.

Luo et al. 2024 (arXiv:2409.04410): codes are the signs of the latents, so there is no codebook in the file.
Zhu et al. 2024 (arXiv:2411.02038): the codebook is a linear layer's outputs for fixed entries; it is computed
once, here.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from models.autoencoders.vqgan import VqganConfig
from models.importers.base import Imported, ImportFailed, Source
from models.importers.compvis import FirstStage, as_mapping, check_said, first_stage, made, size_of
from models.importers.keys import without
from models.importers.magvit_names import CODEBOOK, has_names_of, infer_config, their_name
from models.importers.vq_parts import finish, read_image_size_px
from models.networks.magvit_autoencoder import MagvitConfig, Style

_PROJECTION = "quantize.embedding_proj."


def recognises(source: Source) -> bool:
    """Whether there are networks with these names, and what their codes need."""
    is_simvq = f"{_PROJECTION}weight" in source.tensors and has_names_of(source.tensors, "simvq")
    return is_simvq or has_names_of(source.tensors, "open_magvit2")


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the tokenizer.

    settings: ``image_size_px``; where it is left out, the size of the pictures of its training.

    Raises: ImportFailed.
    """
    stage = first_stage(source, takes_averages=True)
    style: Style = "simvq" if has_names_of(stage.tensors, "simvq") else "open_magvit2"
    network = infer_config(stage.tensors, style)
    _check_ddconfig(network, stage)
    size_px, notes = read_image_size_px(settings, _training_size_px(source.config))
    tensors = stage.tensors
    if style == "simvq":
        tensors = _projected(tensors)
        channels = size_of(tensors, CODEBOOK, 1)
        codes: dict[str, Any] = {"codebook_size": size_of(tensors, CODEBOOK, 0), "code_channels": channels}
        said = as_mapping(as_mapping(stage.params.get("quantconfig")).get("params"))
        found = {"n_e": codes["codebook_size"], "e_dim": channels}
    else:
        channels = network.latent_channels
        codes = {"codebook_size": 2**channels, "code_channels": channels, "lookup": "signs"}
        said, found = stage.params, {"n_embed": 2**channels, "embed_dim": channels}
    check_said({name: said[name] for name in found if name in said}, found)
    config = made(VqganConfig, network=network, image_size_px=size_px, has_projections=False, **codes)
    return finish(config, tensors, partial(their_name, config=network), stage.notes + notes)


def _check_ddconfig(config: MagvitConfig, stage: FirstStage) -> None:
    """Compare what a configuration says of the networks with what the tensors are.

    Raises: ImportFailed.
    """
    found: dict[str, Any] = {
        "in_channels": config.image_channels,
        "z_channels": config.latent_channels,
        "ch": config.stem_channels,
        "ch_mult": [channels // config.stem_channels for channels in config.level_channels],
        "num_res_blocks": config.num_blocks,
    }
    check_said({name: stage.ddconfig[name] for name in found if name in stage.ddconfig}, found, "ddconfig.")


def _training_size_px(config: Mapping[str, Any]) -> object:
    """Return the side of the pictures it was trained on; ``ddconfig.resolution`` says 128 also of 256."""
    data = as_mapping(as_mapping(config.get("data")).get("init_args"))
    params = as_mapping(as_mapping(data.get("train")).get("params"))
    return as_mapping(params.get("config")).get("size")


def _projected(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the codebook that is looked up instead of what it is made of.

    Raises: ImportFailed.
    """
    parts = [tensors.get(name) for name in (CODEBOOK, f"{_PROJECTION}weight", f"{_PROJECTION}bias")]
    entries, weight, bias = parts
    if entries is None or weight is None or bias is None:
        raise ImportFailed(f"{CODEBOOK}, {_PROJECTION}weight and {_PROJECTION}bias belong together")
    if entries.ndim != 2 or weight.shape != (entries.shape[1],) * 2 or bias.shape != weight.shape[:1]:
        raise ImportFailed(
            f"{_PROJECTION}weight must be a square of {CODEBOOK}'s columns, got {tuple(weight.shape)} and"
            f" {tuple(entries.shape)}"
        )
    codebook = F.linear(entries.float(), weight.float(), bias.float())
    return {**without(tensors, _PROJECTION), CODEBOOK: codebook}
