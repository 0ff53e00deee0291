"""CLIP's text encoder with its words, as transformers saves them: two parts of a pipeline of diffusers."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as WordTokenizer
from tokenizers.models import BPE

from models.checkpoint import Unfilled, load_into
from models.importers.base import ImportFailed, Source
from models.importers.compvis import made
from models.importers.keys import shapes_of, take, without
from models.importers.sources import WORDS_FILES, read_config
from models.networks.clip_text import ClipText, ClipTextConfig
from models.networks.text_encoder import PromptEncoder

_MAX_WORDS_BYTES = 2**24
_START, _END = "<|startoftext|>", "<|endoftext|>"
_PARTS_OF_TEXT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_POSITIONS = "text_model.embeddings.position_ids"  # which older files hold
_NAMES = {
    "embed_tokens": "text_model.embeddings.token_embedding",
    "embed_positions": "text_model.embeddings.position_embedding",
    "final_norm": "text_model.final_layer_norm",
    "to_pooled": "text_projection",
}
_BLOCK_NAMES = {
    "norm1": "layer_norm1",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def read_clip_text(encoder: Source, words: Source) -> PromptEncoder:
    """Return the encoder of prompts in a ``CLIPTextModelWithProjection`` and the folder of its tokenizer.

    Raises: ImportFailed.
    """
    said, known = encoder.config, read_words(words.path)
    marks = known.encode("").ids
    if len(marks) != 2:
        raise ImportFailed(f"{words.path}: must mark both ends of a prompt, got {len(marks)} marks")
    max_tokens = said.get("max_position_embeddings", 77)
    of_words = _said_of_words(words.path)
    if (length := of_words.get("model_max_length", max_tokens)) != max_tokens:
        raise ImportFailed(
            f"{words.path}: model_max_length must be the encoder's max_position_embeddings {max_tokens},"
            f" got {length}"
        )
    pad = of_words.get("pad_token") or _END
    pad = str(pad.get("content")) if isinstance(pad, Mapping) else str(pad)
    if (pad_id := known.token_to_id(pad)) is None:
        raise ImportFailed(f"{words.path}: pad_token must be one of its words, got {pad[:40]!r}")
    config: ClipTextConfig = made(
        ClipTextConfig,
        pooled_size=said.get("projection_dim", 512),
        start_id=marks[0],
        end_id=marks[1],
        pad_id=pad_id,
        vocab_size=said.get("vocab_size", 49_408),
        hidden_size=said.get("hidden_size", 512),
        depth=said.get("num_hidden_layers", 12),
        num_heads=said.get("num_attention_heads", 8),
        inner_size=said.get("intermediate_size", 2048),
        max_tokens=max_tokens,
        activation=said.get("hidden_act", "quick_gelu"),
        norm_eps=said.get("layer_norm_eps", 1e-5),
    )
    with torch.device("meta"):
        expected = shapes_of(ClipText(config).state_dict())
    table = {publisher_name(name): name for name in expected}
    with Unfilled():
        network = ClipText(config)
    load_into(network, take(without(encoder.tensors, _POSITIONS), table, expected), encoder.path)
    return PromptEncoder(network, known)


def publisher_name(name: str) -> str:
    """Return the name that a checkpoint has for ours."""
    layer, _, kind = name.rpartition(".")
    if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", layer):
        return f"text_model.encoder.layers.{found[1]}.{_BLOCK_NAMES[found[2]]}.{kind}"
    return f"{_NAMES[layer]}.{kind}"


def read_words(folder: Path) -> WordTokenizer:
    """Return the tokenizer in a folder: ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``.

    Every byte is one of its words, so none is unknown to it.

    Raises: ImportFailed.
    """
    whole, vocabulary, merges = (folder / name for name in WORDS_FILES[:3])
    try:
        for file in (whole, vocabulary, merges):
            if file.is_file() and file.stat().st_size > _MAX_WORDS_BYTES:
                raise ImportFailed(f"{file}: is too large for words, {file.stat().st_size} bytes")
        if whole.is_file():
            words = WordTokenizer.from_file(str(whole))
            words.model.unk_token = None
            return words
        model = BPE.from_file(str(vocabulary), str(merges), end_of_word_suffix="</w>")
    except ImportFailed:
        raise
    except Exception as error:  # the library raises no narrower one
        reason = " ".join(str(error).split())
        raise ImportFailed(f"{folder}: holds no words of CLIP that can be read: {reason[:200]}") from error
    words = WordTokenizer(model)
    start, end = words.token_to_id(_START), words.token_to_id(_END)
    if start is None or end is None:
        raise ImportFailed(f"{vocabulary}: must have the words {_START} and {_END}")
    words.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PARTS_OF_TEXT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    words.post_processor = processors.RobertaProcessing(
        (_END, end), (_START, start), trim_offsets=False, add_prefix_space=False
    )
    return words


def _said_of_words(folder: Path) -> dict[str, Any]:
    """Return what the configurations beside a tokenizer say."""
    said: dict[str, Any] = {}
    for name in WORDS_FILES[3:]:
        if (folder / name).is_file():
            said |= read_config(folder / name)
    return said
