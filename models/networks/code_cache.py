"""Keys and values of the codes so far, of rows that are each at a place of their own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CacheCall:
    """Where a call writes, a place (B,) in each of its rows (B,), and what hides later places from it.

    mask: (B, 1, 1, places), added to the scores. runs: the parts of the call whose rows follow each other;
    None on a GPU.
    """

    rows: Tensor
    places: Tensor
    mask: Tensor
    runs: list[tuple[slice, slice]] | None


class KeyValueCache:
    """Keys and values (layers, rows, heads, places, d), in memory that a CPU first touches in ``clear``."""

    def __init__(
        self, num_layers: int, num_rows: int, num_heads: int, num_places: int, head_size: int, like: Tensor
    ) -> None:
        self.keys = untouched_zeros((num_layers, num_rows, num_heads, num_places, head_size), like)
        self.values = untouched_zeros((num_layers, num_rows, num_heads, num_places, head_size), like)

    @property
    def bytes_per_row(self) -> int:
        return 2 * self.keys.itemsize * self.keys[:, 0].numel()

    def clear(self, row: int) -> None:
        """Forget what a row held: a NaN that a failed sample left would get through the mask."""
        self.keys[:, row] = 0
        self.values[:, row] = 0

    def call(self, rows: Tensor, places: Tensor) -> CacheCall:
        """Return where a call of such rows writes."""
        is_later = torch.arange(self.keys.shape[3], device=places.device) > places[:, None]  # (B, places)
        mask = torch.zeros_like(is_later, dtype=self.keys.dtype).masked_fill(is_later, -math.inf)
        runs = None if self.keys.is_cuda else _runs(rows.tolist())
        return CacheCall(rows, places, mask[:, None, None], runs)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: CacheCall) -> Tensor:
        """Write keys and values of one place, and return what queries attend to, (B, heads, 1, d) all.

        What is written depends on the call alone, so that it may be made again.
        """
        keys, values = self.keys[layer], self.values[layer]
        keys[call.rows, :, call.places], values[call.rows, :, call.places] = k[:, :, 0], v[:, :, 0]
        if call.runs is None:
            return attend_masked(q, keys[call.rows], values[call.rows], call.mask)
        return torch.cat(  # without a copy of the cache
            [attend_masked(q[at], keys[where], values[where], call.mask[at]) for at, where in call.runs]
        )


def attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return (B, heads, N, d) of q, k, v (B, heads, N, d); by plain products in training on a CPU.

    See ``layers.attend``.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, heads, N, T + N)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def untouched_zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return zeros; on a CPU of memory that the system gives when it is written."""
    if like.device.type != "cpu":
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    num_bytes = math.prod(shape) * like.dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(like.dtype).view(shape)


def _runs(rows: Sequence[int]) -> list[tuple[slice, slice]]:
    """Return the parts of a call whose rows of the cache follow each other: where they are, in both."""
    starts = [0, *(i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1)]
    ends = [*starts[1:], len(rows)]
    return [
        (slice(start, end), slice(rows[start], rows[start] + end - start))
        for start, end in zip(starts, ends, strict=True)
    ]
