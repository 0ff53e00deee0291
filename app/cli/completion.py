"""What the shell completes beyond options: names of pipelines."""

from typing import Annotated

import typer

_SERVICE_S = 2.0  # a person waits for it


def pipeline_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return names that begin so: of this machine, or of the service that the line names; none on a fault."""
    url = context.params.get("url")
    try:
        if url is not None:
            from app.cli.at_service import client_of

            with client_of(url, retry_s=0, request_timeout_s=_SERVICE_S) as client:
                names = [each.name for each in client.pipelines()]
        else:
            from app.cli.terminal import local_settings
            from workers.catalog import Catalog

            settings = local_settings()
            names = list(Catalog.load(settings.weights_dir, settings.pipelines).names)
    except Exception:  # the shell has no place for what went wrong; the command itself will say it
        return []
    return [name for name in names if name.startswith(incomplete)]


PipelineName = Annotated[
    str | None,
    typer.Option("--pipeline", help="By name; the first one if left out.", autocompletion=pipeline_names),
]
