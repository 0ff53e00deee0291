"""The commands that run the service, or one part of it."""

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.terminal import CommandError, say, settings_of
from workers.logs import show_log

if TYPE_CHECKING:
    from workers.settings import ServiceSettings

Host = Annotated[str | None, typer.Option(help="The address to listen on.  [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="0 takes any free one.  [default: 8000]", min=0, max=65535)]


def up(
    workers: Annotated[int, typer.Option(help="How many.", min=1, max=64)] = 1,
    port: Port = None,
    host: Host = None,
    pipeline: Annotated[
        list[str] | None, typer.Option(help="Serve only this one; may be repeated, the default first.")
    ] = None,
) -> None:
    """Run the queue server (unless REDIS_URL is set), the API and workers, until Ctrl-C."""
    from app.processes.up import run_service
    from app.settings import AppSettings

    settings = settings_of(AppSettings, host=host, port=port, pipelines=",".join(pipeline or ()) or None)
    show_log(settings.log_level, settings.log_format)
    raise typer.Exit(run_service(settings, workers))


def serve(
    port: Port = None,
    host: Host = None,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the API alone; its queue is at REDIS_URL."""
    from app.settings import AppSettings

    settings = settings_of(AppSettings, host=host, port=port)
    show_log(settings.log_level, settings.log_format)
    _require_queue_url(settings, "serve")
    import socket

    from app.processes.server import serve as serve_until_signal
    from app.processes.up import listen

    listener = listen(settings.host, settings.port) if fd is None else socket.socket(fileno=fd)
    _prepare(settings)
    serve_until_signal(settings, listener)


def worker(
    check: Annotated[
        bool, typer.Option("--check", help="Only say, by the exit status, whether one lives on this host.")
    ] = False,
) -> None:
    """Run one worker; its queue is at REDIS_URL."""
    from workers.settings import WorkerSettings

    settings = settings_of(WorkerSettings)
    redis_url = _require_queue_url(settings, "worker")
    if check:
        raise typer.Exit(0 if _has_worker_here(redis_url) else 1)
    show_log(settings.log_level, settings.log_format)
    _prepare(settings)
    from workers.start import run_worker

    run_worker(settings)


def check_seeds() -> None:
    """Check the seed promise on this machine now: a service does it while it serves, once."""
    from tqdm import tqdm

    from workers.catalog import Catalog
    from workers.engine.loading import load_engine
    from workers.settings import WorkerSettings
    from workers.storage import check_writable

    settings = settings_of(WorkerSettings)
    for folder in settings.folders:
        check_writable(folder)
    engine = load_engine(settings, Catalog.load(settings.weights_dir, settings.pipelines))
    engine.warm_up()  # which measures how many samples fit, and so how large a full batch is
    with tqdm(
        total=100, desc="seed promise", unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}"
    ) as bar:
        while engine.needs_check:
            engine.check_seeds(0.5)
            bar.update(round(100 * engine.check_progress - bar.n))
        bar.update(100 - bar.n)
    for name, verdict in engine.seed_verdicts().items():
        kept = "kept" if verdict.is_kept else "not kept"
        rows = ", ".join(map(str, verdict.rows)) or "any number"
        typer.echo(f"{name}: {kept} ({verdict.how}), with {rows} of rows a call")


def queue_server() -> None:
    """Keep the embedded queue server running."""
    from app.processes.up import keep_queue_server
    from app.settings import AppSettings

    settings = settings_of(AppSettings)
    show_log(settings.log_level, settings.log_format)
    keep_queue_server(settings)


def _require_queue_url(settings: "ServiceSettings", command: str) -> str:
    if not settings.redis_url:
        raise CommandError(
            f"REDIS_URL is not set: `smalti {command}` needs the address of the queue, such as"
            " redis://host:6379/0. To run everything on this machine: smalti up"
        )
    return settings.redis_url


def _prepare(settings: "ServiceSettings") -> None:
    """Check queue and data folder for a part of the service; what may pass with time is told only.

    Raises: QueueRefused, NotPrivate.
    """
    from workers.errors import NotPrivate, QueueUnavailable, StorageUnavailable
    from workers.queue.probe import QueueRefused, require_queue
    from workers.storage import check_writable

    try:
        for folder in settings.folders:
            check_writable(folder)
    except NotPrivate:
        raise
    except StorageUnavailable as error:
        say(str(error), logging.WARNING)
    assert settings.redis_url is not None
    try:
        require_queue(settings.redis_url)
    except QueueRefused:
        raise
    except QueueUnavailable as error:
        say(f"{error}; waiting for it", logging.WARNING)


def _has_worker_here(redis_url: str) -> bool:
    """Say whether a worker of this host has been heard of within its lease."""
    import socket

    import redis

    from workers.queue.probe import require_queue
    from workers.queue.records import WORKERS

    require_queue(redis_url)
    with redis.Redis.from_url(redis_url, socket_timeout=5, decode_responses=True) as client:
        keys = client.smembers(WORKERS)
        return any(client.hget(key, "hostname") == socket.gethostname() for key in keys)
