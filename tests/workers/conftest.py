"""Workers as real processes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.waiting import wait_until
from workers.queue.records import WORKERS

ROOT = Path(__file__).parents[2]


class WorkerProcesses:
    """Starts workers of one queue and ends those that are left."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.redis_url = redis_url
        self.data_dir = folder / "data"
        self.log_path = folder / "workers.log"
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        *,
        lease_s: float = 1.0,
        step_s: float = 0.002,
        grace_s: float = 5.0,
        max_tries: int = 3,
        wait: bool = True,
    ) -> "subprocess.Popen[bytes]":
        values = (self.redis_url, self.data_dir, lease_s, step_s, grace_s, max_tries)
        arguments = [str(value) for value in values]
        with self.log_path.open("ab") as log:
            command = [sys.executable, "-m", "tests.workers.toy_worker", *arguments]
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        self._started.append(process)
        if wait:
            with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
                wait_until(lambda: str(process.pid) in _pids(client))
        return process

    def end(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def worker_processes(redis_url: str, tmp_path: Path) -> Iterator[WorkerProcesses]:
    processes = WorkerProcesses(redis_url, tmp_path)
    yield processes
    processes.end()


def _pids(client: "redis.Redis") -> set[str]:
    ready = [client.hmget(key, "pid", "phase") for key in client.smembers(WORKERS)]
    return {pid for pid, phase in ready if phase == "ready"}
