"""A foreign checkpoint becomes a pipeline's folder: whole, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError

from models.importers.base import Imported, ImportFailed, Source
from models.importers.building import build
from models.importers.card import Origin, licence_in, write_card
from models.importers.formats import read_source
from models.importers.hub import PREFIX, fetch
from models.importers.sources import open_source
from models.options import ConfigError
from models.pipeline import Pipeline
from models.spec import SPEC_FILE, PipelineSpec, check_folder_name

_SPARE_BYTES = 2**20  # for what stands beside the tensors

Say = Callable[[str], None]


@dataclass(frozen=True)
class ImportRequest:
    """What is imported, and to where.

    source: a file, a folder, or "hf:OWNER/NAME[/PATH][@REVISION]". out: the folder to write. format_name: of
    ``IMPORTERS``; None finds it. autoencoder: of a prior, the name of a folder beside ``out``. name: the
    pipeline's; None is that of the folder. settings: what a format asks of a person, and ``weights``: "ema"
    or "model". command: for the model card.
    """

    source: str
    out: Path
    format_name: str | None = None
    autoencoder: str | None = None
    name: str | None = None
    config: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    replaces: bool = False
    only_checks: bool = False
    command: str = "smalti import"


def import_checkpoint(request: ImportRequest, say: Say) -> Pipeline:
    """Write the pipeline's folder and return it as it was loaded from there, for a last check.

    Everything is written in a hidden folder beside ``out``, which takes its place at the end. say: is told
    what goes on.

    Raises: ConfigError saying what was found and expected; then there is nothing new, and what was is there.
    """
    out = request.out.absolute()
    name = request.name or out.name
    for option, value in (("--out", out.name), ("--name", name), ("--autoencoder", request.autoencoder)):
        if value is not None:
            _check_name(option, value)
    if out.exists() and not request.replaces and not request.only_checks:
        raise ImportFailed(f"--out: {out} is there already; take another name, or say --overwrite")
    if request.autoencoder and not (out.parent / request.autoencoder / SPEC_FILE).is_file():
        raise ImportFailed(
            f"--autoencoder: there is no {request.autoencoder}/{SPEC_FILE} beside {out}; import that first"
        )
    _check_is_new(name, out)
    with _scratch_beside(out) as scratch:
        source, origin = _opened(request, scratch, say)
        settings = {key: value for key, value in request.settings.items() if key != "weights"}
        imported, format_name = read_source(source, settings, request.format_name)
        notes: list[str] = []

        def tell(note: str) -> None:
            if note not in notes:
                notes.append(note)
                say(f"note: {note}")

        for note in (*source.notes, *(note for each in imported for note in each.notes)):
            tell(note)
        kinds = " and ".join(f"{each.role} of kind {each.kind}" for each in imported)
        say(f"read as {format_name}: {kinds}")
        _check_room(imported, scratch)
        if request.autoencoder:  # for ``shares_with``, which names a folder beside
            _link_pipelines(out.parent, request.autoencoder, scratch)
        built = scratch / out.name
        pipeline = build(imported, built, name, request.autoencoder, tell)
        write_card(built, pipeline, origin, source, imported, format_name, notes, request.command)
        _sync(built)
        if not request.only_checks:
            _put_in_place(built, out, scratch)
    return pipeline


def _check_name(option: str, name: str) -> None:
    try:
        check_folder_name(name)
    except ConfigError as error:
        raise ImportFailed(f"{option}: {error}") from error


def _check_is_new(name: str, out: Path) -> None:
    """Check that no other folder there has a pipeline of this name, with which no service would start."""
    for file in sorted(out.parent.glob(f"*/{SPEC_FILE}")):
        try:
            its = PipelineSpec.load(file).name
        except ConfigError:
            continue  # which a service tells, or this import replaces
        if its == name and file.parent != out:
            raise ImportFailed(f"--name: the pipeline in {file.parent} is named {name!r}; take another name")


@contextmanager
def _scratch_beside(out: Path) -> Iterator[Path]:
    """Give a folder on the same disk, whose name no pipeline has; it is gone afterwards.

    Raises: ImportFailed where the disk is full, or nothing may be written there.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            yield Path(folder)
    except ConfigError:
        raise
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        free = shutil.disk_usage(out.parent).free if out.parent.is_dir() else 0
        raise ImportFailed(
            f"{out} was not written, and nothing of it is left: {reason}; {free:,} bytes are free there"
        ) from error


def _opened(request: ImportRequest, scratch: Path, say: Say) -> tuple[Source, Origin]:
    """Return what is to be imported, fetched first where it is elsewhere."""
    if request.source.startswith(PREFIX):
        fetched = fetch(request.source, say)
        path, origin = fetched.path, fetched.origin
    else:
        path = Path(request.source)
        folder = path if path.is_dir() else path.parent
        origin = Origin(path.absolute().name, licence=licence_in(folder) if path.exists() else None)
    say(f"reading {path}")
    source = open_source(
        path, scratch=scratch, config=request.config, weights=request.settings.get("weights")
    )
    return source, origin


def _check_room(imported: list[Imported], scratch: Path) -> None:
    """Check that the tensors fit the disk before any is written. Raises: ImportFailed."""
    needed = _SPARE_BYTES + sum(each.num_bytes for each in imported)
    if (free := shutil.disk_usage(scratch).free) < needed:
        raise ImportFailed(
            f"the disk of {scratch.parent} is too full: {needed:,} bytes are needed, {free:,} are free"
        )


def _link_pipelines(folder: Path, name: str, scratch: Path) -> None:
    """Let a pipeline, and the one that it shares with, stand beside what is built."""
    spec = PipelineSpec.load(folder / name / SPEC_FILE)
    for each in {name, spec.shares_with or name}:
        (scratch / each).symlink_to(folder / each, target_is_directory=True)


def _put_in_place(built: Path, out: Path, scratch: Path) -> None:
    """Move a folder to its place; what was there goes with the scratch folder."""
    former = scratch / "former"
    if out.exists():
        out.rename(former)
    try:
        built.rename(out)
    except OSError:
        if former.exists():
            former.rename(out)
        raise
    _sync_one(out.parent)


def _sync(folder: Path) -> None:
    """Have the files of a folder, and it, on the disk before it is put in its place."""
    for file in (*folder.iterdir(), folder):
        _sync_one(file)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
