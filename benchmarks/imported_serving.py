"""Measure an imported model behind Smalti against the same weights in diffusers behind LitServe.

    python benchmarks/imported_serving.py [--seconds 90] [--threads 2] [--connections 16]

A DiT-S/2 for pictures of 256 px, guided, DDIM, with a decoder of the kind of TAESD, in bfloat16, with
random weights. Requests for one picture each come over HTTP, as many at once as there are connections, all
of 20 steps, then of 8 to 50. One line of JSON for each row, and a table at the end.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import AutoencoderTiny, DDIMScheduler, DiTPipeline
from imported import DIT_S_2, DIT_TINY, random_dit
from over_http import wait_for_check
from serving import JOB, Bench, free_port, running, saturate, say, smalti_up, wait_until_ready

HERE = Path(__file__).parent
MAX_BATCH_SIZE = 8
CHECK_TIMEOUT_S = 300.0
WAITED_FOR = {**JOB, "Accept": "image/png"}
NUM_STEPS = {8: 0.30, 16: 0.30, 32: 0.25, 50: 0.15}  # how often
REQUESTS = {
    "20 steps": lambda draw: 20,
    "8 to 50 steps": lambda draw: draw.choices([*NUM_STEPS], [*NUM_STEPS.values()])[0],
}


def save(folder: Path, config: dict[str, Any]) -> None:
    """Write a pipeline of diffusers with random weights."""
    vae = AutoencoderTiny(latent_channels=4)
    DiTPipeline(random_dit(config), vae, DDIMScheduler(clip_sample=False)).save_pretrained(folder)


@contextmanager
def smalti(bench: Bench, folder: Path) -> Iterator[str]:
    """Smalti with the imported pipeline; gives its address."""
    subprocess.run(
        [sys.executable, "-P", "-m", "app.cli.main", "import", folder, "--out", bench.pipeline],
        stdout=subprocess.DEVNULL,
        env=bench.environment,
        check=True,
    )
    with smalti_up(bench) as address:
        wait_for_check(address, CHECK_TIMEOUT_S)
        yield address


@contextmanager
def litserve(bench: Bench, folder: Path) -> Iterator[str]:
    """LitServe with diffusers; gives its address."""
    port = free_port()
    command = [
        sys.executable, str(HERE / "litserve_diffusers.py"), str(folder), "--port", str(port),
        "--threads", str(bench.num_threads), "--max-batch-size", str(MAX_BATCH_SIZE),
    ]  # fmt: skip
    with running(command, bench.environment) as process:
        wait_until_ready(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=90, help="that each row is measured")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--connections", type=int, default=2 * MAX_BATCH_SIZE)
    parser.add_argument("--tiny", action="store_true", help="a small model, to see that it works")
    asked = parser.parse_args()
    rows: dict[str, dict[str, float]] = {name: {} for name in REQUESTS}
    with tempfile.TemporaryDirectory() as name:
        folder, weights, verdicts = (Path(name) / each for each in ("diffusers", "weights", "verdicts"))
        save(folder, DIT_TINY if asked.tiny else DIT_S_2)
        verdicts.mkdir()
        bench = Bench(weights / "dit", asked.threads, "cpu", 1.0, verdicts, MAX_BATCH_SIZE)
        for server in (smalti, litserve):
            with server(bench, folder) as address:
                for kind, num_steps in REQUESTS.items():
                    draw = random.Random(5)
                    bodies = [
                        {"class_label": draw.randrange(1000), "seed": seed, "num_steps": num_steps(draw)}
                        for seed in range(20_000)
                    ]
                    say(f"{server.__name__}: {kind}")
                    rows[kind][server.__name__] = saturate(
                        bench, address, WAITED_FOR, bodies, asked.seconds, num_connections=asked.connections
                    )
                    say(json.dumps({"requests": kind, server.__name__: rows[kind][server.__name__]}))
    print("| requests | Smalti, images/s | LitServe around diffusers, images/s | ratio |\n|---|---|---|---|")
    for kind, found in rows.items():
        ratio = found["smalti"] / found["litserve"]
        print(f"| {kind} | {found['smalti']:.3g} | {found['litserve']:.3g} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
