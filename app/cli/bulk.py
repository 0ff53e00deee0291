"""The commands for folders of codes: many pictures at once, here and now, to the codes that /encode gives."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.answers import tell_json
from app.cli.exit_status import ExitStatus
from app.cli.terminal import CommandError, Json, local_settings, say

if TYPE_CHECKING:
    from bulk.manifest import Manifest
    from bulk.sources import Sources
    from workers.catalog import Catalog
    from workers.engine.engine import Engine
    from workers.settings import WorkerSettings

_MAX_PROCESSES = 16
_MAX_PROBLEMS_TOLD = 20


@dataclass(frozen=True)
class BulkOptions:
    """What `smalti encode --out` takes beside its sources."""

    shard: str | None = None
    shard_size: int | None = None
    flips: bool = False
    crops: int = 1
    pack: bool = False
    column: str | None = None
    decoders: int | None = None
    estimate: bool = False

    @property
    def are_given(self) -> bool:
        return self != BulkOptions()


def encode_folder(
    sources: Sequence[str],
    out: Path,
    pipeline: str | None,
    options: BulkOptions,
    *,
    effort: int,
    return_psnr: bool,
    as_json: bool,
) -> None:
    """Encode all pictures of the sources into shards of the folder ``out``."""
    from importlib.metadata import version

    from bulk.arrow import pyarrow
    from bulk.card import CARD_MARKDOWN, write_card
    from bulk.encode import EncodeConfig, encode, open_folder, plan
    from bulk.estimate import Estimate, estimate
    from bulk.manifest import Share
    from bulk.shards import present_shards
    from bulk.sources import Sources
    from workers.catalog import Catalog

    pyarrow()
    settings = local_settings()
    catalog = Catalog.load(settings.weights_dir, settings.pipelines)
    spec = catalog.spec(pipeline)
    config = EncodeConfig(
        share=Share.parse(options.shard) if options.shard else Share(),
        with_flips=options.flips,
        num_crops=options.crops,
        is_packed=options.pack,
        effort=effort,
        return_psnr=return_psnr,
        num_processes=_num_processes(options.decoders),
        chunk_size=settings.max_batch_size,
        **({} if options.shard_size is None else {"shard_size": options.shard_size}),
    )
    found = Sources(sources, column=options.column, excluded=out)
    from workers.engine.loading import chosen_precision  # brings torch, for which no mistake should wait

    manifest = plan(
        found,
        sources,
        spec,
        config,
        precision=chosen_precision(settings),
        version=version("smalti"),
    )
    if options.estimate:
        manifest.check_fits(out)
        present = frozenset(present_shards(out)) if out.is_dir() else frozenset[int]()
        made = estimate(found, manifest, present, _engine(settings, catalog, manifest), config)
        if as_json:
            hours = made.by_machines(config.share.of)
            tell_json({**asdict(made), "pictures_per_s": made.pictures_per_s, "hours_by_machines": hours})
        else:
            typer.echo(made)
        return
    open_folder(out, manifest)
    _tell_problems(found)
    if pipeline is None:
        size = f"{manifest.transform.width_px} x {manifest.transform.height_px} px"
        say(f"--pipeline was left out, so {manifest.pipeline} encodes, at {size}; the card tells how it fits")
    engine = _engine(settings, catalog, manifest)
    summary = encode(out, manifest, found, engine, config)
    say(str(summary))
    missing = manifest.num_shards - len(present_shards(out))
    if missing:
        say(f"{missing} of {manifest.num_shards} shards are still missing; the card comes with the last")
        if summary.num_rows:
            num_items = summary.num_rows // manifest.rows_per_item
            num_left = manifest.sources.num_items - sum(map(manifest.num_items_of, present_shards(out)))
            say(str(Estimate(num_items, summary.elapsed_s, num_left)))
        if as_json:
            tell_json({"folder": str(out), **asdict(summary), "num_shards_missing": missing, "card": None})
        return
    card = write_card(out, manifest)
    say(
        f"{card.num_rows} rows, {card.num_errors} errors, {card.num_codes_used} of {card.codebook_size} codes"
        f" used, perplexity {card.perplexity:.0f}: {out / CARD_MARKDOWN}"
    )
    if as_json:
        told = {"folder": str(out), **asdict(summary), "num_shards_missing": 0}
        tell_json({**told, "card": card.model_dump(mode="json")})
    else:
        typer.echo(out)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `smalti encode … --out DIR` wrote.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE", help="Where its pictures are, if elsewhere than they were."),
    ] = None,
    rows: Annotated[int, typer.Option(help="How many pictures to encode again.", min=1)] = 64,
    decoders: Annotated[
        int | None, typer.Option(help="Processes that decode pictures.", min=1, max=64)
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a folder of codes: all shards, and a sample of pictures encoded again."""
    from bulk.manifest import Manifest
    from bulk.sources import Sources
    from bulk.verify import verify as verify_folder
    from workers.catalog import Catalog

    manifest = Manifest.load(folder)
    settings = local_settings()
    catalog = Catalog.load(settings.weights_dir, settings.pipelines)
    name = _pipeline_of(manifest, catalog)
    manifest = manifest.model_copy(update={"pipeline": name})
    if not (sources or manifest.sources.given):
        raise CommandError(f"{folder} doesn't say where its sources were: name them behind it")
    found = Sources(sources or manifest.sources.given, column=manifest.sources.column, excluded=folder)
    verdict = verify_folder(
        folder,
        manifest,
        found,
        lambda: _engine(settings, catalog, manifest),
        num_checked=rows,
        num_processes=_num_processes(decoders),
    )
    for problem in verdict.problems[:_MAX_PROBLEMS_TOLD]:
        say(problem)
    if as_json:
        tell_json(asdict(verdict))
    told = f"{verdict.num_rows} rows read, {verdict.num_checked} of them encoded again"
    if verdict.problems:
        raise CommandError(f"{told}: {len(verdict.problems)} problems, named above")
    if not as_json:
        typer.echo(f"{told}: all as they should be")


