"""The model card of what was imported: where it comes from, and what is known of it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from models.importers.base import Imported, ImportFailed, Source
from models.pipeline import Pipeline

CARD_FILE = "README.md"

_CHUNK_BYTES = 2**20
_MAX_CHARS = 200
_MAX_CARD_BYTES = 2**20


@dataclass(frozen=True)
class Origin:
    """Where a source comes from: its name, the commit of a repository, and the licence that it tells."""

    name: str
    revision: str | None = None
    licence: str | None = None


def licence_in(folder: Path) -> str | None:
    """Return the licence that a folder's model card or licence file tells, in one line."""
    card = folder / CARD_FILE
    try:
        if card.is_file() and card.stat().st_size <= _MAX_CARD_BYTES:
            text = card.read_text("utf-8", errors="replace")
            if text.startswith("---\n") and isinstance(head := yaml.safe_load(text.split("\n---")[0]), dict):
                told = head.get("license_name") or head.get("license")
                if isinstance(told, str):
                    return told
    except (yaml.YAMLError, RecursionError, ValueError):
        pass  # somebody else's card, of which nothing is needed
    for file in sorted(folder.glob("LICEN[CS]E*")):
        if file.is_file():
            with file.open("rb") as opened:
                lines = opened.read(4096).decode("utf-8", "replace").splitlines()
            return next((f"{line.strip()} ({file.name})" for line in lines if line.strip()), None)
    return None


def write_card(
    folder: Path,
    pipeline: Pipeline,
    origin: Origin,
    source: Source,
    imported: Sequence[Imported],
    format_name: str,
    notes: Sequence[str],
    command: str,
) -> None:
    """Write README.md beside a pipeline's files."""
    spec = pipeline.spec
    size = " × ".join(map(str, pipeline.autoencoder.signal_shape))
    rows = [
        ("source", origin.name),
        ("revision", origin.revision or "not told"),
        ("format", format_name),
        ("licence", f"{origin.licence}, as the source tells it" if origin.licence else "not told"),
        ("pictures", f"{size} (channels, height, width)"),
        ("latents", " × ".join(map(str, spec.latents))),
        *([("codes", f"{_times(spec.codes.grid)} of {spec.codes.size}")] if spec.codes else []),
        *([("shares the autoencoder of", spec.shares_with)] if spec.shares_with else []),
        *((f"{each.role} ({each.kind})", f"{_count(each):,} values") for each in imported),
    ]
    files = [f"| {_cell(_name(file, source.path))} | `{sha256(file)}` |" for file in source.files]
    lines = [
        f"# {spec.name}",
        "",
        f"Imported by Smalti {_version()}. The weights are their authors' work, under their licence.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in rows),
        "",
        *(["## Notes", "", *(f"- {_cell(note, 1000)}" for note in notes), ""] if notes else []),
        "## Made by",
        "",
        "```bash",
        command,
        "```",
        "",
        "| file | SHA-256 |",
        "|---|---|",
        *files,
    ]
    (folder / CARD_FILE).write_text("\n".join(lines) + "\n", "utf-8")


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ImportFailed(f"{file}: can't be read: {error.strerror}") from error
    return digest.hexdigest()


def _name(file: Path, source: Path) -> str:
    is_inside = file != source and file.is_relative_to(source)
    return str(file.relative_to(source)) if is_inside else file.name


def _count(imported: Imported) -> int:
    return sum(tensor.numel() for tensor in imported.tensors.values())


def _times(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))


def _cell(text: str, max_chars: int = _MAX_CHARS) -> str:
    """Return text of somebody else's as one line of a table, without markup."""
    line = " ".join(text.split())
    line = line if len(line) <= max_chars else line[:max_chars] + "…"
    return line.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _version() -> str:
    try:
        return version("smalti")
    except PackageNotFoundError:
        return "(from its repository)"
