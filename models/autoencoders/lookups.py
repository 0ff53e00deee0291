"""Look-ups in frozen codebooks, as public tokenizers have them: latents → codes → entries."""

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LookupName = Literal["euclidean", "cosine", "dot_product", "scores", "signs"]
_BLOCK = 2**24  # scores computed at once, so that a large codebook does not fill the memory


class Lookup(Protocol):
    """Latents (N, d) ⇄ codes (N,)."""

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the codes (N,) int64 of ``vectors`` (N, d) float32."""

    def entries(self, codes: Tensor) -> Tensor:
        """Return the entries (*codes.shape, d) float32 of ``codes``."""


class CodebookLookup(nn.Module):
    """The code whose entry is best: nearest ("euclidean"), after latents are brought to length 1 ("cosine",
    Yu et al. 2022, arXiv:2110.04627; the entries have it), or with the largest product ("dot_product", Shi et
    al. 2024, arXiv:2412.02692).
    """

    codebook: Tensor

    def __init__(self, name: LookupName, codebook_size: int, channels: int) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("codebook", torch.zeros(codebook_size, channels))

    def nearest(self, vectors: Tensor) -> Tensor:
        if self.name == "cosine":
            vectors = F.normalize(vectors, dim=-1)
        if self.name == "dot_product":
            offsets = self.codebook.new_zeros(())
        else:  # |z − e|² = |z|² + 2 (|e|²/2 − z·e)
            offsets = self.codebook.square().sum(1) / -2
        return _best(vectors, self.codebook, offsets)

    def entries(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook)


class ScoreLookup(nn.Module):
    """The code with the highest score of a linear layer, as Gumbel-softmax is trained (arXiv:1611.01144).

    Unlike in training, no noise is added, so that the same image always has the same codes.
    """

    codebook: Tensor

    def __init__(self, codebook_size: int, channels: int) -> None:
        super().__init__()
        self.scores = nn.Linear(channels, codebook_size)
        self.register_buffer("codebook", torch.zeros(codebook_size, channels))

    def nearest(self, vectors: Tensor) -> Tensor:
        return _best(vectors, self.scores.weight, self.scores.bias)

    def entries(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook)


class SignLookup(nn.Module):
    """Channel i above 0 is bit i of the code; entries are −1 and 1 (Yu et al. 2024, arXiv:2310.05737)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def nearest(self, vectors: Tensor) -> Tensor:
        return ((vectors > 0).long() << torch.arange(self.channels, device=vectors.device)).sum(-1)

    def entries(self, codes: Tensor) -> Tensor:
        bits = codes[..., None] >> torch.arange(self.channels, device=codes.device) & 1
        return bits.float() * 2 - 1


def make_lookup(name: LookupName, codebook_size: int, channels: int) -> nn.Module:
    """Return the look-up of that name, which is a ``Lookup``."""
    match name:
        case "scores":
            return ScoreLookup(codebook_size, channels)
        case "signs":
            return SignLookup(channels)
        case _:
            return CodebookLookup(name, codebook_size, channels)


def _best(vectors: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """Return for each of ``vectors`` (N, d) the row of ``weights`` (K, d) with the highest score (N,)."""
    blocks = vectors.split(max(1, _BLOCK // len(weights)))
    return torch.cat([torch.addmm(offsets, block, weights.T).argmax(1) for block in blocks])
