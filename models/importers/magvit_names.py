"""What MaskGIT's, Open-MAGVIT2's and SimVQ's tokenizers call the tensors of ``magvit_autoencoder.py``."""

import re
from collections.abc import Mapping

from torch import Tensor

from models.importers.compvis import count, made, size_of
from models.networks.magvit_autoencoder import MagvitConfig, Style

CODEBOOK = "quantize.embedding.weight"
_MIDDLES: Mapping[Style, str] = {"maskgit": "mid", "open_magvit2": "mid_block", "simvq": "mid_block"}
_UPSAMPLES: Mapping[Style, str] = {
    "maskgit": "upsample_conv",
    "open_magvit2": "upsample.conv1",
    "simvq": "upsample.conv1",
}
_REPLACED = {
    r"^(\w+)\.(stem|from_latents)\.": r"\1.conv_in.",
    r"^(\w+)\.(to_latents|to_pixels)\.": r"\1.conv_out.",
    r"^(\w+)\.norm\.": r"\1.norm_out.",
    r"\.blocks\.": ".block.",
    r"\.shortcut\.": ".nin_shortcut.",
    r"^encoder\.levels\.(\d+)\.resample\.": r"encoder.down.\1.downsample.",
    r"^encoder\.levels\.": "encoder.down.",
    r"^decoder\.up\.(\d+)\.adaptive\.scale\.": r"decoder.adaptive.\1.gamma.",
    r"^decoder\.up\.(\d+)\.adaptive\.offset\.": r"decoder.adaptive.\1.beta.",
}


def has_names_of(tensors: Mapping[str, Tensor], style: Style) -> bool:
    """Whether there are networks with the names of a style."""
    has_norms = "decoder.adaptive.0.gamma.weight" in tensors
    needed = {f"encoder.{_MIDDLES[style]}.0.norm1.weight", "encoder.down.0.block.0.conv1.weight"}
    return needed <= tensors.keys() and has_norms == (style == "open_magvit2")


def infer_config(tensors: Mapping[str, Tensor], style: Style) -> MagvitConfig:
    """Return the shape of the networks whose ``tensors`` have the names of a style.

    Raises: ImportFailed naming a tensor that is missing, or an unusable shape.
    """
    levels = range(count(tensors, "encoder.down.{}.block.0.conv1.weight"))
    config: MagvitConfig = made(
        MagvitConfig,
        style=style,
        image_channels=size_of(tensors, "encoder.conv_in.weight", 1),
        latent_channels=size_of(tensors, "decoder.conv_in.weight", 1),
        stem_channels=size_of(tensors, "encoder.conv_in.weight", 0),
        level_channels=tuple(
            size_of(tensors, f"encoder.down.{level}.block.0.conv1.weight", 0) for level in levels
        ),
        num_blocks=count(tensors, "encoder.down.0.block.{}.conv1.weight"),
    )
    return config


def their_name(name: str, config: MagvitConfig) -> str:
    """Return the name that a style's authors have for our ``name``; they number levels from the finest."""
    if name == "quantizer.codebook":
        return CODEBOOK
    last = len(config.level_channels) - 1
    name = re.sub(r"^decoder\.levels\.(\d+)", lambda found: f"decoder.up.{last - int(found[1])}", name)
    name = re.sub(r"\.middle\.", f".{_MIDDLES[config.style]}.", name)
    name = re.sub(r"^(decoder.*)\.resample\.conv\.", rf"\1.{_UPSAMPLES[config.style]}.", name)
    for pattern, replacement in _REPLACED.items():
        name = re.sub(pattern, replacement, name)
    return name
