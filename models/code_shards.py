"""Read the `.bin` files of a folder of codes, with NumPy alone. ``docs/codes.md`` states the format."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MANIFEST = "manifest.json"
_ROWS_AT_ONCE = 4096  # whose bits are spread, a byte each


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what the folder holds: tokenizer, grid, codebook_size, transform, …."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
    return manifest


def shard_paths(folder: Path) -> list[Path]:
    """Return the `.bin` files of the shards that are whole: each gets its parquet last."""
    return sorted(path.with_suffix(".bin") for path in folder.glob("codes-??????.parquet"))


def open_codes(path: Path) -> npt.NDArray[Any]:
    """Return the codes (N, *grid) of a shard, mapped into memory: nothing is read before it is used.

    Packed codes are read and unpacked at once.
    """
    about = json.loads(path.with_suffix(".json").read_text("utf-8"))
    shape = tuple(about["shape"])
    if shape[0] == 0:
        return np.zeros(shape, about["dtype"])
    bits = about.get("bits_per_code")
    if bits is None:
        return np.memmap(path, about["dtype"], mode="r", shape=shape)
    packed = np.fromfile(path, np.uint8).reshape(shape[0], -1)
    return unpack(packed, math.prod(shape[1:]), bits, np.dtype(about["dtype"])).reshape(shape)


def pack(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Return codes (N, num_codes) in so many bits each, the lowest first; a row takes whole bytes."""
    packed = np.empty((len(codes), -(-codes.shape[1] * bits // 8)), np.uint8)
    for start in range(0, len(codes), _ROWS_AT_ONCE):
        part = codes[start : start + _ROWS_AT_ONCE]
        spread = np.stack([(part >> bit).astype(np.uint8) & 1 for bit in range(bits)], -1)
        packed[start : start + len(part)] = np.packbits(spread.reshape(len(part), -1), 1, "little")
    return packed


def unpack(
    packed: npt.NDArray[np.uint8], num_codes: int, bits: int, dtype: "np.dtype[Any]"
) -> npt.NDArray[Any]:
    """Return codes (N, num_codes) from what ``pack`` returned."""
    codes = np.zeros((len(packed), num_codes), dtype)
    for start in range(0, len(packed), _ROWS_AT_ONCE):
        spread = np.unpackbits(packed[start : start + _ROWS_AT_ONCE], 1, num_codes * bits, "little")
        spread = spread.reshape(-1, num_codes, bits)
        for bit in range(bits):
            codes[start : start + len(spread)] |= spread[..., bit].astype(dtype) << bit
    return codes


def iterate_codes(folder: Path) -> Iterator[npt.NDArray[Any]]:
    """Yield the codes of one shard after the other."""
    return map(open_codes, shard_paths(folder))
