"""Shards of a folder of codes: each a parquet file, and a `.bin` with its `.json` for trainers.

Their bytes are a pure function of the rows: nothing of time, place or chance goes in. ``docs/codes.md``
states them.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bulk.arrow import pyarrow
from bulk.errors import BulkError
from bulk.manifest import Manifest, partial_suffix, write_whole
from bulk.pictures import Box
from models.code_shards import pack, unpack
from models.media.base import Array
from workers.storage import sync_folder

_FOOTER_KEY = b"smalti"
_NO_BOX = Box(0, 0, 0, 0)
_SHARD_NAME = re.compile(r"codes-(\d{6})\.parquet")


@dataclass(frozen=True)
class Row:
    """One row: what its picture was, and its codes, or the error that says why there are none."""

    id: str
    is_flipped: bool = False
    codes: Array | None = None
    crop_box: Box | None = None
    size: tuple[int, int] | None = None
    sha256: bytes | None = None
    psnr_db: float | None = None
    error: str | None = None
    crop: int = 0


def shard_path(folder: Path, shard: int) -> Path:
    """Return where the parquet file of a shard is."""
    return folder / f"codes-{shard:06d}.parquet"


def present_shards(folder: Path) -> set[int]:
    """Return the numbers of the shards that are whole."""
    return {int(found[1]) for path in folder.iterdir() if (found := _SHARD_NAME.fullmatch(path.name))}


def remove_partial(folder: Path) -> None:
    """Remove what processes of this machine that were ended left half written."""
    for path in folder.glob(".*.partial-*"):
        number = path.name.rpartition("-")[2]
        is_own = number.isdecimal() and path.name.endswith(partial_suffix(int(number)))
        if is_own and not _is_running(int(number)):
            path.unlink(missing_ok=True)


def write_shard(folder: Path, shard: int, rows: Sequence[Row], manifest: Manifest) -> None:
    """Write a shard; its parquet file comes last, so what has one is whole.

    Raises: OSError.
    """
    arrow = pyarrow()
    shape = (len(rows), *manifest.codes_shape)
    codes = np.zeros(shape, manifest.dtype)
    is_good = np.array([row.codes is not None for row in rows], bool)
    for number, row in enumerate(rows):
        if row.codes is not None:
            codes[number] = row.codes
    kept = np.ascontiguousarray(codes[is_good])
    about: dict[str, Any] = {
        "dtype": manifest.dtype.str,
        "shape": kept.shape,
        "error_rows": np.flatnonzero(~is_good).tolist(),
        "tokenizer": manifest.tokenizer,
    }
    if (bits := manifest.bits_per_code) is not None:
        about["bits_per_code"] = bits
        kept = pack(kept.reshape(len(kept), -1), bits)
    sink = arrow.BufferOutputStream()
    arrow.parquet.write_table(
        _table(arrow, rows, codes, manifest), sink, compression="zstd", use_dictionary=False
    )
    path = shard_path(folder, shard)
    write_whole(path.with_suffix(".bin"), kept.tobytes())
    write_whole(path.with_suffix(".json"), (json.dumps(about) + "\n").encode())
    write_whole(path, memoryview(sink.getvalue()))
    sync_folder(folder)


def read_shard(folder: Path, shard: int, manifest: Manifest) -> Any:
    """Return the table of a shard.

    Raises: BulkError when it is missing, broken, or of another kind than the manifest says.
    """
    arrow = pyarrow()
    path = shard_path(folder, shard)
    try:
        table = arrow.parquet.read_table(path, partitioning=None)
        footer = json.loads((table.schema.metadata or {})[_FOOTER_KEY])
    except (arrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise BulkError(f"{path} is missing or broken: {error}") from error
    expected = {**manifest.footer(), "smalti": footer.get("smalti")}  # its shards may be of several versions
    if footer != expected:
        different = sorted(name for name in expected if footer.get(name) != expected[name])
        raise BulkError(f"{path}: {', '.join(different)}: not as the folder's manifest says")
    num_rows = manifest.num_items_of(shard) * manifest.rows_per_item
    if not table.schema.equals(_schema(arrow, manifest)) or table.num_rows != num_rows:
        raise BulkError(f"{path}: its columns, or its {table.num_rows} rows, are not those of the manifest")
    return table


def codes_of(table: Any, manifest: Manifest) -> tuple[Array, Array]:
    """Return the codes (N, *shape) of a table's rows without errors, and which rows these are (N,).

    Raises: BulkError when a code is beyond the codebook.
    """
    good = np.flatnonzero(table.column("error").combine_chunks().is_null().to_numpy(zero_copy_only=False))
    column = table.column("codes")
    if (bits := manifest.bits_per_code) is None:
        values = column.combine_chunks().flatten().to_numpy()
    else:
        packed = np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(table.num_rows, -1)
        values = unpack(packed, manifest.num_codes, bits, manifest.dtype)
    if values.size and values.max() >= manifest.codebook_size:
        raise BulkError(f"a code is from 0 to {manifest.codebook_size - 1}, and the shard has {values.max()}")
    return values.reshape(table.num_rows, *manifest.codes_shape)[good], good


def _schema(arrow: Any, manifest: Manifest) -> Any:
    if manifest.bits_per_code is None:
        code = arrow.uint16() if manifest.dtype.itemsize == 2 else arrow.uint32()
        codes = arrow.list_(arrow.field("item", code, nullable=False), manifest.num_codes)
    else:
        codes = arrow.binary(-(-manifest.num_codes * manifest.bits_per_code // 8))
    fields = [
        arrow.field("id", arrow.string(), nullable=False),
        arrow.field("is_flipped", arrow.bool_(), nullable=False),
        arrow.field("codes", codes, nullable=False),
        arrow.field(
            "crop_box", arrow.list_(arrow.field("item", arrow.float64(), nullable=False), 4), nullable=False
        ),
        arrow.field("width_px", arrow.uint32()),
        arrow.field("height_px", arrow.uint32()),
        arrow.field("sha256", arrow.binary(32)),
        arrow.field("error", arrow.string()),
    ]
    if manifest.transform.crops > 1:
        fields.append(arrow.field("crop", arrow.uint8(), nullable=False))
    if manifest.return_psnr:
        fields.append(arrow.field("psnr_db", arrow.float32()))
    return arrow.schema(fields)  # lists without nulls: many readers of parquet know no others of a fixed size


def _table(arrow: Any, rows: Sequence[Row], codes: Array, manifest: Manifest) -> Any:
    schema = _schema(arrow, manifest)
    kind = schema.field("codes").type
    if manifest.bits_per_code is None:
        coded = arrow.FixedSizeListArray.from_arrays(
            arrow.array(codes.reshape(-1), kind.value_type), type=kind
        )
    else:
        packed = pack(codes.reshape(len(rows), -1), manifest.bits_per_code)
        coded = arrow.array([row.tobytes() for row in packed], kind)
    columns = [
        arrow.array([row.id for row in rows], arrow.string()),
        arrow.array([row.is_flipped for row in rows], arrow.bool_()),
        coded,
        arrow.array([row.crop_box or _NO_BOX for row in rows], schema.field("crop_box").type),
        arrow.array([row.size and row.size[0] for row in rows], arrow.uint32()),
        arrow.array([row.size and row.size[1] for row in rows], arrow.uint32()),
        arrow.array([row.sha256 for row in rows], arrow.binary(32)),
        arrow.array([row.error for row in rows], arrow.string()),
    ]
    if manifest.transform.crops > 1:
        columns.append(arrow.array([row.crop for row in rows], arrow.uint8()))
    if manifest.return_psnr:
        columns.append(arrow.array([row.psnr_db for row in rows], arrow.float32()))
    footer = json.dumps(manifest.footer(), sort_keys=True).encode()
    return arrow.Table.from_arrays(columns, schema=schema.with_metadata({_FOOTER_KEY: footer}))


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
