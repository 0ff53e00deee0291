"""A folder of codes, compared with itself and with its sources."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bulk.decoding import Prefetch
from bulk.encode import encode_pictures
from bulk.errors import BulkError
from bulk.manifest import Manifest
from bulk.shards import Row, codes_of, present_shards, read_shard, shard_path
from bulk.sources import Sources
from models.code_shards import open_codes
from models.media.base import Array
from workers.compute import Engine


@dataclass(frozen=True)
class Verdict:
    """num_rows: in shards that were read; num_checked: encoded again; problems: in words."""

    num_rows: int
    num_checked: int
    problems: tuple[str, ...]


def check_shards(folder: Path, manifest: Manifest) -> tuple[list[int], list[str]]:
    """Return the numbers of the shards that are there, and what is wrong with them: each is read whole."""
    present, problems = sorted(present_shards(folder)), []
    missing = manifest.num_shards - len(present)
    if missing:
        problems.append(f"{missing} of {manifest.num_shards} shards are missing: `smalti encode` makes them")
    good = []
    for shard in present:
        try:
            table = read_shard(folder, shard, manifest)
            _check_bin(shard_path(folder, shard), codes_of(table, manifest)[0], manifest.bits_per_code)
        except BulkError as error:
            problems.append(str(error))
        else:
            good.append(shard)
    return good, problems


def verify(
    folder: Path,
    manifest: Manifest,
    sources: Sources,
    load_engine: Callable[[], Engine],
    *,
    num_checked: int,
    num_processes: int = 1,
) -> Verdict:
    """Check all shards, then encode pictures again, spread evenly over those that are there.

    Raises: BulkError when the sources are not those of the folder.
    """
    listing = sources.list()
    if (listing.num_items, listing.digest) != (manifest.sources.num_items, manifest.sources.digest):
        raise BulkError(
            f"the sources are not those that {folder} was made of: it has {manifest.sources.num_items}"
            f" pictures, they have {listing.num_items}, or their names or sizes differ"
        )
    shards, problems = check_shards(folder, manifest)
    if any(shard >= manifest.num_shards for shard in shards):
        raise BulkError(f"{folder} has more shards than its manifest says: {manifest.num_shards}")
    starts = np.cumsum([0, *(manifest.num_items_of(shard) for shard in shards)])
    total = int(starts[-1])
    num_rows = total * manifest.rows_per_item
    if not total:
        return Verdict(num_rows, 0, tuple(problems))
    chosen = np.unique(np.linspace(0, total - 1, min(num_checked, total)).round().astype(int))
    which = np.searchsorted(starts, chosen, side="right") - 1
    items = {
        shards[part] * manifest.shard_size + int(item - starts[part])
        for part, item in zip(which, chosen, strict=True)
    }
    engine = load_engine()
    wanted = ((number, item) for number, item in enumerate(sources.walk()) if number in items)
    table: Any = None
    codes: dict[int, Array] = {}  # of the rows without errors
    at = -1
    with Prefetch(
        wanted,
        manifest.medium,
        chunk_size=16,
        shard_size=manifest.shard_size,
        num_processes=num_processes,
        num_crops=manifest.transform.crops,
    ) as prefetch:
        for chunk in prefetch:
            shard = chunk.first // manifest.shard_size
            if shard != at:
                table, at = read_shard(folder, shard, manifest), shard
                values, good = codes_of(table, manifest)
                codes = dict(zip(good.tolist(), values, strict=True))
            first = (chunk.first - shard * manifest.shard_size) * manifest.rows_per_item
            kept = table.slice(first, len(chunk.pictures) * manifest.rows_per_item).to_pylist()
            rows = encode_pictures(chunk.pictures, manifest, engine)
            for number, (made, row) in enumerate(zip(rows, kept, strict=True), first):
                if (problem := _difference(made, row, codes.get(number))) is not None:
                    problems.append(f"{row['id']}: {problem}")
    return Verdict(num_rows, len(items) * manifest.rows_per_item, tuple(problems))


def _difference(made: Row, kept: dict[str, object], codes: Array | None) -> str | None:
    """Say how a row, and its codes, differ from what is made of its picture now."""
    if (made.id, made.crop, made.is_flipped) != (kept["id"], kept.get("crop", 0), kept["is_flipped"]):
        return f"is made of {made.id} now"
    if made.sha256 != kept["sha256"]:
        return "its file has other bytes than when it was encoded"
    if made.error != kept["error"]:
        return f"was {kept['error'] or 'encoded'}, and is {made.error or 'encoded'} now"
    is_same = made.codes is None or (codes is not None and np.array_equal(made.codes, codes))
    return None if is_same else "its codes are others than those made of it now"


def _check_bin(path: Path, codes: Array, bits: int | None) -> None:
    """Raises: BulkError when the `.bin` beside a shard holds other codes."""
    bin_path = path.with_suffix(".bin")
    try:
        mapped = open_codes(bin_path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BulkError(f"{bin_path} is missing or broken: {error}") from error
    num_codes = math.prod(codes.shape[1:])
    num_bytes = codes.nbytes if bits is None else len(codes) * -(-num_codes * bits // 8)
    is_whole = bin_path.stat().st_size == num_bytes
    if mapped.dtype != codes.dtype or not is_whole or not np.array_equal(mapped, codes):
        raise BulkError(f"{bin_path} holds other codes than {path.name}")
