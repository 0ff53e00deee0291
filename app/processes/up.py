"""The whole service on one machine: the queue server, the API and the workers, as one process tree."""

import http.client
import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.cli.terminal import say
from app.processes.supervisor import Child, Supervisor
from app.settings import AppSettings
from models.media.base import medium_of
from workers.messages import PipelineInfo
from workers.pipeline_folders import PipelineFolders
from workers.queue import embedded_server
from workers.queue.probe import require_queue
from workers.settings import SettingsError
from workers.storage import check_writable

_PROBE_TIMEOUT_S = 2.0
# -P: an `app` in the folder at hand is not ours.
_COMMAND = (sys.executable, "-P", "-m", "app.cli.main", "--supervised")


def run_service(settings: AppSettings, num_workers: int) -> int:
    """Run until a signal comes, and return the exit status.

    Raises: ConfigError when there is no pipeline to serve; SettingsError when the port can't be had;
    StorageUnavailable when the data folder can't be written; QueueUnavailable, ServerNotFound or
    ServerNotStarted when there is no queue server.
    """
    catalog = PipelineFolders.load(settings.weights_dir, settings.pipelines).catalog
    listener = listen(settings.host, settings.port)
    address = _address(settings.host, listener.getsockname()[1])
    for folder in settings.folders:
        check_writable(folder)
    if settings.redis_url:
        require_queue(settings.redis_url)
    queue = None if settings.redis_url else embedded_server.start(_queue_dir(settings), say)
    environment = {
        "REDIS_URL": queue.url if queue else str(settings.redis_url),
        "SMALTI_PIPELINES": ",".join(settings.pipelines),
        **_threads(num_workers),
    }
    stages = [_api_and_workers(address, listener.fileno(), num_workers, environment)]
    if queue:
        keeper = Child("the queue server", (*_COMMAND, "queue-server"), environment=environment)
        stages.insert(0, [keeper])
    place = f"in {_queue_dir(settings)}" if queue else "at REDIS_URL"
    say(f"starting the API and {num_workers} worker(s) for {', '.join(catalog.names)}; the queue is {place}")
    default = catalog.info()[0]
    try:
        return Supervisor(stages).run(lambda: _tell_ready(address, default), on_stop=listener.close)
    finally:
        if queue:
            queue.stop()


def _api_and_workers(address: str, fd: int, num_workers: int, environment: dict[str, str]) -> list[Child]:
    def are_workers_ready() -> bool:
        health = _ask(address, "ready")
        return health is not None and health["num_ready_workers"] >= num_workers

    api = Child(
        "the API",
        (*_COMMAND, "serve", f"--fd={fd}"),
        is_ready=lambda: _ask(address, "live") is not None,
        environment=environment,
        pass_fds=(fd,),
    )
    workers = [
        Child(
            f"worker {number}",
            (*_COMMAND, "worker"),
            are_workers_ready,
            environment | {"SMALTI_WORKER_NUMBER": str(number - 1)},
        )
        for number in range(1, num_workers + 1)
    ]
    return [api, *workers]


def keep_queue_server(settings: AppSettings) -> None:
    """Keep the embedded queue server running until SIGTERM, then stop using it."""
    is_stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        is_stopping = True

    signal.signal(signal.SIGTERM, stop)
    server = embedded_server.start(_queue_dir(settings), say)
    with redis.Redis.from_url(server.url, socket_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
        while not is_stopping:
            time.sleep(0.2)
            try:
                client.ping()
            except (redis.TimeoutError, redis.BusyLoadingError):
                continue  # alive: a second one on the same files would ruin them
            except redis.ConnectionError:
                say("the queue server is gone; starting it again on what it kept")
                server = embedded_server.start(_queue_dir(settings), say)
    server.stop()


def _queue_dir(settings: AppSettings) -> Path:
    return settings.data_dir / "queue"


def _threads(num_workers: int) -> dict[str, str]:
    """Share the cores among several workers, unless the environment says how."""
    if num_workers == 1 or "SMALTI_NUM_THREADS" in os.environ:
        return {}
    return {"SMALTI_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_workers))}


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket, held open so that clients wait, unrefused, while the API starts again.

    Raises: SettingsError.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:  # the latter of a host that can be no name
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(
            f"can't listen on {host} port {port}: {reason}. Choose another with --port or --host"
        ) from error
    return listener


def _ask(address: str, check: str) -> dict[str, Any] | None:
    """Return what a health check says, or None while it does not say yes."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", f"/health/{check}")
        answer = connection.getresponse()
        return dict(json.loads(answer.read())) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _tell_ready(address: str, pipeline: PipelineInfo) -> None:
    """Print where the service is, and a command that asks it for something."""
    print(f"READY at {address}", flush=True)  # noqa: T201
    if pipeline.example is None:  # it encodes and decodes only, or needs a source
        return
    made = pipeline.makes[0]
    media_type = medium_of(made.medium).formats[made.formats[0]]
    body = pipeline.example.model_dump_json(exclude_defaults=True, exclude={"pipeline"})
    command: Iterable[str] = (
        "curl", "-s", f"{address}/generate",
        "-H", "Content-Type: application/json", "-H", f"Accept: {media_type}",
        "-d", body, "-o", f"{made.medium}.{made.formats[0]}",
    )  # fmt: skip
    print(f"Try: {shlex.join(command)}", flush=True)  # noqa: T201


def _address(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
