"""A folder of codes → a folder of pictures."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bulk.compute import run_request, samples_of
from bulk.errors import BulkError
from bulk.manifest import Manifest, write_whole
from bulk.shards import codes_of, present_shards, read_shard
from models.media.base import Array
from models.media.image import MEDIA_TYPES
from workers.compute import Engine, Finished
from workers.errors import ServiceError
from workers.files import encode_output
from workers.messages import MAX_SAMPLES_PER_JOB, Resolved

_NUM_WRITERS = 2


@dataclass(frozen=True)
class Decoded:
    """num_pictures: that were written; num_kept: that were there; num_errors: rows without codes, and
    ``failed`` of those with codes, by what went wrong."""

    num_pictures: int
    num_kept: int
    num_errors: int
    failed: tuple[str, ...]


def decode(
    folder: Path,
    out: Path,
    manifest: Manifest,
    engine: Engine,
    *,
    format: str = "png",
    chunk_size: int = 32,
    tells_provenance: bool = True,
) -> Decoded:
    """Write a picture for each row with codes: ``<out>/<id>.png``, flipped ones ``<out>/<id>.flipped.png``.

    Crops but the first are ``<out>/<id>.crop1.png``, ….

    Pictures that are there are kept.

    Raises: BulkError; OSError when the folder can't be written.
    """
    if format not in MEDIA_TYPES:
        raise BulkError(f"--format must be one of {', '.join(MEDIA_TYPES)}, got {format!r:.20}")
    out.mkdir(parents=True, exist_ok=True)
    num_pictures = num_kept = num_errors = 0
    failed: list[str] = []
    shards = sorted(present_shards(folder))
    total = sum(manifest.num_items_of(shard) * manifest.rows_per_item for shard in shards)
    with (
        tqdm(total=total, unit="row", desc="decode") as progress,
        ThreadPoolExecutor(_NUM_WRITERS, "write") as threads,
    ):
        for shard in shards:
            table = read_shard(folder, shard, manifest)
            codes, good = codes_of(table, manifest)
            num_errors += table.num_rows - len(good)
            columns = ["id", "is_flipped", *["crop"] * (manifest.transform.crops > 1)]
            names = table.select(columns).take(good).to_pylist()
            wanted = []
            for number, name in enumerate(names):
                try:
                    path = _path_of(out, name, format)
                except BulkError as error:
                    failed.append(str(error))
                    continue
                if os.path.exists(path):  # noqa: PTH110  # false also for a name that is too long
                    num_kept += 1
                else:
                    wanted.append((path, codes[number]))
            progress.update(table.num_rows - len(wanted))
            size = min(chunk_size, MAX_SAMPLES_PER_JOB)
            for start in range(0, len(wanted), size):
                part = wanted[start : start + size]
                for problem in _decode_some(part, manifest, engine, threads, format, tells_provenance):
                    if problem is None:
                        num_pictures += 1
                    else:
                        failed.append(problem)
                progress.update(len(part))
    return Decoded(num_pictures, num_kept, num_errors, tuple(failed))


def _path_of(out: Path, row: dict[str, Any], format: str) -> Path:
    """Return where a row's picture goes: never outside of the folder, whatever its id says.

    Raises: BulkError.
    """
    name: str = row["id"]
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise BulkError(f"{name!r:.100} can't be the name of a file")
    crop = row.get("crop", 0)
    kind = f".crop{crop}" * (crop > 0) + ".flipped" * row["is_flipped"]
    return out / f"{name}{kind}.{'jpg' if format == 'jpeg' else format}"


def _decode_some(
    part: Sequence[tuple[Path, Array]],
    manifest: Manifest,
    engine: Engine,
    threads: ThreadPoolExecutor,
    format: str,
    tells_provenance: bool,
) -> list[str | None]:
    """Decode and write pictures; return what went wrong with each."""
    request = Resolved(
        operation="decode",
        pipeline=manifest.pipeline,
        priority="batch",
        num_samples=len(part),
        codes=[codes.tolist() for _, codes in part],
        format=format,
    )
    written: list[Future[str | None] | str] = []
    finished = run_request(engine, request)
    samples = samples_of(finished, len(part))
    for index, ((path, _), sample) in enumerate(zip(part, samples, strict=True)):
        if isinstance(sample, ServiceError):
            written.append(f"{path}: {sample}")
        else:
            written.append(threads.submit(_write, path, request, finished, index, tells_provenance))
    return [each if isinstance(each, str) else each.result() for each in written]


def _write(
    path: Path, request: Resolved, finished: Finished, index: int, tells_provenance: bool
) -> str | None:
    data = encode_output(request, finished, index, tells_provenance=tells_provenance)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        return f"{os.fspath(path)}: {error.strerror}"
    return None
