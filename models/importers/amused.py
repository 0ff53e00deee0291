"""aMUSEd of diffusers: a pipeline with ``UVit2DModel``, and with the encoder of its prompts."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.importers.base import Imported, ImportFailed, Source
from models.importers.clip_text import read_clip_text
from models.importers.compvis import made, size_of
from models.importers.keys import shapes_of, take
from models.importers.sources import UVIT
from models.networks.clip_text import ClipTextConfig
from models.networks.text_encoder import TextEncoderConfig
from models.networks.uvit import UVit, UVitConfig
from models.options import MaskedOptions

AESTHETIC_SCORE = 6.0  # that AmusedPipeline asks for
_VECTORS = "embed.embeddings.weight"
_NEEDED = ("transformer", "vqvae", "text_encoder", "tokenizer")
_KNOWN_NETWORK = {"use_bias": False, "ln_elementwise_affine": True}
_KNOWN_SCHEDULER = {"_class_name": "AmusedScheduler", "masking_schedule": "cosine"}
_NAMES = {
    "embed_codes": "embed.embeddings",
    "code_norm": "embed.layer_norm",
    "from_codes": "embed.conv",
    "embed_text": "encoder_proj",
    "text_norm": "encoder_proj_layer_norm",
    "embed_pooled.0": "cond_embed.linear_1",
    "embed_pooled.2": "cond_embed.linear_2",
    "merge_norm": "down_block.downsample.norm",
    "merge": "down_block.downsample.conv",
    "split_norm": "up_block.upsample.norm",
    "split": "up_block.upsample.conv",
    "hidden_norm": "project_to_hidden_norm",
    "to_hidden": "project_to_hidden",
    "channels_norm": "project_from_hidden_norm",
    "to_channels": "project_from_hidden",
    "to_codes": "mlm_layer.conv1",
    "final_norm": "mlm_layer.layer_norm",
    "to_logits": "mlm_layer.conv2",
}
_IN_BLOCKS = (  # ours and theirs, replaced in this order
    (r"^blocks\.", "transformer_layers."),
    (r"^first\.", "down_block."),
    (r"^last\.", "up_block."),
    (r"\.convs\.", ".res_blocks."),
    (r"_block\.attentions\.", "_block.attention_blocks."),
    (r"\.norms\.0\.", ".norm1."),
    (r"\.norms\.1\.", ".norm2."),
    (r"\.(attentions\.0|attention)\.", ".attn1."),
    (r"\.(attentions\.1|context_attention)\.", ".attn2."),
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.out\.", ".to_out.0."),
    (r"\.map_context\.", ".kv_mapper."),
    (r"\.modulate\.", ".linear."),
    (r"\.widen_gated\.", ".ff.net.0.proj."),
    (r"\.narrow_gated\.", ".ff.net.2."),
    (r"\.widen\.", ".channelwise_linear_1."),
    (r"\.narrow\.", ".channelwise_linear_2."),
    (r"\.response_scale$", ".channelwise_norm.gamma"),
    (r"\.response_shift$", ".channelwise_norm.beta"),
    (r"\.scale_and_shift\.", ".cond_embeds_mapper."),
)


def recognises(source: Source) -> bool:
    """Whether the configuration, of the folder or of its part, names the class."""
    return _find(source) is not None


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the prior, with the encoder of its prompts.

    Raises: ImportFailed.
    """
    found = _find(source)
    assert found is not None, "a source that is recognised"
    if missing := [name for name in _NEEDED if name not in source.parts]:
        raise ImportFailed(
            f"this is aMUSEd's prior, which draws nothing without {', '.join(missing)}: name the folder of"
            " the whole pipeline, which has model_index.json and these in it"
        )
    parts = source.parts
    prompt_encoder = read_clip_text(parts["text_encoder"], parts["tokenizer"])
    vqvae = parts["vqvae"].config
    channels = vqvae.get("vq_embed_dim") or vqvae.get("latent_channels", 3)
    network = read_network(found.config, prompt_encoder.config, channels, image_size_px(source))
    num_vectors = size_of(found.tensors, _VECTORS, 0)
    mask_id = _read_mask_id(parts["scheduler"].config if "scheduler" in parts else {}, network, num_vectors)
    with torch.device("meta"):
        expected = shapes_of(UVit(network).state_dict())
    table = {publisher_name(name): name for name in expected}
    options = MaskedOptions(num_steps=12, guidance_scale=10.0, choice_temperature=2.0)
    return Imported(
        "prior",
        "amused",
        network,
        take(_laid_out(found.tensors, network.codebook_size, mask_id), table, expected),
        options,
        prompt_encoder=prompt_encoder,
        parts=("transformer", "text_encoder"),
        notes=(
            "It samples as AmusedPipeline does: 12 steps, guided by 10 away from a blank prompt, and asked"
            f" for pictures that are not cropped and have an aesthetic score of {AESTHETIC_SCORE:g}.",
        ),
    )


