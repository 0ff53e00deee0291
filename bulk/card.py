"""The data card of a folder of codes: what is in it, and how well its tokenizer fits it."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from bulk.manifest import Manifest, write_whole
from bulk.shards import codes_of, read_shard
from models.media.base import Array

CARD_JSON, CARD_MARKDOWN, HISTOGRAM = "card.json", "card.md", "histogram.png"

_MAX_KINDS_TOLD = 20
_HASHED_BYTES = 8  # of a digest: in 100 million rows, two that are not equal agree with a chance of 0.0003


class Card(BaseModel):
    """What a folder holds. Duplicates: rows that repeat an earlier one; of each picture the first counts.

    perplexity: 2 to the entropy of the codes: as many as if all were used equally often.
    """

    num_rows: int
    num_errors: int
    errors: dict[str, int]
    codebook_size: int
    num_codes_used: int
    perplexity: float
    most_frequent: list[tuple[int, int]]
    num_duplicate_files: int
    num_duplicate_codes: int
    smallest_px: tuple[int, int] | None
    largest_px: tuple[int, int] | None
    psnr_db: dict[str, float] | None


def write_card(folder: Path, manifest: Manifest) -> Card:
    """Read all shards one by one, write the card beside them and return it.

    Raises: BulkError; OSError.
    """
    counts = np.zeros(manifest.codebook_size, np.int64)
    errors: Counter[str] = Counter()
    file_hashes, code_hashes, psnrs, sizes = [], [], [], []
    num_rows = 0
    for shard in range(manifest.num_shards):
        table = read_shard(folder, shard, manifest)
        num_rows += table.num_rows
        codes, good = codes_of(table, manifest)
        counts += np.bincount(codes.reshape(-1), minlength=manifest.codebook_size)
        errors.update(_kind(error) for error in table.column("error").drop_null().to_pylist())
        is_first = np.arange(table.num_rows) % manifest.rows_per_item == 0  # of its picture
        first = table.filter(is_first)
        file_hashes.append(_prefixes(first.column("sha256").drop_null().to_pylist()))
        code_hashes.append(_hashes(codes[is_first[good]]))
        shape = first.select(["width_px", "height_px"]).drop_null()
        sides = [shape.column(name).to_numpy().astype(np.int64) for name in shape.column_names]
        sizes += _extremes(np.stack(sides, 1))
        if manifest.return_psnr:
            psnrs.append(table.column("psnr_db").drop_null().to_numpy())
    card = Card(
        num_rows=num_rows,
        num_errors=errors.total(),
        errors=dict(sorted(errors.items(), key=lambda each: (-each[1], each[0]))[:_MAX_KINDS_TOLD]),
        codebook_size=manifest.codebook_size,
        num_codes_used=int(np.count_nonzero(counts)),
        perplexity=_perplexity(counts),
        most_frequent=[
            (int(code), int(counts[code])) for code in np.argsort(-counts, kind="stable")[:5] if counts[code]
        ],
        num_duplicate_files=_num_repeated(np.concatenate(file_hashes)),
        num_duplicate_codes=_num_repeated(np.concatenate(code_hashes)),
        smallest_px=min(sizes, key=_area) if sizes else None,
        largest_px=max(sizes, key=_area) if sizes else None,
        psnr_db=_psnr(np.concatenate(psnrs)) if psnrs else None,
    )
    has_picture = _draw_histogram(folder / HISTOGRAM, counts)
    write_whole(folder / CARD_JSON, (card.model_dump_json(indent=2) + "\n").encode())
    write_whole(folder / CARD_MARKDOWN, _markdown(card, manifest, has_picture=has_picture).encode())
    return card


def _kind(error: str) -> str:
    """Return an error without its numbers, so that those of a kind are the same."""
    return re.sub(r"\d+(\.\d+)?", "N", error)


def _prefixes(digests: list[bytes]) -> Array:
    return np.frombuffer(b"".join(digest[:_HASHED_BYTES] for digest in digests), np.uint64)


def _hashes(codes: Array) -> Array:
    import hashlib

    return _prefixes([hashlib.blake2b(row, digest_size=_HASHED_BYTES).digest() for row in codes])


def _num_repeated(hashes: Array) -> int:
    return len(hashes) - len(np.unique(hashes))


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _extremes(sizes: Array) -> list[tuple[int, int]]:
    """Return the sizes (N, 2) with the smallest and the largest area."""
    if not len(sizes):
        return []
    areas = sizes.prod(1)
    return [(int(width), int(height)) for width, height in sizes[[areas.argmin(), areas.argmax()]]]


def _perplexity(counts: Array) -> float:
    if not counts.any():
        return 0.0
    shares = counts[counts > 0] / counts.sum()
    return round(float(2 ** -(shares * np.log2(shares)).sum()), 3)


def _psnr(values: Array) -> dict[str, float] | None:
    if not len(values):
        return None
    low, median = np.percentile(values, [5, 50])
    figures = {"mean": values.mean(), "lowest": values.min(), "percentile_5": low, "median": median}
    return {name: round(float(value), 3) for name, value in figures.items()}


def _markdown(card: Card, manifest: Manifest, *, has_picture: bool) -> str:
    transform = manifest.transform
    shape = " x ".join(map(str, manifest.codes_shape))
    used = 100 * card.num_codes_used / card.codebook_size
    lines: list[tuple[str, Any]] = [
        ("rows", card.num_rows),
        ("of them errors", card.num_errors),
        (
            "pictures",
            f"{manifest.sources.num_items}{f', {transform.crops} crops of each' * (transform.crops > 1)}"
            f"{', each also flipped' * transform.flips}",
        ),
        ("files that repeat an earlier one", card.num_duplicate_files),
        ("codes that repeat those of an earlier picture", card.num_duplicate_codes),
        ("tokenizer", f"`{manifest.tokenizer}` of {manifest.pipeline}, in {manifest.precision}"),
        ("codes a row", f"{shape}, of {card.codebook_size}"),
        ("codes used", f"{card.num_codes_used} ({used:.1f} %)"),
        ("perplexity", card.perplexity),
        ("most frequent codes", ", ".join(f"{code} ({number}×)" for code, number in card.most_frequent)),
        ("transform", f"{transform.width_px} x {transform.height_px} px: {transform.rule}"),
    ]
    if card.smallest_px and card.largest_px:
        sizes = [f"{width} x {height}" for width, height in (card.smallest_px, card.largest_px)]
        lines.append(("pictures' sizes in px, by area", f"{sizes[0]} to {sizes[1]}"))
    if card.psnr_db:
        lines.append(("PSNR in dB", ", ".join(f"{name} {value}" for name, value in card.psnr_db.items())))
    text = "# Codes\n\n| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in lines)
    if card.errors:
        text += "\n## Errors\n\n| number | what is wrong |\n|---|---|\n"
        text += "".join(f"| {number} | {kind.replace('|', ' ')} |\n" for kind, number in card.errors.items())
    if has_picture:
        text += f"\n![How often each code is used, the most frequent first]({HISTOGRAM})\n"
    return text


def _draw_histogram(path: Path, counts: Array) -> bool:
    """Draw how often codes are used, where matplotlib is installed; say whether it was drawn."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    import io

    figure = Figure(figsize=(5, 2.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot(np.sort(counts)[::-1], linewidth=1)
    axes.set(xlabel="code, the most frequent first", ylabel="times used", yscale="symlog", ylim=(0, None))
    buffer = io.BytesIO()
    figure.savefig(buffer, metadata={"Software": None})
    write_whole(path, buffer.getvalue())
    return True
