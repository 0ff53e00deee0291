"""The commands that say which pipelines a service keeps in memory."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.answers import tell_json
from app.cli.exit_status import ExitStatus
from app.cli.terminal import DEFAULT_URL, CommandError, Json, ServiceUrl, say

if TYPE_CHECKING:
    from smalti import Client

_MAX_WAIT_S = 1800.0
_LOOK_EVERY_S = 0.5
_HEEDED_S = 3.0  # workers have heard of an order by then

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `smalti pipelines` lists them.")]


def load(name: Name, url: ServiceUrl = DEFAULT_URL, as_json: Json = False) -> None:
    """Have a service keep a pipeline in memory, whatever else is asked for; wait until it is loaded."""
    from app.cli.at_service import client_of

    with client_of(url) as client:
        client.load(name)
        began = time.monotonic()
        while True:
            time.sleep(_LOOK_EVERY_S)
            info = _info(client, name)
            states = {each["state"] for each in info["loads"]}
            waited_s = time.monotonic() - began
            has_ended = bool(states) and states <= (
                {"loaded"} if waited_s < _HEEDED_S else {"loaded", "failed"}
            )
            if has_ended or (not states and waited_s >= _HEEDED_S):
                break
            if waited_s > _MAX_WAIT_S:
                raise CommandError(f"{name} is still not loaded after {_MAX_WAIT_S:.0f} s; the order stands")
    if as_json:
        tell_json(info)
    elif not states:
        say(f"no worker lives; those that come will load {name}")
    elif "loaded" in states:
        typer.echo(f"{name}: {loads_told(info)}")
    failed = [each for each in info["loads"] if each["state"] == "failed"]
    if failed:
        raise CommandError(
            f"{len(failed)} of {len(info['loads'])} workers could not load {name}: {failed[0]['error']}",
            ExitStatus.REFUSED,
        )


def unload(name: Name, url: ServiceUrl = DEFAULT_URL, as_json: Json = False) -> None:
    """Have a service let go of a pipeline once its jobs have ended; the next job for it loads it again."""
    from app.cli.at_service import client_of

    with client_of(url) as client:
        info = client.unload(name).model_dump(mode="json")
    if as_json:
        tell_json(info)
    else:
        typer.echo(f"{name}: goes once its jobs have ended")


def loads_told(info: dict[str, Any]) -> str:
    """Say where a pipeline is loaded."""
    loads = info["loads"]
    num_loaded = sum(each["state"] == "loaded" for each in loads)
    megabytes = max((each["num_bytes"] for each in loads), default=0) / 1e6
    told = f"loaded by {num_loaded} of {len(loads)} workers"
    told += f", {megabytes:.0f} MB" * bool(num_loaded) + ", pinned" * info["is_pinned"]
    errors = {each["error"] for each in loads if each["error"]}
    return "; ".join([told, *sorted(errors)])


def _info(client: "Client", name: str) -> dict[str, Any]:
    found = next((each for each in client.pipelines() if each.name == name), None)
    if found is None:
        raise CommandError(f"{name} is gone from the service's folder")
    return found.model_dump(mode="json")
