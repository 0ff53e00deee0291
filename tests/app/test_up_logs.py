"""The log of `smalti up` as JSON: of every process, over a request, a crash and the end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.app.test_up import generate, needs_proc, processes_of
from tests.waiting import wait_until

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@needs_proc
@pytest.mark.ci
def test_every_line_of_every_process_is_json_and_one_request_is_found_by_its_ids(
    tmp_path: Path, tiny_weights: Path
):
    log = tmp_path / "log"
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"} | {
        "SMALTI_WEIGHTS_DIR": str(tiny_weights),
        "SMALTI_NUM_THREADS": "1",
        "SMALTI_LOG_FORMAT": "json",
    }
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.cli.main", "up", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().removeprefix("READY at ").strip()
        headers = {
            "X-Request-Id": "order-7",
            "traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01",
            "Prefer": "wait=30",
        }
        job = httpx.post(f"{address}/generate", json={"seed": 1}, headers=headers, timeout=60).json()
        (worker,) = (
            pid for pid, command in processes_of(tmp_path).items() if "--supervised worker" in command
        )
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: "was killed by SIGKILL" in log.read_text(), 30)
        assert generate(address).status_code == 200
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"smalti", "uvicorn.error", "app.queue", "workers.outbox"} <= {line["logger"] for line in lines}
    found = [line for line in lines if line.get("request_id") == "order-7"]
    assert {line["logger"] for line in found} == {"app.queue", "workers.outbox"}
    assert {(line["trace_id"], line["job_id"]) for line in found} == {(TRACE_ID, job["id"])}
    (death,) = (line for line in lines if "was killed by SIGKILL" in line["message"])
    assert death["level"] == "WARNING"