def image_size_px(source: Source) -> int:
    """Return the side of the pictures of a pipeline. Raises: ImportFailed."""
    side = source.parts["transformer"].config.get("sample_size", 64)
    widths = source.parts["vqvae"].config.get("block_out_channels", (64,))
    if not isinstance(side, int) or not isinstance(widths, list | tuple):
        raise ImportFailed(
            "sample_size must be a whole number and block_out_channels a list, got"
            f" {str(side)[:40]} and {str(widths)[:40]}"
        )
    return int(side * 2 ** (len(widths) - 1))


def read_network(
    said: Mapping[str, Any], text: ClipTextConfig | TextEncoderConfig, latent_channels: object, size_px: int
) -> UVitConfig:
    """Return the shape of a network from ``config.json``. Raises: ImportFailed."""
    micro = (size_px, size_px, 0, 0, AESTHETIC_SCORE)
    micro_channels = said.get("micro_cond_encode_dim", 256)
    known = {
        **_KNOWN_NETWORK,
        "upsample": said.get("downsample", False),
        "micro_cond_embed_dim": len(micro) * micro_channels if isinstance(micro_channels, int) else None,
        "cond_embed_dim": text.pooled_size,
        "encoder_hidden_size": text.hidden_size,
    }
    for name, wanted in known.items():
        if said.get(name, wanted) != wanted:
            raise ImportFailed(f"{name} must be {wanted!r}, got {str(said[name])[:40]!r}")
    side = said.get("sample_size", 64)
    config: UVitConfig = made(
        UVitConfig,
        latent_channels=latent_channels,
        grid=(side, side),
        codebook_size=said.get("codebook_size", 8192),
        code_channels=said.get("in_channels", 768),
        block_channels=said.get("block_out_channels", 768),
        num_blocks=said.get("num_res_blocks", 3),
        block_num_heads=said.get("block_num_heads", 12),
        is_halved=said.get("downsample", False),
        hidden_size=said.get("hidden_size", 1024),
        depth=said.get("num_hidden_layers", 22),
        num_heads=said.get("num_attention_heads", 16),
        mlp_size=said.get("intermediate_size", 2816),
        text_tokens=text.max_tokens,
        text_channels=text.hidden_size,
        pooled_channels=text.pooled_size,
        micro_conditions=micro,
        micro_channels=micro_channels,
        norm_eps=said.get("layer_norm_eps", 1e-6),
    )
    return config


def publisher_name(name: str) -> str:
    """Return the name that a ``UVit2DModel`` has for ours."""
    layer, _, kind = name.rpartition(".")
    if layer in _NAMES:
        return f"{_NAMES[layer]}.{kind}"
    for ours, theirs in _IN_BLOCKS:
        name = re.sub(ours, theirs, name)
    return name


def _read_mask_id(scheduler: Mapping[str, Any], network: UVitConfig, num_vectors: int) -> int:
    """Return which of the codes' vectors is that of masked ones. Raises: ImportFailed."""
    for name, known in _KNOWN_SCHEDULER.items():
        if scheduler.get(name, known) != known:
            raise ImportFailed(f"the scheduler's {name} must be {known!r}, got {str(scheduler[name])[:40]!r}")
    mask_id = scheduler.get("mask_token_id", num_vectors - 1)
    if not isinstance(mask_id, int) or not network.codebook_size <= mask_id < num_vectors:
        raise ImportFailed(
            f"the scheduler's mask_token_id must be from codebook_size {network.codebook_size} on and below"
            f" the {num_vectors} vectors of {_VECTORS}, got {str(mask_id)[:40]}"
        )
    return mask_id


def _laid_out(tensors: Mapping[str, Tensor], num_codes: int, mask_id: int) -> dict[str, Tensor]:
    """Return tensors as ours are: convolutions of single places as matrices, of vectors those that are used.

    The others between the codes' and that for masked ones only make the table's length a round number.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == _VECTORS:
            kept[name] = torch.cat([tensor[:num_codes], tensor[mask_id, None]])
        elif name == "up_block.upsample.conv.weight":
            kept[name] = tensor.flatten(1).t()  # of a transposed convolution
        elif name.endswith(("conv.weight", "conv1.weight", "conv2.weight", ".gamma", ".beta")):
            kept[name] = tensor.flatten() if tensor.shape[:3] == (1, 1, 1) else tensor.flatten(1)
        else:
            kept[name] = tensor
    return kept


def _find(source: Source) -> Source | None:
    """Return the folder of the class, which may be a part of a pipeline."""
    for found in (source, source.parts.get("transformer")):
        if found is not None and found.config.get("_class_name") == UVIT:
            return found
    return None
