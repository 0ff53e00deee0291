"""What commands share: options, and how they speak to the person at the terminal, on standard error."""

import logging
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.exit_status import ExitStatus
from workers.logs import is_json

if TYPE_CHECKING:
    from app.settings import Settings
    from workers.settings import WorkerSettings

API_KEY_VARIABLE = "SMALTI_API_KEY"  # never an option: other users see the command lines of processes
DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help=f"Ask the service there; its key is in {API_KEY_VARIABLE}."),
]
ServiceUrl = Annotated[
    str, typer.Option("--url", metavar="URL", help=f"Of the service; its key is in {API_KEY_VARIABLE}.")
]
Json = Annotated[bool, typer.Option("--json", help="Only JSON on standard output.")]

NumSteps = Annotated[int | None, typer.Option(help="Denoising steps.", min=1)]
GuidanceScale = Annotated[float | None, typer.Option(help="How strongly class or prompt are enforced.")]
SamplerChoice = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        help="euler, heun, dpmpp_2m, ddim or ddpm; of a masked prior, confidence or ancestral.",
    ),
]
Temperature = Annotated[float | None, typer.Option(help="Of draws of codes; 0 takes the likeliest.", min=0)]


class CommandError(Exception):
    """A command that can't be carried out; the message says what to change."""

    def __init__(self, message: str, exit_status: ExitStatus = ExitStatus.REFUSED) -> None:
        self.exit_status = exit_status
        super().__init__(message)


def say(line: str, level: int = logging.INFO) -> None:
    """Tell the person at the terminal, or the log where that is for programs."""
    if is_json():
        logging.getLogger("smalti").log(level, line)
    else:
        print(f"smalti: {line}", file=sys.stderr, flush=True)  # noqa: T201


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


def local_settings() -> "WorkerSettings":
    """Read the settings for computing here. Raises: SettingsError."""
    from workers.settings import WorkerSettings

    return settings_of(WorkerSettings)


def settings_of(kind: "type[Settings]", **options: object) -> "Settings":
    """Read the settings of a process; options that have a value go before the environment.

    Raises: SettingsError.
    """
    from app.settings import read_settings

    return read_settings(kind, **given(options))
