"""The commands that bring models in, and take them out; they import what they need when they run."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.terminal import CommandError, local_settings, say


def import_model(
    source: Annotated[
        str, typer.Argument(help="A file, a folder, or hf:OWNER/NAME@REVISION.", metavar="SOURCE")
    ],
    out: Annotated[Path, typer.Option(help="The pipeline's folder to write, such as weights/NAME.")],
    format: Annotated[
        str | None, typer.Option(help="Of docs/checkpoints.md; it is found from the names of the tensors.")
    ] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="Of a prior: the pipeline beside --out that has its autoencoder.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The pipeline's; else the folder's.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="The YAML or JSON of the weights, where none stands beside them.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="What the file doesn't tell; may be repeated."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder that is there.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Do all of it, and keep nothing.")] = False,
) -> None:
    """Make a pipeline of a public checkpoint; prints its folder and what to do next.

    Nothing in the file runs, and nothing half-written is left.
    """
    from models.importers.importing import ImportRequest, import_checkpoint

    request = ImportRequest(
        source=source,
        out=out,
        format_name=format,
        autoencoder=autoencoder,
        name=name,
        config=config,
        settings=dict(map(_setting, set or ())),
        replaces=overwrite,
        only_checks=check,
        command=shlex.join(["smalti", *sys.argv[1:]]),
    )
    pipeline = import_checkpoint(request, say)
    if check:
        say("it can be imported; nothing was kept")
        return
    typer.echo(out)
    elsewhere = out.absolute().parent != local_settings().weights_dir.absolute()
    where = f"SMALTI_WEIGHTS_DIR={shlex.quote(str(out.parent))} " if elsewhere else ""
    typer.echo(f"{where}smalti up --pipeline {pipeline.spec.name}")


def export_model(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline's folder, such as weights/NAME.")],
    out: Annotated[Path, typer.Option(help="A folder that isn't there yet.")],
    format: Annotated[str, typer.Option(help="Only diffusers is there.")] = "diffusers",
    only: Annotated[
        str | None, typer.Option(help="autoencoder or prior, where the format can't hold both.")
    ] = None,
) -> None:
    """Write a pipeline in another project's format; prints the folder."""
    from models.exporters.exporting import export_pipeline

    if only not in (None, "autoencoder", "prior"):
        raise CommandError(f"--only must be autoencoder or prior, got {only!r}")
    export_pipeline(pipeline, out, format, only)
    typer.echo(out)


def _setting(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise CommandError(f"--set must be KEY=VALUE, got {text!r:.100}")
    return key, value
