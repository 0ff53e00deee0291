"""A service of one worker and several API processes, asked by as many clients."""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from serving import IMAGE, Bench, free_port, running, say, send, single_images, wait_until_ready

from workers.queue import embedded_server

WARM_UP_S = 1.0


@dataclass(frozen=True)
class Measured:
    """What a service of so many API processes did."""

    num_apis: int
    images_per_s: float
    lone_ms: float


def measure_http(
    pipeline: Path,
    device: str,
    *,
    nums_apis: Sequence[int],
    max_batch_size: int,
    seconds: float,
    num_lone: int,
    num_threads: int,
    check_timeout_s: float,
) -> Iterator[Measured]:
    """Yield what it does with each number of API processes, over one worker that stays warm.

    check_timeout_s: how long the seed promise's check, which goes on while nothing is asked for, is waited
    for.

    Raises: ServerNotFound where there is no queue server.
    """
    bench = Bench(pipeline.resolve(), num_threads, device, 1.0, Path())
    num_connections = 2 * max_batch_size
    with service(bench, max(nums_apis), max_batch_size) as addresses:
        wait_for_check(addresses[0], check_timeout_s)
        for num_apis in nums_apis:
            chosen = addresses[:num_apis]
            each = max(1, num_connections // num_apis)
            lone = send(bench, chosen[0], IMAGE, single_images(num_lone), num_connections=1)
            ends_s = WARM_UP_S + seconds

            def ask(address: str, each: int = each, ends_s: float = ends_s) -> list[tuple[float, float]]:
                bodies = single_images(60_000)
                return send(bench, address, IMAGE, bodies, num_connections=each, seconds=ends_s + 0.5)

            with ThreadPoolExecutor(num_apis) as clients:
                times = [pair for found in clients.map(ask, chosen) for pair in found]
            num_done = sum(
                max(0.0, min(answered, ends_s) - max(sent, WARM_UP_S)) / (answered - sent)
                for sent, answered in times
            )
            lone_s = statistics.median(answered - sent for sent, answered in lone)
            yield Measured(num_apis, num_done / seconds, 1000 * lone_s)


@contextmanager
def service(bench: Bench, num_apis: int, max_batch_size: int) -> Iterator[list[str]]:
    """The queue server, a worker and API processes; gives their addresses."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = embedded_server.start(folder / "queue")
        stack.callback(server.stop)
        environment = {
            **bench.environment,
            "SMALTI_DATA_DIR": str(folder),
            "SMALTI_MAX_BATCH_SIZE": str(max_batch_size),
            "REDIS_URL": server.url,
        }
        smalti = [sys.executable, "-P", "-m", "app.cli.main"]
        addresses, processes = [], [stack.enter_context(running([*smalti, "worker"], environment))]
        for _ in range(num_apis):
            port = free_port()
            command = [*smalti, "serve", "--port", str(port)]
            processes.append(stack.enter_context(running(command, environment)))
            addresses.append(f"http://127.0.0.1:{port}")
        for address in addresses:
            wait_until_ready(f"{address}/health/ready", *processes)
        yield addresses


def wait_for_check(address: str, timeout_s: float) -> None:
    """Wait until the worker has a verdict on its seed promise; say so if it has none in time."""
    ends_at = time.monotonic() + timeout_s
    while time.monotonic() < ends_at:
        pipelines = httpx.get(f"{address}/pipelines", timeout=10).json()
        verdicts = [verdict for each in pipelines for verdict in each["seed_verdicts"]]
        if verdicts and all(verdict["how"] != "full_batches" for verdict in verdicts):
            return
        time.sleep(0.5)
    say("the check of the seed promise has not ended: calls may be fuller than they need to be")
