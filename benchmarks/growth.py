"""What grows with the work, and what must not: `make bench-growth`, or `python -m benchmarks.growth`.

w  images and empty jobs a second with 1, 2 and 4 workers, which share the threads
q  the API's latency by the length of the queue, and Redis's memory by jobs that wait and that have ended
s  24 hours by proxy: 100,000 empty jobs, and the memory of every process on the way
r  the same with the pipeline's own engine, 2,000 images

Figures go to growth.json, and the tables to standard output and between the markers in README.md.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import redis

from benchmarks.door import MIB, memory_bytes
from benchmarks.report import pair_ms, table
from benchmarks.serving import (
    HERE,
    IMAGE,
    ROOT,
    Bench,
    Figures,
    compute,
    free_port,
    machine,
    running,
    saturate,
    say,
    send,
    single_images,
    summary,
    wait_until_ready,
)
from workers.queue import embedded_server
from workers.queue.records import queue_key

BEGIN, END = "<!-- growth -->", "<!-- end of growth -->"
NO_WAIT = {"Accept": "application/json"}
OWN = (sys.executable, "-P", "-m", "app.cli.main", "worker")
EMPTY = (sys.executable, str(HERE / "worker.py"), "empty")
NUM_WORKERS = (1, 2, 4)
LENGTHS = (0, 1_000, 10_000)
NUM_ROUNDS = 20  # of requests, with a look at the memory after each
FLAT_LATENCY = 1.5  # times the latency with an empty queue
FLAT_MEMORY = 1.05  # times the memory at the half
SHORT_TTL = {"SMALTI_RESULT_TTL_S": "2"}  # or what is kept of ended jobs would grow for an hour


@dataclass(frozen=True)
class Service:
    """A running service. pids: of its processes, by name."""

    address: str
    client: redis.Redis
    pids: dict[str, int]

    def redis_bytes(self) -> int:
        return int(self.client.info("memory")["used_memory"])


@contextmanager
def service(
    bench: Bench, worker: Sequence[str], num_workers: int = 1, **environment: str
) -> Iterator[Service]:
    """The queue server, the API and workers."""
    port = free_port()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        server = embedded_server.start(folder / "queue")
        stack.callback(server.stop)
        client = stack.enter_context(redis.Redis.from_url(server.url))
        variables = {**bench.environment, "SMALTI_DATA_DIR": str(folder), "REDIS_URL": server.url}
        variables["SMALTI_NUM_THREADS"] = str(threads_of(bench, num_workers))
        variables |= environment
        if bench.verdicts.exists():
            shutil.copytree(bench.verdicts, folder / "seed-verdicts")
        serve = [sys.executable, "-P", "-m", "app.cli.main", "serve", "--port", str(port)]
        api = stack.enter_context(running(serve, variables))
        workers = [stack.enter_context(running(worker, variables)) for _ in range(num_workers)]
        address = f"http://127.0.0.1:{port}"
        pids = {"the API": api.pid, "Redis": int(client.info("server")["process_id"])}
        pids |= {f"worker {number}": each.pid for number, each in enumerate(workers, 1)}
        wait_until_ready(f"{address}/health/{'ready' if workers else 'live'}", api, *workers)
        while workers and num_ready(address) < num_workers:
            time.sleep(0.1)
        yield Service(address, client, pids)


def num_ready(address: str) -> int:
    """Return how many workers are ready."""
    with urllib.request.urlopen(f"{address}/health/ready") as answer:
        return int(json.load(answer)["num_ready_workers"])


# --- the parts ---------------------------------------------------------------------------------------------


def more_workers(bench: Bench) -> Figures:
    """images and empty jobs a second by number of workers"""
    rows = []
    for number in NUM_WORKERS:
        check_seeds(bench, threads_of(bench, number))
        rates = {}
        for name, worker in (("images_per_s", OWN), ("empty_jobs_per_s", EMPTY)):
            with service(bench, worker, number) as running_service:
                address, seconds = running_service.address, bench.seconds(15)
                rates[name] = saturate(bench, address, IMAGE, single_images(50_000), seconds)
        rows.append({"num_workers": number, **rates})
        say(f"  {rows[-1]}")
    return {"rows": rows}


def long_queues(bench: Bench) -> Figures:
    """the API's latency by the length of the queue, without workers; then what is kept of ended jobs"""
    rows = []
    num_asked = bench.count(300)
    with service(bench, EMPTY, 0) as waiting:
        empty_bytes, length = waiting.redis_bytes(), 0
        for wanted in LENGTHS:
            wanted = round(wanted * min(1, bench.scale))
            more, asked = single_images(max(0, wanted - length)), single_images(num_asked)
            send(bench, waiting.address, NO_WAIT, more, num_connections=8, status=202)
            used_bytes = waiting.redis_bytes()
            submitted = send(bench, waiting.address, NO_WAIT, asked, num_connections=1, status=202)
            last = waiting.client.lindex(queue_key("interactive"), -1).decode()
            times = [ask(f"{waiting.address}/jobs/{last}") for _ in range(num_asked)]
            length = wanted + num_asked
            rows.append({"length": wanted, "submit": summary(submitted), "look_up": summary(times)})
            say(f"  {rows[-1]}")
    waiting_bytes = (used_bytes - empty_bytes) / wanted
    with service(bench, EMPTY) as ended:
        send(bench, ended.address, IMAGE, single_images(bench.count(100)), num_connections=8)
        before, number = ended.redis_bytes(), bench.count(5_000)
        send(bench, ended.address, IMAGE, single_images(number), num_connections=64)
        kept_bytes = (ended.redis_bytes() - before) / number
    return {"rows": rows, "bytes_of_a_waiting_job": waiting_bytes, "bytes_of_an_ended_job": kept_bytes}


