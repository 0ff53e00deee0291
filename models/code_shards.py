"""Read the `.bin` files of a folder of codes, with NumPy alone. ``docs/codes.md`` states the format."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MANIFEST = "manifest.json"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what the folder holds: tokenizer, grid, codebook_size, transform, …."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
    return manifest


def shard_paths(folder: Path) -> list[Path]:
    """Return the `.bin` files of the shards that are whole: each gets its parquet last."""
    return sorted(path.with_suffix(".bin") for path in folder.glob("codes-??????.parquet"))


def open_codes(path: Path) -> npt.NDArray[Any]:
    """Return the codes (N, *grid) of a shard, mapped into memory: nothing is read before it is used."""
    about = json.loads(path.with_suffix(".json").read_text("utf-8"))
    shape = tuple(about["shape"])
    if shape[0] == 0:
        return np.zeros(shape, about["dtype"])
    return np.memmap(path, about["dtype"], mode="r", shape=shape)


def iterate_codes(folder: Path) -> Iterator[npt.NDArray[Any]]:
    """Yield the codes of one shard after the other."""
    return map(open_codes, shard_paths(folder))
