"""Measure how fast Smalti serves, and against what: `make bench`. Takes about eight minutes.

a  the engine alone, by batch size, and its share of the machine's matrix rate
b  over HTTP, through `smalti up`: cold start, one image at a time, many at once
c  mixed requests that arrive at random at 70 % load: against whole-request batching with the same engine
d  the same work one request at a time, and behind LitServe
e  a job that computes nothing, over HTTP

Figures go to results.json as they come; then report.py draws the table and the plot. `--only a,c` measures
these parts and keeps the other parts' figures. Progress is told on standard error.
"""

import argparse
import itertools
import json
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from workers.queue import embedded_server

HERE = Path(__file__).parent
ROOT = HERE.parent
IMAGE = {"Accept": "image/png"}
JOB = {"Accept": "application/json", "Prefer": "wait=170"}
START_TIMEOUT_S = 120.0
MAX_BATCH_SIZE = 32
NUM_CONNECTIONS = 2 * MAX_BATCH_SIZE  # the next batch is there before this one has ended
LOAD = 0.7
NUM_STEPS = {4: 0.30, 8: 0.30, 16: 0.25, 32: 0.10, 50: 0.05}  # how often, in part c
NUM_IMAGES = {1: 0.85, 4: 0.15}

Times = list[tuple[float, float]]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What is measured, and for how long."""

    pipeline: Path
    num_threads: int
    device: str
    scale: float  # of every duration and count
    verdicts: Path  # of the check of the seed promise, which each service finds done
    max_batch_size: int = MAX_BATCH_SIZE

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every process here, Smalti's or not: the same threads, that wait asleep."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SMALTI_")}
        kept.pop("REDIS_URL", None)
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "OMP_NUM_THREADS": str(self.num_threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "SMALTI_NUM_THREADS": str(self.num_threads),
            "SMALTI_DEVICE": self.device,
            "SMALTI_WEIGHTS_DIR": str(self.pipeline.parent.absolute()),
            "SMALTI_PIPELINES": self.pipeline.name,
            "SMALTI_MAX_BATCH_SIZE": str(self.max_batch_size),
            "SMALTI_MAX_QUEUE_LENGTH": "100000",
            "SMALTI_MAX_WAIT_S": "200",
            "SMALTI_LOG_LEVEL": "WARNING",
        }

    def seconds(self, seconds: float) -> float:
        return seconds * self.scale

    def count(self, number: int) -> int:
        return max(3, round(number * self.scale))


def main() -> None:
    """Read the arguments, measure the parts, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=ROOT / "weights" / "fashion-mnist")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that compute, in each case")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--scale", type=float, default=1.0, help="of all durations: 0.1 for a quick look")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder for results.json and so on")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--only: parts are {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    verdicts = Path(tempfile.mkdtemp()) / "seed-verdicts"
    bench = Bench(arguments.weights.resolve(), arguments.threads, arguments.device, arguments.scale, verdicts)
    if not (bench.pipeline / "pipeline.json").exists():
        parser.error(f"--weights: there is no pipeline.json in {arguments.weights}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.json"
    results: Figures = {"parts": {}}
    if path.exists() and set(chosen) != set(PARTS):
        results = json.loads(path.read_text())
    results |= {
        "machine": machine(),
        "pipeline": bench.pipeline.name,
        "device": bench.device,
        "num_threads": bench.num_threads,
        "scale": bench.scale,
        "versions": {"Python": platform.python_version()}
        | {name: version(name) for name in ("torch", "smalti")},
    }
    say("the check of the seed promise, which a service makes once, while it serves")
    results["check"] = compute(bench, "check", 0)
    for part in chosen:
        say(f"part {part}: {PARTS[part].__doc__}")
        began_at = time.monotonic()
        figures = PARTS[part](bench)
        figures["measured_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        results["parts"][part] = figures
        path.write_text(json.dumps(results, indent=1) + "\n")
        say(f"part {part} took {time.monotonic() - began_at:.0f} s")
    subprocess.run([sys.executable, HERE / "report.py", arguments.out], check=True)


# --- the parts ---------------------------------------------------------------------------------------------


def engine_alone(bench: Bench) -> Figures:
    """the engine alone"""
    return compute(bench, "engine", bench.seconds(4))


def over_http(bench: Bench) -> Figures:
    """over HTTP, through `smalti up`"""
    began_at = time.perf_counter()
    with smalti_up(bench) as address:
        ready_s = time.perf_counter() - began_at
        send(bench, address, IMAGE, single_images(1), num_connections=1)
        first_image_s = time.perf_counter() - began_at
        alone = send(bench, address, IMAGE, single_images(bench.count(40)), num_connections=1)
        say("  many at once")
        images_per_s = saturate(bench, address, IMAGE, single_images(50_000), bench.seconds(15))
        say("  many at once, of different steps")
        mixed_images_per_s = saturate(bench, address, IMAGE, mixed_images(10**4), bench.seconds(15))
    return {
        "ready_s": ready_s,
        "first_image_s": first_image_s,
        "one_image": summary(alone),
        "images_per_s": images_per_s,
        "mixed_images_per_s": mixed_images_per_s,
        "num_connections": NUM_CONNECTIONS,
    }


def random_arrivals(bench: Bench) -> Figures:
    """mixed requests at 70 % load, against whole-request batching"""
    with service(bench, (sys.executable, "-P", "-m", "app.cli.main", "worker")) as address:
        say("  the capacity")
        bodies = mixed(2000, seed=1)
        capacity = saturate(bench, address, JOB, bodies, bench.seconds(15), num_steps_of)
        say("  how long each kind takes alone")
        alone = times_alone(bench, address)
        bodies = mixed(10**4, seed=2)
        rate = LOAD * capacity / statistics.fmean(map(num_steps_of, bodies))
        arrivals_s = list(itertools.islice(poisson(rate, seed=3), len(bodies)))
        arrivals_s = [at for at in arrivals_s if at < bench.seconds(75)]
        bodies = bodies[: len(arrivals_s)]
        say(f"  {len(bodies)} requests, {rate:.1f} a second, joining between steps")
        joining = send(bench, address, JOB, bodies, arrivals_s=arrivals_s)
    others: dict[str, Times] = {}
    for kind in ("together", "whole"):
        with service(bench, (sys.executable, str(HERE / "worker.py"), kind)) as address:
            send(bench, address, JOB, mixed(3, seed=4), num_connections=1)
            say(f"  the same requests, in whole batches: {kind}")
            others[kind] = send(bench, address, JOB, bodies, arrivals_s=arrivals_s)
    return {
        "num_requests": len(bodies),
        "requests_per_s": rate,
        "load": LOAD,
        "capacity_image_steps_per_s": capacity,
        "num_steps": NUM_STEPS,
        "num_images": NUM_IMAGES,
        "joining": by_kind(joining, bodies, alone),
        **{kind: by_kind(times, bodies, alone) for kind, times in others.items()},
    }


def others(bench: Bench) -> Figures:
    """one request at a time, and LitServe"""
    loop = compute(bench, "loop", bench.seconds(15))
    with litserve(bench) as address:
        say("  LitServe, many at once")
        images_per_s = saturate(bench, address, IMAGE, single_images(50_000), bench.seconds(15))
        say("  many at once, of different steps")
        mixed_images_per_s = saturate(bench, address, IMAGE, mixed_images(10**4), bench.seconds(15))
    return {
        "loop_images_per_s": loop["images_per_s"],
        "litserve_images_per_s": images_per_s,
        "litserve_mixed_images_per_s": mixed_images_per_s,
        "litserve_version": version("litserve"),
        "litserve_max_batch_size": MAX_BATCH_SIZE,
        "num_connections": NUM_CONNECTIONS,
    }


def empty_jobs(bench: Bench) -> Figures:
    """jobs that compute nothing"""
    with service(bench, (sys.executable, str(HERE / "worker.py"), "empty")) as address:
        send(bench, address, IMAGE, single_images(10), num_connections=1)
        alone = send(bench, address, IMAGE, single_images(bench.count(500)), num_connections=1)
        jobs_per_s = saturate(bench, address, IMAGE, single_images(50_000), bench.seconds(5))
    return {**summary(alone), "num_jobs": len(alone), "jobs_per_s": jobs_per_s}


PARTS = {"a": engine_alone, "b": over_http, "c": random_arrivals, "d": others, "e": empty_jobs}


# --- requests ----------------------------------------------------------------------------------------------


def single_images(number: int) -> list[Figures]:
    """Return requests for one image each, with the pipeline's defaults."""
    return [{"class_label": 0, "seed": seed} for seed in range(number)]


def mixed(number: int, seed: int) -> list[Figures]:
    """Return requests of many kinds."""
    draw = random.Random(seed)
    return [
        {
            "class_label": 0,
            "seed": each,
            "num_steps": draw.choices([*NUM_STEPS], [*NUM_STEPS.values()])[0],
            "num_images": draw.choices([*NUM_IMAGES], [*NUM_IMAGES.values()])[0],
        }
        for each in range(number)
    ]


def mixed_images(number: int) -> list[Figures]:
    """Return requests for one image each, of different numbers of steps."""
    return [{**body, "num_images": 1} for body in mixed(number, seed=5)]


def num_steps_of(body: Figures) -> int:
    """Return how many steps of one image a request takes."""
    return int(body["num_steps"] * body["num_images"])


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Yield the times of arrivals, in seconds."""
    draw, at_s = random.Random(seed), 0.0
    while True:
        at_s += draw.expovariate(rate)
        yield at_s


def send(bench: Bench, address: str, headers: dict[str, str], bodies: list[Figures], **how: Any) -> Times:
    """Send requests from a process of its own; see client.py."""
    plan = {"address": address, "path": "/generate", "headers": headers, "bodies": bodies, **how}
    if "num_connections" in how:
        plan.setdefault("seconds", 120)
    output = subprocess.run(
        [sys.executable, HERE / "client.py"],
        input=json.dumps(plan),
        stdout=subprocess.PIPE,
        env=bench.environment,
        text=True,
        check=True,
        timeout=plan.get("seconds", 0) + 600,
    ).stdout
    return [(sent, answered) for sent, answered in json.loads(output)]


def saturate(
    bench: Bench,
    address: str,
    headers: dict[str, str],
    bodies: list[Figures],
    seconds: float,
    weight_of: Any = lambda body: 1,
    num_connections: int = NUM_CONNECTIONS,
) -> float:
    """Return what is done a second, by weight, with as many requests on their way as there are connections.

    A request that lies partly in the measured time counts in part.
    """
    begin_s = bench.seconds(4)
    end_s = begin_s + seconds
    times = send(
        bench,
        address,
        headers,
        bodies,
        num_connections=num_connections,
        seconds=end_s + bench.seconds(2),
    )
    done = sum(
        weight_of(body) * max(0.0, min(answered, end_s) - max(sent, begin_s)) / (answered - sent)
        for body, (sent, answered) in zip(bodies, times, strict=False)
    )
    return done / seconds


def times_alone(bench: Bench, address: str) -> dict[tuple[int, int], float]:
    """Return how long a request takes with nothing else running, by (num_steps, num_images)."""
    kinds = [*itertools.product(NUM_STEPS, NUM_IMAGES)]
    bodies = [
        {"class_label": 0, "seed": 0, "num_steps": steps, "num_images": images} for steps, images in kinds
    ]
    rounds = bench.count(3)
    latencies = [
        answered - sent for sent, answered in send(bench, address, JOB, bodies * rounds, num_connections=1)
    ]
    return {kind: statistics.median(latencies[i :: len(kinds)]) for i, kind in enumerate(kinds)}


# --- figures -----------------------------------------------------------------------------------------------


def summary(times: Times) -> Figures:
    """Return p50 and p99 of latencies."""
    latencies = [answered - sent for sent, answered in times]
    return {"p50_s": percentile(latencies, 50), "p99_s": percentile(latencies, 99)}


def by_kind(times: Times, bodies: list[Figures], alone: dict[tuple[int, int], float]) -> Figures:
    """Return the latencies of all requests and of each number of steps, and how much longer than alone."""
    latencies = [answered - sent for sent, answered in times]
    slowdowns = [
        latency / alone[body["num_steps"], body["num_images"]]
        for latency, body in zip(latencies, bodies, strict=True)
    ]
    steps = sorted({body["num_steps"] for body in bodies})
    of_steps = {
        number: [pair for pair, body in zip(times, bodies, strict=True) if body["num_steps"] == number]
        for number in steps
    }
    return {
        **summary(times),
        "slowdown_p50": percentile(slowdowns, 50),
        "slowdown_p99": percentile(slowdowns, 99),
        "by_num_steps": {number: summary(each) for number, each in of_steps.items()},
        "percentiles_s": [round(percentile(latencies, each), 4) for each in range(101)],
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def machine() -> str:
    """Return the machine in words."""
    words = [f"{os.cpu_count()} cores ({platform.machine()}"]
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    known = {"avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}
    words += [name for flag, name in known.items() if flag in flags]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{', '.join(words)}), {memory_gib:.0f} GiB of memory"


# --- processes ---------------------------------------------------------------------------------------------


def compute(bench: Bench, part: str, seconds: float) -> Figures:
    """Run compute.py."""
    command = [
        sys.executable, HERE / "compute.py", part, bench.pipeline,
        "--seconds", str(seconds), "--threads", str(bench.num_threads), "--device", bench.device,
        "--verdicts", bench.verdicts,
    ]  # fmt: skip
    output = subprocess.run(
        command, stdout=subprocess.PIPE, env=bench.environment, text=True, check=True, timeout=600
    ).stdout
    return dict(json.loads(output))


@contextmanager
def smalti_up(bench: Bench) -> Iterator[str]:
    """The whole service, by its one command; gives its address."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**bench.environment, "SMALTI_DATA_DIR": folder}
        shutil.copytree(bench.verdicts, Path(folder) / "seed-verdicts")
        command = [sys.executable, "-P", "-m", "app.cli.main", "up", "--port", "0"]
        with running(command, environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            if not line.startswith("READY"):
                sys.exit("the service did not start")
            yield line.removeprefix("READY at ").strip()


@contextmanager
def service(bench: Bench, worker: Sequence[str]) -> Iterator[str]:
    """The queue server, the API and any worker; gives the API's address."""
    port = free_port()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shutil.copytree(bench.verdicts, folder / "seed-verdicts")
        server = embedded_server.start(folder / "queue")
        stack.callback(server.stop)
        environment = {**bench.environment, "SMALTI_DATA_DIR": str(folder), "REDIS_URL": server.url}
        serve = [sys.executable, "-P", "-m", "app.cli.main", "serve", "--port", str(port)]
        api = stack.enter_context(running(serve, environment))
        process = stack.enter_context(running(worker, environment))
        address = f"http://127.0.0.1:{port}"
        wait_until_ready(f"{address}/health/ready", api, process)
        yield address


@contextmanager
def litserve(bench: Bench) -> Iterator[str]:
    """LitServe with the same model; gives its address."""
    port = free_port()
    command = [
        sys.executable, str(HERE / "litserve_server.py"), str(bench.pipeline), "--port", str(port),
        "--threads", str(bench.num_threads), "--device", bench.device,
        "--max-batch-size", str(MAX_BATCH_SIZE),
    ]  # fmt: skip
    with running(command, bench.environment) as process:
        wait_until_ready(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def running(
    command: Sequence[str], environment: dict[str, str], stdout: int | None = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, of which in the end nothing is left."""
    process = subprocess.Popen(command, env=environment, stdout=stdout, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            say(f"  did not end in time: {' '.join(command[1:4])}")
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def wait_until_ready(url: str, *processes: subprocess.Popen[bytes]) -> None:
    """Wait until a health check says yes."""
    ends_at = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends_at:
        if any(process.poll() is not None for process in processes):
            sys.exit(f"{url}: the server ended before it was ready")
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    sys.exit(f"{url}: not ready in {START_TIMEOUT_S:.0f} s")


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
