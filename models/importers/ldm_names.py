"""What other projects call the tensors of ``models/networks/ldm_autoencoder.py``.

The names go from ours to theirs, so that the same table serves importing and exporting. Where theirs are 1×1
convolutions, the weights of our attention have two axes less.
"""

import re
from collections.abc import Mapping

import torch
from torch import nn

from models.networks.ldm_autoencoder import LdmConfig, LdmDecoder, LdmEncoder

_ATTENTION = re.compile(r"(attentions\.\d+|middle\.1)\.(query|key|value|out)\.weight$")
_COMPVIS = {
    r"^(\w+)\.(stem|from_latents)\.": r"\1.conv_in.",
    r"^(\w+)\.(to_latents|to_pixels)\.": r"\1.conv_out.",
    r"^(\w+)\.norm\.": r"\1.norm_out.",
    r"\.middle\.0\.": ".mid.block_1.",
    r"\.middle\.1\.": ".mid.attn_1.",
    r"\.middle\.2\.": ".mid.block_2.",
    r"\.blocks\.": ".block.",
    r"\.shortcut\.": ".nin_shortcut.",
    r"\.attentions\.": ".attn.",
    r"\.query\.": ".q.",
    r"\.key\.": ".k.",
    r"\.value\.": ".v.",
    r"\.out\.": ".proj_out.",
    r"^encoder\.levels\.": "encoder.down.",
    r"^(encoder.*)\.resample\.": r"\1.downsample.",
    r"^(decoder.*)\.resample\.": r"\1.upsample.",
}
_DIFFUSERS = {
    r"^(\w+)\.(stem|from_latents)\.": r"\1.conv_in.",
    r"^(\w+)\.(to_latents|to_pixels)\.": r"\1.conv_out.",
    r"^(\w+)\.norm\.": r"\1.conv_norm_out.",
    r"(attentions\.\d+|middle\.1)\.norm\.": r"\1.group_norm.",
    r"\.middle\.0\.": ".mid_block.resnets.0.",
    r"\.middle\.1\.": ".mid_block.attentions.0.",
    r"\.middle\.2\.": ".mid_block.resnets.1.",
    r"\.blocks\.": ".resnets.",
    r"\.shortcut\.": ".conv_shortcut.",
    r"\.query\.": ".to_q.",
    r"\.key\.": ".to_k.",
    r"\.value\.": ".to_v.",
    r"\.out\.": ".to_out.0.",
    r"^encoder\.levels\.": "encoder.down_blocks.",
    r"^decoder\.levels\.": "decoder.up_blocks.",
    r"^(encoder.*)\.resample\.": r"\1.downsamplers.0.",
    r"^(decoder.*)\.resample\.": r"\1.upsamplers.0.",
}


def compvis_name(name: str, config: LdmConfig) -> str:
    """Return the name that taming-transformers and latent-diffusion have for our ``name``.

    Their decoder's levels are numbered from the finest.
    """
    last = len(config.level_channels) - 1
    renamed = _replaced(name, _COMPVIS)
    return re.sub(r"^decoder\.levels\.(\d+)", lambda found: f"decoder.up.{last - int(found[1])}", renamed)


def diffusers_name(name: str, config: LdmConfig) -> str:
    """Return the name that diffusers has for our ``name``."""
    return _replaced(name, _DIFFUSERS)


def expected_tensors(config: LdmConfig) -> dict[str, tuple[int, ...]]:
    """Return our names of the tensors of both networks, "encoder.…" and "decoder.…", with their shapes."""
    with torch.device("meta"):
        networks = nn.ModuleDict({"encoder": LdmEncoder(config), "decoder": LdmDecoder(config)})
    return {name: tuple(tensor.shape) for name, tensor in networks.state_dict().items()}


def is_attention_weight(name: str) -> bool:
    """Whether our ``name`` is of a matrix that CompVis has as a 1×1 convolution."""
    return _ATTENTION.search(name) is not None


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for pattern, replacement in table.items():
        name = re.sub(pattern, replacement, name)
    return name
