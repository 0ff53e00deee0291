"""The command line: `smalti --help`. Results go to standard output, progress to standard error.

Commands import what they need when they run, so that help and mistakes are answered at once.
"""

import logging
import os
import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from app.cli.batch import batch
from app.cli.bulk import verify
from app.cli.codes import decode, encode
from app.cli.exit_status import status_of
from app.cli.generate import generate
from app.cli.importing import export_model, import_model
from app.cli.jobs import cancel, jobs, pipelines
from app.cli.keys import new_key
from app.cli.loading import load, unload
from app.cli.service import check_seeds, queue_server, serve, up, worker
from app.cli.terminal import CommandError, say
from app.cli.training import data_sets, evaluate, train
from app.processes.supervisor import end_with_stdin, tell_reason

cli = typer.Typer(
    help="Generate, encode and decode images with two-stage latent models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (
    up, serve, worker, generate, encode, decode, batch, verify, pipelines, load, unload, jobs, cancel,
    evaluate, check_seeds, new_key,
):  # fmt: skip
    cli.command()(command)
cli.command("import")(import_model)
cli.command("export")(export_model)
cli.command(hidden=True)(queue_server)
cli.add_typer(train, name="train")
cli.add_typer(data_sets, name="data")

_MAX_REASON_CHARS = 300


@dataclass
class _Run:
    """How this run of the command line reports failures; its options say."""

    shows_tracebacks: bool = False
    is_supervised: bool = False  # by a process that says why this one ended; a surprise is logged here, too


def main() -> None:
    """Run the command line; a failure ends it with one line, and with its traceback after ``--debug``."""
    # Compute threads that spin while they wait take the cores from each other: two processes on two
    # cores then run ten times slower, not twice. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _open_standard_streams()
    run = _Run()
    try:
        cli(obj=run)
    except Exception as error:
        known = _known_reason(error)
        has_told = run.is_supervised and tell_reason(known or _surprise(error))
        if run.shows_tracebacks or (has_told and not known):
            raise
        if not has_told:
            told = known or f"{_surprise(error)}; for the traceback, run it again as `smalti --debug …`"
            say(told, logging.ERROR)
        sys.exit(int(status_of(error)))


def _open_standard_streams() -> None:
    """Open those of the three standard streams that are closed, or the next file would take their place."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _known_reason(error: Exception) -> str | None:
    """Return in one line why a command can't be carried out, or None for an error that nobody foresaw."""
    from models.options import ConfigError
    from workers.errors import ServiceError
    from workers.queue.embedded_server import ServerNotFound, ServerNotStarted
    from workers.settings import SettingsError

    known: tuple[type[Exception], ...] = (
        CommandError, ConfigError, ServiceError, SettingsError, ServerNotFound, ServerNotStarted,
    )  # fmt: skip
    if (client := sys.modules.get("smalti")) is not None:
        known = (*known, client.SmaltiError)
    match error:
        case _ if isinstance(error, known):
            return " ".join(str(error).split())
        case ModuleNotFoundError(name=str() as name):
            return (
                f"the Python module {name} is missing: install Smalti with all it needs, in a venv of its own"
            )
        case OSError(filename=str() | bytes() as filename, strerror=str() as strerror):
            return f"{os.fsdecode(filename)}: {strerror}"
    return None


def _surprise(error: Exception) -> str:
    words = " ".join(str(error).split())
    kind = type(error).__name__
    return f"{kind}: {words[:_MAX_REASON_CHARS]}" if words else kind


@cli.callback(invoke_without_command=True)
def about(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    run = context.ensure_object(_Run)
    run.shows_tracebacks, run.is_supervised = debug, supervised
    if supervised:
        end_with_stdin()
    if version:
        from importlib.metadata import version as version_of

        typer.echo(version_of("smalti"))
        raise typer.Exit


if __name__ == "__main__":
    main()