def long_service(bench: Bench) -> Figures:
    """24 hours by proxy: 100,000 jobs that compute nothing"""
    return watch_memory(bench, EMPTY, bench.count(100_000))


def long_computing(bench: Bench) -> Figures:
    """2,000 images, computed"""
    check_seeds(bench, bench.num_threads)
    return watch_memory(bench, OWN, bench.count(2_000))


def watch_memory(bench: Bench, worker: Sequence[str], number: int) -> Figures:
    """Send requests, and look at the memory of every process after each twentieth of them."""
    with service(bench, worker, **SHORT_TTL) as watched:
        per_round = -(-number // NUM_ROUNDS)
        seen: dict[str, list[int]] = {name: [] for name in watched.pids}
        began_at = time.perf_counter()
        for round_ in range(NUM_ROUNDS):
            bodies = single_images(per_round)
            send(bench, watched.address, IMAGE, bodies, num_connections=64, seconds=36_000)
            for name, pid in watched.pids.items():
                seen[name].append(memory_bytes(pid))
            latest = ", ".join(f"{name} {each[-1] // MIB} MiB" for name, each in seen.items())
            say(f"  {round_ + 1} of {NUM_ROUNDS}: {latest}")
        seconds = time.perf_counter() - began_at
    return {"num_requests": NUM_ROUNDS * per_round, "seconds": seconds, "bytes": seen}


def check_seeds(bench: Bench, num_threads: int) -> None:
    """Check the seed promise, which a worker would otherwise do while it is measured."""
    compute(replace(bench, num_threads=num_threads), "check", 0)


def threads_of(bench: Bench, num_workers: int) -> int:
    """Return how many threads each worker has."""
    return max(1, bench.num_threads // max(1, num_workers))


def ask(url: str) -> tuple[float, float]:
    """Send one GET request, and return when it was sent and answered."""
    sent_s = time.perf_counter()
    with urllib.request.urlopen(url) as answer:
        answer.read()
    return sent_s, time.perf_counter()


PARTS = {"w": more_workers, "q": long_queues, "s": long_service, "r": long_computing}


# --- tables ------------------------------------------------------------------------------------------------


def sections(results: Figures) -> list[str]:
    """Return what was measured, as Markdown."""
    drawn = {"w": workers_table, "q": queue_table, "s": memory_table, "r": memory_table}
    scale = results["scale"]
    head = f"Machine: {results['machine']}. Weights: `{results['pipeline']}`. {results['measured_at']}."
    if scale != 1:
        head += f" **A quick run, {scale:g} of the usual length: its figures are rough.**"
    return [head, *("\n".join(drawn[name](part)) for name, part in results["parts"].items())]


def workers_table(part: Figures) -> list[str]:
    rows = [
        (row["num_workers"], f"{row['images_per_s']:.1f}", f"{row['empty_jobs_per_s']:.0f}")
        for row in part["rows"]
    ]
    return table(("workers", "images/s", "empty jobs/s"), rows)


def queue_table(part: Figures) -> list[str]:
    first, last = part["rows"][0], part["rows"][-1]
    rows = [(row["length"], pair_ms(row["submit"]), pair_ms(row["look_up"])) for row in part["rows"]]
    growths = [last[what]["p50_s"] / first[what]["p50_s"] for what in ("submit", "look_up")]
    verdict = "flat" if max(growths) <= FLAT_LATENCY else "**not flat**"
    waiting_kib, ended_kib = part["bytes_of_a_waiting_job"] / 1024, part["bytes_of_an_ended_job"] / 1024
    return [
        *table(("jobs that wait", "submit, p50 / p99", "look up the last, p50 / p99"), rows),
        "",
        f"With the longest queue p50 is {growths[0]:.2f} and {growths[1]:.2f} times what it is with the"
        f" shortest: {verdict} (at most {FLAT_LATENCY:g})."
        f" A job that waits takes {waiting_kib:.1f} KiB of Redis, one that has ended {ended_kib:.1f} KiB"
        " for as long as it is kept.",
    ]


def memory_table(part: Figures) -> list[str]:
    marks = [0, NUM_ROUNDS // 4, NUM_ROUNDS // 2, 3 * NUM_ROUNDS // 4, NUM_ROUNDS - 1]
    number = part["num_requests"]
    head = tuple(f"{(mark + 1) * number // NUM_ROUNDS:,}" for mark in marks)
    rows: list[tuple[object, ...]] = []
    for name, seen in part["bytes"].items():
        half, end = seen[NUM_ROUNDS // 2 - 2 : NUM_ROUNDS // 2 + 3], seen[-5:]
        growth = statistics.median(end) / statistics.median(half)
        verdict = "flat" if growth <= FLAT_MEMORY else "**grows**"
        rows.append((name, *(f"{seen[mark] / MIB:.0f}" for mark in marks), f"{growth:.3f}", verdict))
    return [
        f"{number:,} requests in {part['seconds']:.0f} s, 64 at once. MiB resident after so many:",
        "",
        *table(("", *head, "end over half", f"at most {FLAT_MEMORY:g}"), rows),
    ]


def main() -> None:
    """Read the arguments, measure the parts, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=ROOT / "weights" / "fashion-mnist")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that compute, in all")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--scale", type=float, default=1.0, help="of all counts: 0.01 for a quick look")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder for growth.json and the tables")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--only: parts are {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        verdicts = Path(folder) / "seed-verdicts"
        bench = Bench(
            arguments.weights.resolve(), arguments.threads, arguments.device, arguments.scale, verdicts
        )
        results: Figures = {
            "machine": machine(),
            "pipeline": bench.pipeline.name,
            "scale": bench.scale,
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "parts": {},
        }
        for part in chosen:
            say(f"part {part}: {PARTS[part].__doc__}")
            results["parts"][part] = PARTS[part](bench)
    (arguments.out / "growth.json").write_text(json.dumps(results, indent=1) + "\n")
    text = "\n\n".join(sections(results))
    print(text)
    readme = arguments.out / "README.md"
    if readme.exists():
        between = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
        readme.write_text(between.sub(lambda _: f"{BEGIN}\n{text}\n{END}", readme.read_text()))


if __name__ == "__main__":
    main()
