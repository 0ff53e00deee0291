"""What all exporters to diffusers share: a part's folder, and the shape of an autoencoder's networks."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from models.exporters.base import ExportFailed
from models.networks.ldm_autoencoder import LdmConfig

_WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


def write_part(part: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Write the folder of one model: ``config.json`` and its tensors in float32."""
    part.mkdir()
    floats = {name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}
    save_file(floats, part / _WEIGHTS_FILE, metadata={"format": "pt"})
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def network_config(network: LdmConfig) -> dict[str, object]:
    """Return what ``config.json`` of an autoencoder says of its two networks.

    Raises: ExportFailed saying what diffusers' can't have.
    """
    if network.has_tanh:
        raise ExportFailed("a decoder of diffusers can't end with a tanh")
    if network.stem_channels not in (None, network.level_channels[0]):
        raise ExportFailed(
            f"in diffusers the first convolution has the channels of the first level,"
            f" {network.level_channels[0]}; here it has {network.stem_channels}"
        )
    levels = range(len(network.level_channels))
    kinds = ["Attn" if level in network.attention_levels else "" for level in levels]
    return {
        "act_fn": "silu",
        "in_channels": network.image_channels,
        "out_channels": network.image_channels,
        "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)],
        "block_out_channels": list(network.level_channels),
        "layers_per_block": network.num_blocks,
        "latent_channels": network.latent_channels,
        "norm_num_groups": network.num_groups,
        "mid_block_add_attention": network.has_middle_attention,
    }
