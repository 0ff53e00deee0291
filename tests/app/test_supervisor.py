"""The process tree, run as a process of its own with tiny children."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from tests.waiting import wait_until

# Every child appends "<name> <pid>" to the log when it starts and "<name> done" when it has drained.
CHILD = """
import os, signal, sys, time
from pathlib import Path
from app.processes.supervisor import end_with_stdin
name, log, drain_s = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
def write(line):
    with log.open("a") as file:
        file.write(line + "\\n")
def drain(number, frame):
    time.sleep(drain_s)
    write(f"{name} done")
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
end_with_stdin(grace_s=1.0)
write(f"{name} {os.getpid()}")
while True:
    time.sleep(0.05)
"""

TREE = """
import sys
from pathlib import Path
from app.processes.supervisor import Child, Supervisor
log = Path(sys.argv[1])
def child(name, drain_s=0.0):
    ready = lambda: log.exists() and f"{name} " in log.read_text()
    return Child(name, (sys.executable, "-c", CHILD, name, str(log), str(drain_s)), is_ready=ready)
def run(stages, **options):
    sys.exit(Supervisor(stages, backoff_s=0.05, **options).run(lambda: print("READY", flush=True)))
"""


@contextmanager
def tree(tmp_path: Path, stages: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    log = tmp_path / "log"
    source = f"CHILD = {CHILD!r}\n{TREE}\nrun({dedent(stages)})"
    process = subprocess.Popen(
        [sys.executable, "-c", source, str(log)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process, log
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def pids(log: Path, name: str) -> list[int]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith(f"{name} ") and line[-1].isdigit()]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Where nobody reaps orphans, as in many containers, an ended process stays as a zombie.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def ready(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "READY\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_all_and_the_first_stage_last(tmp_path, number):
    with tree(tmp_path, "[[child('queue')], [child('api'), child('worker', 0.3)]]") as (process, log):
        assert ready(process)
        process.send_signal(number)
        assert process.wait(15) == 0
        lines = log.read_text().splitlines()
        assert lines[0].startswith("queue ")
        assert sorted(lines[3:5]) == ["api done", "worker done"]
        assert lines[5:] == ["queue done"]


def test_a_child_that_dies_is_started_again(tmp_path):
    with tree(tmp_path, "[[child('worker')]]") as (process, log):
        assert ready(process)
        for num_deaths in (1, 2):
            os.kill(pids(log, "worker")[-1], signal.SIGKILL)
            wait_until(lambda expected=num_deaths + 1: len(pids(log, "worker")) == expected)
        process.terminate()
        _, told = process.communicate(timeout=15)
        assert process.returncode == 0
        assert "worker was killed by SIGKILL" in told
        assert "again in 0.05 s" in told
        assert "again in 0.1 s" in told


def test_nothing_is_left_when_the_supervisor_is_killed(tmp_path):
    stages = "[[child('queue')], [child('api'), child('worker', 0.3)]]"
    with tree(tmp_path, stages) as (process, log):
        assert ready(process)
        children = [*pids(log, "queue"), *pids(log, "api"), *pids(log, "worker")]
        process.kill()
        wait_until(lambda: not any(map(is_running, children)))
        assert log.read_text().splitlines()[-1] == "queue done"  # its stage outlives the later ones


def test_a_child_that_cannot_start_takes_the_others_with_it(tmp_path):
    stages = """[[child('queue')], [child('api'), Child('worker', (sys.executable, '-c', 'exit(3)'),
                                                         is_ready=lambda: False)]]"""
    with tree(tmp_path, stages) as (process, log):
        out, told = process.communicate(timeout=15)
        assert process.returncode == 1
        assert "worker could not start: it ended with status 3" in told
        assert out == ""
        assert not any(map(is_running, pids(log, "queue") + pids(log, "api")))


def test_why_a_child_ends_is_told_in_its_words(tmp_path):
    says_why = (
        "import os, sys, time; from app.processes.supervisor import tell_reason;"
        "time.sleep(0.3); tell_reason('SMALTI_DEVICE is cuda'); os._exit(1)"
    )
    stages = f"[[child('queue')], [Child('worker', (sys.executable, '-c', {says_why!r}), is_ready=%s)]]"
    with tree(tmp_path, stages % "lambda: False") as (process, _):
        _, told = process.communicate(timeout=15)
        assert process.returncode == 1
        assert "worker could not start: SMALTI_DEVICE is cuda\n" in told
    with tree(tmp_path, stages % "lambda: True") as (process, _):
        assert process.stderr is not None
        line = next(line for line in process.stderr if "worker" in line)
        assert line.endswith(
            "ended with status 1, because SMALTI_DEVICE is cuda; starting it again in 0.05 s\n"
        )


def test_a_child_that_is_never_ready_cannot_start(tmp_path):
    stages = """[[Child('api', (sys.executable, '-c', 'import time; time.sleep(60)'),
                        is_ready=lambda: False, start_timeout_s=0.3)]]"""
    with tree(tmp_path, stages) as (process, _):
        _, told = process.communicate(timeout=15)
        assert process.returncode == 1
        assert "api is not ready after 0 s" in told


def test_a_program_that_is_missing_cannot_start(tmp_path):
    with tree(tmp_path, "[[Child('api', ('/no/such/program',))]]") as (process, _):
        _, told = process.communicate(timeout=15)
        assert process.returncode == 1
        assert "api could not start" in told


def test_a_child_that_does_not_drain_is_killed_after_the_grace_period(tmp_path):
    with tree(tmp_path, "[[child('worker', 60)]], grace_s=0.3") as (process, log):
        assert ready(process)
        process.terminate()
        _, told = process.communicate(timeout=15)
        assert process.returncode == 0
        assert "worker is still at work: killing it" in told
        assert not is_running(pids(log, "worker")[0])


def test_a_second_signal_does_not_wait(tmp_path):
    with tree(tmp_path, "[[child('worker', 60)]]") as (process, log):
        assert ready(process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.8)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
        assert not is_running(pids(log, "worker")[0])


def test_what_a_child_started_ends_with_it(tmp_path):
    sleeper = (
        "import subprocess,time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    with tree(tmp_path, f"[[Child('api', (sys.executable, '-c', {sleeper!r}))]]") as (process, _):
        assert ready(process)
        assert process.stderr is not None
        grandchild = int(process.stderr.readline())
        process.terminate()
        process.wait(15)
        wait_until(lambda: not is_running(grandchild))
