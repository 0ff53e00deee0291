"""The command line: `smalti --help`. Results go to standard output, progress to standard error.

Commands import what they need when they run, so that help and mistakes are answered at once.
"""

import os
import sys
from typing import Annotated

import typer

from app.cli.compute import decode, encode, generate
from app.cli.service import check_seeds, queue_server, serve, up, worker
from app.cli.terminal import CommandError, say
from app.cli.training import data_sets, evaluate, train
from app.processes.supervisor import end_with_stdin

cli = typer.Typer(
    help="Generate, encode and decode images with two-stage latent models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (up, serve, worker, generate, encode, decode, evaluate, check_seeds):
    cli.command()(command)
cli.command(hidden=True)(queue_server)
cli.add_typer(train, name="train")
cli.add_typer(data_sets, name="data")


def main() -> None:
    """Run the command line; a failure with a known reason ends it with that reason alone."""
    # Compute threads that spin while they wait take the cores from each other: two processes on two
    # cores then run ten times slower, not twice. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        cli()
    except (SystemExit, KeyboardInterrupt):
        raise
    except _known_failures() as error:
        say(str(error))
        sys.exit(1)


def _known_failures() -> tuple[type[Exception], ...]:
    from models.options import ConfigError
    from workers.errors import ServiceError
    from workers.queue.embedded_server import ServerNotFound, ServerNotStarted
    from workers.settings import SettingsError

    return (CommandError, ConfigError, ServiceError, SettingsError, ServerNotFound, ServerNotStarted)


@cli.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    if supervised:
        end_with_stdin()
    if version:
        from importlib.metadata import version as version_of

        typer.echo(version_of("smalti"))
        raise typer.Exit


if __name__ == "__main__":
    main()
