"""The priors over classes of LlamaGen: ``c2i_B_256``, ``c2i_L_384`` (Sun et al. 2024, arXiv:2406.06525)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.importers.base import Imported, ImportFailed, Source
from models.importers.class_labels import class_names
from models.importers.compvis import made, size_of
from models.importers.dit_names import whole_number
from models.importers.keys import shapes_of, take, without
from models.networks.llamagen import LlamaGen, LlamaGenConfig
from models.options import AutoregressiveOptions

NUM_HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2560: 40, 3200: 32}  # by hidden size, of those published
_CODES = "tok_embeddings.weight"
_LABELS = "cls_embedding.embedding_table.weight"
_CAPTIONS = "cls_embedding.cap_proj.fc1.weight"
_QKV = "layers.0.attention.wqkv.weight"
_TURNS = "freqs_cis"  # which some files hold, and which is made again
_NAMES = {
    "embed_codes": "tok_embeddings",
    "embed_labels": "cls_embedding.embedding_table",
    "final_norm": "norm",
    "to_logits": "output",
}
_BLOCK_NAMES = {
    "first_norm": "attention_norm",
    "qkv": "attention.wqkv",
    "out": "attention.wo",
    "second_norm": "ffn_norm",
    "gate_and_value": "feed_forward.w1",  # and w3
    "narrow": "feed_forward.w2",
}


def recognises(source: Source) -> bool:
    """Whether codes are embedded beside layers with these names, for labels or for captions."""
    tensors = source.tensors
    return {_CODES, _QKV} <= tensors.keys() and bool({_LABELS, _CAPTIONS} & tensors.keys())


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the prior.

    settings: ``image_size_px``, where the file's name doesn't end with it as its authors' do;
    ``downsample_factor``, the pixels behind a code, 16; ``code_channels`` of the tokenizer, 8; ``num_heads``
    for a network of no published size.

    Raises: ImportFailed.
    """
    tensors = without(source.tensors, _TURNS)
    if _CAPTIONS in tensors:
        raise ImportFailed(
            "this is LlamaGen's prior for texts (t2i). It wants 120 states of a text encoder (Flan-T5 XL) of"
            f" {size_of(tensors, _CAPTIONS, 1):,} channels, which is not known here; its priors for classes"
            " (c2i) are"
        )
    side, notes = _grid_side(source, settings)
    network = _read_network(tensors, side, settings)
    with torch.device("meta"):
        expected = shapes_of(LlamaGen(network).state_dict())
    table = {publisher_name(name): name for name in expected}
    top_k = min(2000, network.codebook_size)
    row_bytes = 2 * 2 * network.depth * network.num_codes * network.hidden_size
    return Imported(
        "prior",
        "llamagen",
        network,
        take(_joined(tensors), table, expected),
        AutoregressiveOptions(guidance_scale=4.0, top_k=top_k),
        {"class": class_names(network.num_labels)},
        notes=(
            *notes,
            "It samples as its authors' sample_c2i.py does: guided by 4, from the"
            f" {top_k:,} likeliest codes.",
            f"A picture takes {network.num_codes} calls, and while it is drawn, {row_bytes / 1e6:,.0f} MB of"
            " keys and values in bfloat16, twice as much where it is guided.",
        ),
    )


def publisher_name(name: str) -> str:
    """Return the name that a checkpoint has for ours."""
    layer, _, kind = name.rpartition(".")
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", layer)
    if found is None:
        return f"{_NAMES[layer]}.{kind}"
    return f"layers.{found[1]}.{_BLOCK_NAMES[found[2]]}.{kind}"


def _read_network(tensors: Mapping[str, Tensor], side: int, settings: Mapping[str, str]) -> LlamaGenConfig:
    """Return the shape of a network, from its tensors. Raises: ImportFailed."""
    hidden = size_of(tensors, _CODES, 1)
    num_heads = whole_number(settings, "num_heads") if "num_heads" in settings else NUM_HEADS.get(hidden)
    if num_heads is None:
        raise ImportFailed(
            f"no published network has {hidden} channels, and tensors don't tell the number of heads: say"
            " --set num_heads=…"
        )
    if size_of(tensors, _QKV, 0) != 3 * hidden:
        raise ImportFailed(
            f"{_QKV} {tuple(tensors[_QKV].shape)}: fewer heads of keys than of queries are not known here"
        )
    numbers = {int(found[1]) for name in tensors if (found := re.match(r"layers\.(\d{1,4})\.", name))}
    config: LlamaGenConfig = made(
        LlamaGenConfig,
        latent_channels=whole_number(settings, "code_channels") if "code_channels" in settings else 8,
        grid=(side, side),
        codebook_size=size_of(tensors, _CODES, 0),
        hidden_size=hidden,
        depth=max(numbers) + 1,
        num_heads=num_heads,
        mlp_size=size_of(tensors, "layers.0.feed_forward.w1.weight", 0),
        num_labels=size_of(tensors, _LABELS, 0) - 1,
    )
    return config


def _grid_side(source: Source, settings: Mapping[str, str]) -> tuple[int, tuple[str, ...]]:
    """Return how many codes a row of the grid has, and a note: no tensor tells it. Raises: ImportFailed."""
    factor = whole_number(settings, "downsample_factor") if "downsample_factor" in settings else 16
    notes: tuple[str, ...] = ()
    if "image_size_px" in settings:
        size_px = whole_number(settings, "image_size_px")
    elif found := re.search(r"[_-](256|384|512)$", source.path.stem):
        size_px = int(found[1])
        notes = (f"Its pictures are {size_px} px, as the name of its file ends.",)
    else:
        raise ImportFailed(
            "tensors don't tell the size of the pictures that it was trained on: say --set image_size_px=256,"
            " or 384"
        )
    if size_px % factor:
        raise ImportFailed(f"image_size_px must be a multiple of downsample_factor {factor}, got {size_px}")
    return size_px // factor, notes


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the two first layers of each SwiGLU as one, under the name of the first."""
    joined = dict(tensors)
    for name in tensors:
        other = name.replace(".feed_forward.w1.", ".feed_forward.w3.")
        if other != name and other in joined and joined[other].shape == joined[name].shape:
            joined[name] = torch.cat([joined[name], joined.pop(other)])
    return joined
