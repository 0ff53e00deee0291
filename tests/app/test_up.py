"""`smalti up` with a tiny pipeline: the whole service, from the command to its last process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.waiting import wait_until


@contextmanager
def service(tmp_path: Path, tiny_weights: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A running `smalti up`, its address, and the command that it says to try."""
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "app.cli.main", "up", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**environment, "SMALTI_WEIGHTS_DIR": str(tiny_weights), "SMALTI_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().removeprefix("READY at ").strip()
        command = process.stdout.readline().removeprefix("Try: ").strip()
        yield process, address, command
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def processes_of(tmp_path: Path) -> dict[int, str]:
    """The command lines of what runs in this folder, or in its data folder."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(tmp_path):
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return {pid: command for pid, command in found.items() if command}


def generate(address: str) -> httpx.Response:
    body = {"class_label": 0, "seed": 7}
    return httpx.post(f"{address}/generate", json=body, headers={"Accept": "image/png"}, timeout=60)


needs_proc = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="reads /proc")


@needs_proc
def test_what_it_says_to_try_works_and_a_signal_leaves_nothing(tmp_path, tiny_weights):
    with service(tmp_path, tiny_weights) as (process, address, command):
        subprocess.run(command, shell=True, cwd=tmp_path, check=True, timeout=60)
        assert (tmp_path / "image.png").read_bytes().startswith(b"\x89PNG")
        assert httpx.get(f"{address}/health/ready").json()["num_ready_workers"] == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert processes_of(tmp_path) == {}


@needs_proc
def test_a_killed_worker_and_a_killed_queue_server_come_back(tmp_path, tiny_weights):
    with service(tmp_path, tiny_weights) as (_, address, _):
        before = generate(address).content
        for part in ("--supervised worker", "valkey-server", "redis-server", "--supervised serve"):
            for pid, command in processes_of(tmp_path).items():
                if part in command:
                    os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "--supervised worker" in " ".join(processes_of(tmp_path).values()), 30)

        def answers() -> bool:
            try:
                return generate(address).content == before
            except httpx.HTTPError:
                return False

        wait_until(answers, 60)


@needs_proc
def test_nothing_is_left_when_it_is_killed(tmp_path, tiny_weights):
    with service(tmp_path, tiny_weights) as (process, address, _):
        assert generate(address).status_code == 200
        assert len(processes_of(tmp_path)) >= 4
        process.kill()
        wait_until(lambda: processes_of(tmp_path) == {}, 30)
