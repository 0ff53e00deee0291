"""Pictures of sources → a folder of codes, shard by shard; a run goes on with what is missing."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from bulk.arrow import pyarrow
from bulk.compute import encode_pixels
from bulk.decoding import Picture, Prefetch
from bulk.errors import BulkError
from bulk.items import Item
from bulk.manifest import MAX_CROPS, Manifest, Share, SourcesInfo, Transform
from bulk.remote_files import is_secret
from bulk.shards import Row, present_shards, remove_partial, write_shard
from bulk.sources import Sources
from models.media.base import Array
from models.media.image import ImageSpec
from models.options import Precision
from models.spec import PipelineSpec
from workers.compute import Engine
from workers.errors import ServiceError

_MAX_GIVEN = 100  # sources that a manifest names
_WAITING_SHARE = 0.1  # of the time, from which on what is waited for is the limit


@dataclass(frozen=True)
class EncodeConfig:
    """What a run is asked for. shard_size: pictures a shard; num_processes: that decode pictures."""

    share: Share = field(default_factory=Share)
    shard_size: int = 8192
    with_flips: bool = False
    num_crops: int = 1
    is_packed: bool = False
    effort: int = 0
    return_psnr: bool = False
    num_processes: int = 1
    chunk_size: int = 32

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise BulkError(f"--shard-size must be 1 or more, got {self.shard_size}")
        if not 1 <= self.num_crops <= MAX_CROPS:
            raise BulkError(f"--crops must be 1 to {MAX_CROPS}, got {self.num_crops}")

    def chunk_items(self, manifest: Manifest) -> int:
        """Return how many pictures are encoded at once."""
        return max(1, self.chunk_size // manifest.rows_per_item)


@dataclass(frozen=True)
class Summary:
    """What a run did, in rows, and the seconds that it waited for pictures, encoded and wrote.

    reading_s, decoding_s: how long the stages before were busy, decoding in all processes together.
    """

    num_rows: int = 0
    num_errors: int = 0
    num_kept: int = 0
    elapsed_s: float = 0.0
    waiting_s: float = 0.0
    encoding_s: float = 0.0
    writing_s: float = 0.0
    reading_s: float = 0.0
    decoding_s: float = 0.0

    @property
    def limit(self) -> str:
        """Which stage the others waited for."""
        if self.waiting_s >= _WAITING_SHARE * self.elapsed_s:
            return "reading the sources" if self.reading_s > 0.8 * self.elapsed_s else "decoding pictures"
        return "the tokenizer" if self.encoding_s >= self.writing_s else "writing shards"

    def __str__(self) -> str:
        """Return one line for people."""
        kept = f", {self.num_kept} were there already" * bool(self.num_kept)
        line = f"{self.num_rows} rows encoded, {self.num_errors} of them errors{kept}"
        if not self.num_rows:
            return line
        shares = {
            "encoding": self.encoding_s,
            "waiting for pictures": self.waiting_s,
            "writing": self.writing_s,
        }
        told = ", ".join(f"{100 * spent_s / self.elapsed_s:.0f} % {name}" for name, spent_s in shares.items())
        rate = self.num_rows / self.elapsed_s
        return f"{line}; {rate:.1f} a second in {self.elapsed_s:.1f} s: {told}; the limit is {self.limit}"


def plan(
    sources: Sources,
    given: Sequence[str],
    pipeline: PipelineSpec,
    config: EncodeConfig,
    *,
    precision: Precision,
    version: str,
) -> Manifest:
    """Return what the folder of these sources is to hold.

    Raises: BulkError when there is nothing to encode, or no codes to make.
    """
    medium, codes = pipeline.medium, pipeline.codes
    if codes is None or not isinstance(medium, ImageSpec):
        raise BulkError(f"{pipeline.name} makes no codes of pictures: name another with --pipeline")
    if config.effort and not pipeline.can_search:
        raise BulkError(f"--effort: {pipeline.name} can't search for codes; leave it out")
    listing = sources.list(config.shard_size)
    return Manifest(
        format=2 if config.is_packed else 1,
        smalti=version,
        pipeline=pipeline.name,
        tokenizer=codes.fingerprint,
        precision=precision,
        grid=codes.grid,
        num_codebooks=codes.num_codebooks,
        codebook_size=codes.size,
        bits_per_code=(codes.size - 1).bit_length() if config.is_packed else None,
        effort=config.effort,
        return_psnr=config.return_psnr,
        transform=Transform(
            width_px=medium.width_px,
            height_px=medium.height_px,
            channels=medium.channels,
            flips=config.with_flips,
            crops=config.num_crops,
        ),
        shard_size=config.shard_size,
        sources=SourcesInfo(
            given=() if len(given) > _MAX_GIVEN or any(map(is_secret, given)) else tuple(given),
            column=sources.column,
            num_items=listing.num_items,
            digest=listing.digest,
        ),
    ).check()


def open_folder(folder: Path, manifest: Manifest) -> None:
    """Make the folder, or check that it is one that this run may go on with.

    Raises: BulkError; OSError.
    """
    pyarrow()
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write(folder)
    remove_partial(folder)


def encode(
    folder: Path, manifest: Manifest, sources: Sources, engine: Engine, config: EncodeConfig
) -> Summary:
    """Write the shards of this run's share that are missing.

    A picture that can't be used is a row with an error.

    Raises: BulkError when the sources changed meanwhile; OSError when a shard can't be written.
    """
    present = present_shards(folder)
    own = [shard for shard in range(manifest.num_shards) if config.share.has(shard)]
    missing = frozenset(own) - present
    num_rows = {shard: manifest.num_items_of(shard) * manifest.rows_per_item for shard in own}
    num_kept = sum(num_rows[shard] for shard in own if shard in present)
    if not missing:
        return Summary(num_kept=num_kept)
    began_s = time.perf_counter()
    waiting_s = encoding_s = writing_s = 0.0
    num_errors = num_done = 0
    rows: list[Row] = []
    with (
        tqdm(total=sum(num_rows.values()), initial=num_kept, unit="row", desc="encode") as progress,
        Prefetch(
            wanted_items(sources, manifest, missing),
            manifest.medium,
            chunk_size=config.chunk_items(manifest),
            shard_size=manifest.shard_size,
            num_processes=config.num_processes,
            num_crops=manifest.transform.crops,
        ) as prefetch,
    ):
        chunks = iter(prefetch)
        while True:
            since_s = time.perf_counter()
            chunk = next(chunks, None)
            waiting_s += (now_s := time.perf_counter()) - since_s
            if chunk is None:
                break
            made = encode_pictures(chunk.pictures, manifest, engine)
            encoding_s += (since_s := time.perf_counter()) - now_s
            rows += made
            shard = chunk.first // manifest.shard_size
            if len(rows) == num_rows[shard]:
                write_shard(folder, shard, rows, manifest)
                rows, num_done = [], num_done + 1
            writing_s += time.perf_counter() - since_s
            num_errors += sum(row.error is not None for row in made)
            progress.set_postfix(errors=num_errors, refresh=False)
            progress.update(len(made))
        times = prefetch.times
    if num_done != len(missing):
        raise BulkError("the sources changed while they were encoded: start again, when they are at rest")
    return Summary(
        num_rows=sum(num_rows[shard] for shard in missing),
        num_errors=num_errors,
        num_kept=num_kept,
        elapsed_s=time.perf_counter() - began_s,
        waiting_s=waiting_s,
        encoding_s=encoding_s,
        writing_s=writing_s,
        reading_s=times.reading_s,
        decoding_s=times.decoding_s,
    )


def encode_pictures(pictures: Sequence[Picture], manifest: Manifest, engine: Engine) -> list[Row]:
    """Return the rows of pictures, crop by crop; where there are flips, each crop's follows it."""
    transform = manifest.transform
    wanted: list[tuple[Picture, int, bool, Array | None]] = []
    for picture in pictures:
        for number in range(transform.crops):
            pixels = picture.crops[number].pixels if picture.crops else None
            wanted.append((picture, number, False, pixels))
            if transform.flips:
                wanted.append((picture, number, True, None if pixels is None else pixels[:, ::-1]))
    good = [pixels for *_, pixels in wanted if pixels is not None]
    encoded = iter(
        encode_pixels(
            engine, manifest.pipeline, good, effort=manifest.effort, return_psnr=manifest.return_psnr
        )
    )
    rows = []
    for picture, number, is_flipped, pixels in wanted:
        codes, psnr_db, error = None, None, picture.error
        if pixels is not None:
            result = next(encoded)
            if isinstance(result, ServiceError):
                error = str(result)
            else:
                codes, psnr_db = result[0].astype(manifest.dtype), result[1]
        box = picture.crops[number].box if picture.crops else None
        rows.append(
            Row(picture.id, is_flipped, codes, box, picture.size, picture.sha256, psnr_db, error, crop=number)
        )
    return rows


def wanted_items(sources: Sources, manifest: Manifest, missing: frozenset[int]) -> Iterator[tuple[int, Item]]:
    """Yield the numbers and items of the missing shards; after the last of them, nothing is walked over."""
    last = max(missing)
    for number, item in enumerate(sources.walk_unchanged()):
        shard = number // manifest.shard_size
        if shard > last:
            return
        if shard in missing:
            yield number, item
