"""A folder of codes instead of pictures, as `smalti encode --out DIR` writes it; see ``docs/codes.md``."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.code_shards import open_codes, read_manifest, shard_paths
from training.data.dataset import DataError, check_names
from training.data.image_folder import SINGLE_CLASS_NAMES

PREFIX = "codes:"


@dataclass(frozen=True)
class CodedData:
    """codes: (N, *grid) int32, of all rows without errors. labels: (N,) int64, indices into class_names."""

    codes: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def code_folder(source: str) -> Path | None:
    """Return the folder that ``codes:DIR`` names; None for another source."""
    return Path(source.removeprefix(PREFIX)) if source.startswith(PREFIX) else None


def read_codes(folder: Path, fingerprint: str) -> CodedData:
    """Read all shards of a folder, made by the tokenizer with this fingerprint.

    Where all ids are ``class/file``, each class is one of the labels; else there is a single one.

    Raises: DataError.
    """
    try:
        manifest = read_manifest(folder)
        made_by, size = manifest["tokenizer"], int(manifest["codebook_size"])
        num_shards = -(-manifest["sources"]["num_items"] // manifest["shard_size"])
    except OSError as error:
        raise DataError(f"{folder} is not a folder of codes: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: its manifest is damaged: {error!r}") from error
    if made_by != fingerprint:
        raise DataError(f"{folder} was made by the tokenizer {made_by}, but the prior's is {fingerprint}")
    paths = shard_paths(folder)
    if len(paths) != num_shards:
        raise DataError(
            f"{folder} has {len(paths)} of its {num_shards} shards: `smalti encode` makes those missing"
        )
    try:
        codes = np.concatenate([open_codes(path) for path in paths]).astype(np.int32)
        names = [name for path in paths for name in _class_names(path)]
        if codes.size and codes.max() >= size:
            raise ValueError(f"a code is {codes.max()}, in a codebook of {size}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is damaged, as `smalti verify` tells: {error}") from error
    if not len(codes) or len(names) != len(codes):
        raise DataError(f"{folder} has {len(codes)} rows with codes, for {len(names)} that should have some")
    known = [name for name in names if name is not None]
    if len(known) < len(names):
        labels = torch.zeros(len(names), dtype=torch.int64)
        return CodedData(torch.from_numpy(codes), labels, SINGLE_CLASS_NAMES)
    class_names, labels_of = np.unique(known, return_inverse=True)
    check_names(f"{folder}: folders in ids", class_names.tolist())
    return CodedData(torch.from_numpy(codes), torch.from_numpy(labels_of), tuple(class_names.tolist()))


def _class_names(path: Path) -> list[str | None]:
    """Return the class that each row with codes names, or None for one that names none.

    Raises: DataError when PyArrow is missing.
    """
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise DataError("folders of codes need PyArrow: pip install 'smalti[bulk]'") from error
    try:
        table = pyarrow.parquet.read_table(path.with_suffix(".parquet"), columns=["id"], partitioning=None)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error
    missing = set(json.loads(path.with_suffix(".json").read_text("utf-8"))["error_rows"])
    ids = [id for row, id in enumerate(table.column("id").to_pylist()) if row not in missing]
    return [id.split("/")[0] if id.count("/") == 1 and "!" not in id else None for id in ids]
