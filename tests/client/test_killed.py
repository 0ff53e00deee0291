"""Jobs that a client waits for while the processes of the service are killed."""

import os
import signal
from pathlib import Path

import pytest

from smalti import Client
from tests.app.test_up import processes_of, service
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="reads /proc"),
]


def test_waits_outlive_a_killed_api_and_a_killed_worker(tmp_path, tiny_weights):
    with service(tmp_path, tiny_weights) as (_, url, _), Client(url, timeout_s=90, retry_s=60) as client:
        requests = [{"seed": seed, "num_steps": 150, "num_outputs": 4} for seed in range(3)]
        before = [client.generate(**request).outputs[-1].bytes() for request in requests]
        jobs = [client.submit("generate", **request) for request in requests]
        events = jobs[-1].events()
        next(events)
        for part in ("--supervised serve", "--supervised worker"):
            for pid, command in processes_of(tmp_path).items():
                if part in command:
                    os.kill(pid, signal.SIGKILL)

        assert [job.wait().outputs[-1].bytes() for job in jobs] == before
        assert list(events)[-1].job.status == "succeeded"
        assert jobs[-1].info.num_tries == 2, "the worker was killed too late"
        wait_until(lambda: client.health().is_ready, 30)
