"""Measure the service on this machine: `make bench`. Starts its own `smalti up`, on a free port.

Prints one JSON object: seconds from the start to READY and to the first image, the latency of one image
at a time, and images a second with many requests at once. Every request has its own seed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights-dir", type=Path, default=Path("weights"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--num-latencies", type=int, default=30, help="images that are asked for one by one")
    parser.add_argument("--num-at-once", type=int, default=32)
    parser.add_argument("--num-rounds", type=int, default=3, help="of --num-at-once requests")
    arguments = parser.parse_args()
    figures = measure(arguments)
    print(json.dumps(figures, indent=2))


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the figures."""
    started = time.perf_counter()
    with service(arguments.weights_dir, arguments.workers) as address, httpx.Client(timeout=300) as client:
        ready_s = time.perf_counter() - started
        ask(client, address, seed=0)
        first_image_s = time.perf_counter() - started
        latencies = sorted(ask(client, address, seed=1 + i) for i in range(arguments.num_latencies))
        rates = [
            rate(address, arguments.num_at_once, first_seed=1000 * (1 + i))
            for i in range(arguments.num_rounds)
        ]
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "num_workers": arguments.workers,
        "ready_s": round(ready_s, 2),
        "first_image_s": round(first_image_s, 2),
        "one_image_median_s": round(statistics.median(latencies), 4),
        "one_image_p90_s": round(latencies[int(0.9 * (len(latencies) - 1))], 4),
        "num_at_once": arguments.num_at_once,
        "images_per_s_at_once": [round(each, 2) for each in rates],
    }


@contextmanager
def service(weights_dir: Path, num_workers: int) -> Iterator[str]:
    """`smalti up` in a folder of its own; gives its address."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        command = ("-P", "-m", "app.cli", "up", "--port", "0", "--workers", str(num_workers))
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **environment,
                "SMALTI_WEIGHTS_DIR": str(weights_dir.absolute()),
                "SMALTI_DATA_DIR": folder,
                "SMALTI_LOG_LEVEL": "WARNING",
            },
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith("READY"):
                sys.exit("the service did not start")
            yield line.removeprefix("READY at ").strip()
        finally:
            process.terminate()
            process.wait()


def ask(client: httpx.Client, address: str, seed: int) -> float:
    """Generate one image and return the seconds it took."""
    started = time.perf_counter()
    answer = client.post(
        f"{address}/generate", json={"class_label": 0, "seed": seed}, headers={"Accept": "image/png"}
    )
    answer.raise_for_status()
    return time.perf_counter() - started


def rate(address: str, num_requests: int, first_seed: int) -> float:
    """Send requests at once, each for one image, and return images a second until the last is there."""
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(timeout=300, limits=limits) as client, ThreadPoolExecutor(num_requests) as pool:
        started = time.perf_counter()
        seeds = range(first_seed, first_seed + num_requests)
        list(pool.map(lambda seed: ask(client, address, seed), seeds))
        return num_requests / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