def decode_folder(folder: Path, out: Path, pipeline: str | None, format: str, *, as_json: bool) -> None:
    """Decode a folder of codes into a folder of pictures."""
    from bulk.decode import decode
    from bulk.manifest import Manifest
    from workers.catalog import Catalog

    manifest = Manifest.load(folder)
    if out.exists() and not out.is_dir():
        raise CommandError(f"--out must name a folder, and {out} is a file")
    settings = local_settings()
    catalog = Catalog.load(settings.weights_dir, settings.pipelines)
    name = _pipeline_of(manifest, catalog, pipeline)
    manifest = manifest.model_copy(update={"pipeline": name})
    engine = _engine(settings, catalog, manifest)
    done = decode(
        folder,
        out,
        manifest,
        engine,
        format=format,
        chunk_size=settings.max_batch_size,
        tells_provenance=settings.provenance == "on",
    )
    for problem in done.failed[:_MAX_PROBLEMS_TOLD]:
        say(problem)
    say(
        f"{done.num_pictures} pictures written, {done.num_kept} were there already, {done.num_errors} rows"
        " have no codes"
    )
    if as_json:
        tell_json({"folder": str(out), **asdict(done)})
    if done.failed:
        raise CommandError(f"{len(done.failed)} pictures could not be made, named above", ExitStatus.FAILED)
    if not as_json:
        typer.echo(out)


def _pipeline_of(manifest: "Manifest", catalog: "Catalog", asked: str | None = None) -> str:
    """Return the name of a pipeline with the folder's tokenizer: the one asked for, or the first.

    Raises: CommandError.
    """
    names = catalog.names if asked is None else [asked]
    for name in names:
        codes = catalog.spec(name).codes
        if codes is not None and codes.fingerprint == manifest.tokenizer:
            return name
    raise CommandError(
        f"the codes were made by the tokenizer {manifest.tokenizer} of {manifest.pipeline}, which is not that"
        f" of {', '.join(names)}"
    )


def _tell_problems(sources: "Sources") -> None:
    """Say which files of the sources can't be used at all."""
    if (listing := sources.listing) is None or not listing.num_problems:
        return
    for problem in listing.problems:
        say(problem)
    say(f"files of the sources that can't be used, each a row with an error: {listing.num_problems}")


def _engine(settings: "WorkerSettings", catalog: "Catalog", manifest: "Manifest") -> "Engine":
    from workers.engine.loading import load_engine

    return load_engine(settings, catalog, [manifest.pipeline])


def _num_processes(asked: int | None) -> int:
    return asked or min(_MAX_PROCESSES, os.cpu_count() or 1)
