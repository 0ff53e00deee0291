"""A batch beside a lone interactive request: what each does to the other.

    python -m benchmarks.batches [--pipeline fashion-mnist-turbo] [--rows 10000] [--every 5] [--out FILE]

Runs `smalti up` with one pipeline and one worker, or measures a service that runs (--url). In turn: single
requests on the idle service, the batch alone, the batch with a request every so many seconds, and single
requests on the idle service again. Tells the 95th percentile of the requests beside the batch and without,
and how much of its rate the batch keeps. Needs `httpx`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
MAX_LATENCY_RATIO, MIN_RATE_KEPT = 2.0, 0.6  # what is aimed at
IDLE_PAUSE_S = 0.2
_LOOK_EVERY_S = 0.5


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipeline", default="fashion-mnist-turbo")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between interactive requests")
    parser.add_argument("--idle-requests", type=int, default=40)
    parser.add_argument("--url", help="a service that runs and does nothing else")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with service(options.url, options.pipeline) as client:
        figures = measure(client, options.pipeline, options.rows, options.every, options.idle_requests)
    print(json.dumps(figures, indent=2))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


@contextmanager
def service(url: str | None, pipeline: str) -> Iterator[httpx.Client]:
    """Yield a client of a service that is ready: one that runs, or one of its own."""
    if url is not None:
        with httpx.Client(base_url=url, timeout=120) as client:
            yield client
        return
    with tempfile.TemporaryDirectory() as folder:
        kept = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.cli.main", "up", "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={
                **kept,
                "PYTHONPATH": str(ROOT),
                "SMALTI_WEIGHTS_DIR": str(ROOT / "weights"),
                "SMALTI_PIPELINES": pipeline,
                "SMALTI_LOG_LEVEL": "WARNING",
            },
        )
        assert process.stdout is not None
        try:
            address = process.stdout.readline().removeprefix("READY at ").strip()
            with httpx.Client(base_url=address, timeout=120) as client:
                while client.get("/health/ready").status_code != 200:
                    time.sleep(_LOOK_EVERY_S)
                wait_for_check(client, pipeline)
                yield client
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def wait_for_check(client: httpx.Client, pipeline: str, timeout_s: float = 120) -> None:
    """Wait until the worker has checked the seed promise, which it does while nothing is asked for."""
    ends_at = time.monotonic() + timeout_s
    while time.monotonic() < ends_at:
        (info,) = (each for each in client.get("/pipelines").json() if each["name"] == pipeline)
        if any(verdict["how"] != "full_batches" for verdict in info["seed_verdicts"]):
            return
        time.sleep(1)


def measure(
    client: httpx.Client, pipeline: str, num_rows: int, every_s: float, num_idle: int
) -> dict[str, Any]:
    """Return all figures."""
    (info,) = (each for each in client.get("/pipelines").json() if each["name"] == pipeline)
    body = {name: value for name, value in info["example"].items() if value not in (None, {}, False)}
    body.pop("priority", None)
    idle = [ask(client, body, seed) for seed in idle_seeds(num_idle)]
    alone_per_s = batch_rate(client, body, num_rows)
    beside: list[float] = []
    is_over = threading.Event()

    def keep_asking() -> None:
        seed = 10**6
        while not is_over.wait(every_s):
            seed += 1
            beside.append(ask(client, body, seed))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        beside_per_s = batch_rate(client, body, num_rows)
    finally:
        is_over.set()
        asking.join()
    idle += [ask(client, body, seed) for seed in idle_seeds(num_idle)]
    figures: dict[str, Any] = {
        "pipeline": pipeline,
        "rows": num_rows,
        "interactive_every_s": every_s,
        "idle_requests": len(idle),
        "idle_median_ms": round(1000 * statistics.median(idle), 1),
        "idle_p95_ms": round(1000 * percentile_95(idle), 1),
        "batch_alone_rows_per_s": round(alone_per_s, 1),
        "batch_beside_rows_per_s": round(beside_per_s, 1),
        "rate_kept": round(beside_per_s / alone_per_s, 3),
        "is_rate_kept": beside_per_s >= MIN_RATE_KEPT * alone_per_s,
        "beside_requests": len(beside),
    }
    if beside:
        ratio = percentile_95(beside) / percentile_95(idle)
        figures |= {
            "beside_median_ms": round(1000 * statistics.median(beside), 1),
            "beside_p95_ms": round(1000 * percentile_95(beside), 1),
            "p95_ratio": round(ratio, 2),
            "is_p95_kept": ratio <= MAX_LATENCY_RATIO,
        }
    return figures


def idle_seeds(number: int) -> Iterator[int]:
    """Yield seeds, with a pause before each: one request at a time on a service that is idle again."""
    for seed in range(number):
        time.sleep(IDLE_PAUSE_S)
        yield seed


def ask(client: httpx.Client, body: dict[str, Any], seed: int) -> float:
    """Return how many seconds one interactive request takes, its picture in the answer."""
    began_s = time.perf_counter()
    response = client.post("/generate", json={**body, "seed": seed}, headers={"Accept": "image/png"})
    response.raise_for_status()
    return time.perf_counter() - began_s


def batch_rate(client: httpx.Client, body: dict[str, Any], num_rows: int) -> float:
    """Send a batch and return how many of its rows ended in a second, from its first row's beginning."""
    lines = "".join(
        json.dumps({"id": f"row-{n}", "operation": "generate", "body": {**body, "seed": n}}) + "\n"
        for n in range(num_rows)
    )
    response = client.post("/batches", content=lines, headers={"Content-Type": "application/jsonl"})
    response.raise_for_status()
    address, batch = response.headers["location"], response.json()
    while batch["status"] in ("queued", "running"):
        time.sleep(_LOOK_EVERY_S)
        batch = client.get(address).raise_for_status().json()
    if batch["counts"]["succeeded"] != num_rows:
        raise RuntimeError(f"not every row succeeded: {batch}")
    return float(batch["rows_per_s"])


def percentile_95(seconds: list[float]) -> float:
    """Return the time that 95 of 100 stay within; of few, the longest."""
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]


if __name__ == "__main__":
    main()
