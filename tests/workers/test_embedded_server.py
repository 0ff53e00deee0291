"""The embedded server: one per folder, shared, outliving its owner, keeping what it accepted."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.waiting import wait_until
from workers.queue import embedded_server


def _client(server: embedded_server.EmbeddedServer) -> "redis.Redis":
    return redis.Redis.from_url(server.url)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _has_ended(pid))


def _has_ended(pid: int) -> bool:
    try:
        if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
            os.waitpid(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        return True
    return False


def test_one_server_per_folder_ends_with_its_last_user(tmp_path):
    first = embedded_server.start(tmp_path)
    second = embedded_server.start(tmp_path)
    assert first.url == second.url
    assert first.pid == second.pid
    first.stop()
    with _client(second) as client:
        assert client.ping()
    second.stop()
    with _client(second) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_accepted_writes_survive_kill_of_the_server(tmp_path):
    server = embedded_server.start(tmp_path)
    with _client(server) as client:
        for number in range(500):
            client.rpush("numbers", number)
    _kill(server.pid)
    again = embedded_server.start(tmp_path)
    with _client(again) as client:
        assert client.llen("numbers") == 500
    server.abandon()
    again.stop()


def test_the_server_outlives_a_killed_owner_and_is_taken_over(tmp_path):
    code = (
        "import sys, time, pathlib; from workers.queue import embedded_server;"
        "print(embedded_server.start(pathlib.Path(sys.argv[1])).pid, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner, owner.stdout:
        pid = int(owner.stdout.readline())
        owner.kill()
    server = embedded_server.start(tmp_path)
    assert server.pid == pid
    server.stop()
    with _client(server) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_processes_that_start_at_once_get_one_server(tmp_path):
    code = (
        "import sys, pathlib; from workers.queue import embedded_server;"
        "server = embedded_server.start(pathlib.Path(sys.argv[1])); print(server.pid, flush=True);"
        "sys.stdin.read(); server.stop()"
    )
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    pids = {starter.stdout.readline() for starter in starters if starter.stdout}
    for starter in starters:
        starter.communicate("")
    assert len(pids) == 1
    assert all(starter.returncode == 0 for starter in starters)


@pytest.mark.parametrize("name", ["x" * 150, 'with "quotes" and spaces', "ünïcode"])
def test_any_folder_name_serves(tmp_path, name):
    server = embedded_server.start(tmp_path / name)
    with _client(server) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("dir") == {"dir": str(tmp_path / name)}
    server.stop()


def test_a_server_that_cannot_start_says_why(tmp_path):
    (tmp_path / "appendonlydir").write_text("no folder")
    with pytest.raises(embedded_server.ServerNotStarted, match="appendonlydir"):
        embedded_server.start(tmp_path)


def test_the_folder_and_all_in_it_is_for_this_user_alone(tmp_path):
    folder = tmp_path / "queue"
    folder.mkdir(0o755)
    before = os.umask(0)
    try:
        server = embedded_server.start(folder)
    finally:
        os.umask(before)
    with _client(server) as client:
        client.set("prompt", "a red apple")
        client.bgrewriteaof()
        wait_until(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0)
    modes = {path: path.stat().st_mode & 0o077 for path in [folder, *folder.rglob("*")]}
    server.stop()
    assert {path.name for path in modes} >= {"redis.sock", "server.log", "server.lock", "appendonlydir"}
    assert set(modes.values()) == {0}


def test_waiting_for_a_lock_is_told_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_server, "LOCK_NOTICE_S", 0.05)
    monkeypatch.setattr(embedded_server, "LOCK_TIMEOUT_S", 0.2)
    told: list[str] = []
    with (tmp_path / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(embedded_server.ServerNotStarted, match=r"held .*server\.lock .*SMALTI_DATA_DIR"):
            embedded_server.start(tmp_path, told.append)
    assert told == [f"another process starts or ends the queue server in {tmp_path}; waiting for it"]
