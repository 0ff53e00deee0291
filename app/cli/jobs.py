"""The commands that look at a service: its jobs and pipelines."""

from itertools import islice
from typing import Annotated, Any

import typer

from app.cli.answers import tell_json
from app.cli.loading import loads_told
from app.cli.terminal import DEFAULT_URL, Json, ServiceUrl, Url, local_settings, say

_MAX_JOBS = 1000


def jobs(
    status: Annotated[
        str | None, typer.Option(help="queued, running, succeeded, failed or cancelled; all if left out.")
    ] = None,
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1, max=_MAX_JOBS)] = 20,
    url: ServiceUrl = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """List the jobs of a service that the key may see, the newest first; with --json, a line each."""
    from app.cli.at_service import client_of

    with client_of(url) as client:
        found = [job.info for job in islice(client.jobs(status=status), limit)]
    for job in found:
        if as_json:
            tell_json(job.model_dump(mode="json"))
        else:
            created = job.created_at.isoformat(timespec="seconds") if job.created_at else ""
            error = f"  {job.error.message} ({job.error.code})" if job.error else ""
            typer.echo(f"{job.id}  {created}  {job.operation:8}  {job.status}{_progress(job)}{error}")
    if not (found or as_json):
        say("there are no such jobs")


def cancel(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID", help="As `smalti jobs` lists them.")],
    url: ServiceUrl = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Cancel jobs of a service; one that has ended stays as it is."""
    from app.cli.at_service import client_of

    with client_of(url) as client:
        for job_id in job_ids:
            job = client.job(job_id)
            info = job.cancel()
            if as_json:
                tell_json(info.model_dump(mode="json"))
            else:
                typer.echo(f"{info.id}  {info.status}")


def pipelines(url: Url = None, as_json: Json = False) -> None:
    """List the pipelines of this machine, or of the service at --url and where it has them loaded."""
    found = _pipelines_here() if url is None else _pipelines_at(url)
    if as_json:
        tell_json(found)
        return
    for each in found:
        sets = [name for name, labels in each["labels"].items() if labels]
        takes = ["a prompt"] * each["takes_prompt"] + [f"labels of {' and '.join(sets)}"] * bool(sets)
        grid = "x".join(map(str, each["grid"]))
        codes = f"; codes {grid} of {each['codebook_size']}" * (each["codebook_size"] is not None)
        loaded = f"; {loads_told(each)}" if url is not None else ""
        typer.echo(f"{each['name']}: {', '.join(takes) or 'encodes and decodes alone'}{codes}{loaded}")


def _pipelines_here() -> list[dict[str, Any]]:
    from workers.catalog import Catalog

    settings = local_settings()
    catalog = Catalog.load(settings.weights_dir, settings.pipelines)
    return [each.model_dump(mode="json") for each in catalog.info()]


def _pipelines_at(url: str) -> list[dict[str, Any]]:
    from app.cli.at_service import client_of

    with client_of(url) as client:
        return [each.model_dump(mode="json") for each in client.pipelines()]


def _progress(job: Any) -> str:
    progress = job.progress
    return f" {progress.step}/{progress.total}" if progress and job.status == "running" else ""
