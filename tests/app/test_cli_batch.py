"""`smalti batch`: outputs as files, results in order, exit statuses that mean something, going on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.cli.at_service import client_of, read_key
from app.cli.batch_outputs import names_of
from app.cli.exit_status import ExitStatus, status_of
from app.cli.main import cli
from app.cli.terminal import CommandError
from app.main import create_app
from tests.app.conftest import serving, settings_for, working
from tests.fake_engine import FAILS_SAMPLES, FakeEngine
from tests.waiting import wait_until


def row(row_id: str, seed: object, **body: object) -> dict:
    return {"id": row_id, "operation": "generate", "body": {"class_label": 1, "seed": seed, **body}}


def write(path: Path, *rows: dict | str) -> Path:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in rows))
    return path


def run(service, file: Path, out: Path, *options: str) -> Result:
    url = str(service.client.base_url)
    return CliRunner().invoke(cli, ["batch", str(file), "--out", str(out), "--url", url, *options])


def results(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def made(service, seed: int, index: int = 0) -> bytes:
    body = {"class_label": 1, "seed": seed, "num_outputs": index + 1}
    job = service.client.post("/generate", json=body, headers={"Prefer": "wait=10"}).json()
    return service.client.get(f"/jobs/{job['id']}/outputs/{index}").content


def test_outputs_become_files_and_results_come_in_the_order_of_the_input(service, tmp_path):
    file = write(tmp_path / "rows.jsonl", row("b", 1), row("a", 2, num_outputs=2), row("c", 3, format="webp"))
    done = run(service, file, tmp_path / "out")
    assert (done.exit_code, done.stdout) == (0, "3 succeeded\n"), done.output
    out = tmp_path / "out"
    assert [(each["id"], each["files"]) for each in results(out)] == [
        ("b", ["b.png"]),
        ("a", ["a-0.png", "a-1.png"]),
        ("c", ["c.webp"]),
    ]
    assert (out / "b.png").read_bytes() == made(service, 1)
    assert (out / "a-1.png").read_bytes() == made(service, 2, 1)
    assert {path.name for path in out.iterdir()} == {
        "b.png", "a-0.png", "a-1.png", "c.webp", "results.jsonl", "batch.json",
    }  # fmt: skip


def test_rows_that_fail_are_told_by_status_and_in_the_results(service, tmp_path):
    file = write(tmp_path / "rows.jsonl", row("good", 1), "no JSON", row("ill", FAILS_SAMPLES), row("x", "y"))
    done = run(service, file, tmp_path / "out")
    assert (done.exit_code, done.stdout) == (4, "3 failed, 1 succeeded\n")
    assert "results.jsonl says why" in done.stderr
    assert [(each["id"], each["status"], each["files"]) for each in results(tmp_path / "out")] == [
        ("good", "succeeded", ["good.png"]),
        (None, "failed", []),
        ("ill", "failed", []),
        ("x", "failed", []),
    ]


def test_running_it_again_goes_on_with_the_same_batch_and_fetches_what_is_missing(service, tmp_path):
    file, out = write(tmp_path / "rows.jsonl", row("kept", 11), row("lost", 12)), tmp_path / "out"
    assert run(service, file, out).exit_code == 0
    first = json.loads((out / "batch.json").read_text())
    kept = (out / "kept.png").stat()
    (out / "lost.png").write_bytes(b"harmed")
    (out / ".lost.png.part").write_bytes(b"half")
    again = run(service, file, out)
    assert again.exit_code == 0
    assert f"going on with batch {first['batch']}" in again.stderr
    assert json.loads((out / "batch.json").read_text()) == first
    assert (out / "kept.png").stat().st_mtime_ns == kept.st_mtime_ns
    assert (out / "lost.png").read_bytes() == made(service, 12)
    assert not list(out.glob(".*"))


def test_a_batch_that_was_cancelled_is_made_anew(service, tmp_path):
    service.engine.is_held.set()
    file, out = write(tmp_path / "rows.jsonl", row("a", 21), row("b", 22)), tmp_path / "out"
    command = [sys.executable, "-m", "app.cli.main", "batch", str(file), "--out", str(out)]
    with subprocess.Popen([*command, "--url", str(service.client.base_url)]) as process:
        wait_until(lambda: (out / "batch.json").exists())
        batch_id = json.loads((out / "batch.json").read_text())["batch"]
        wait_until(lambda: service.client.get(f"/batches/{batch_id}").json()["num_rows"] == 2)
        service.client.delete(f"/batches/{batch_id}")
        assert process.wait(20) == 4
    assert {each["status"] for each in results(out)} == {"cancelled"}
    service.engine.is_held.clear()
    assert run(service, file, out).exit_code == 0
    assert json.loads((out / "batch.json").read_text())["batch"] != batch_id
    assert {each["status"] for each in results(out)} == {"succeeded"}


def test_a_folder_of_another_file_is_left_alone(service, tmp_path):
    assert run(service, write(tmp_path / "1.jsonl", row("a", 1)), tmp_path / "out").exit_code == 0
    other = run(service, write(tmp_path / "2.jsonl", row("a", 2)), tmp_path / "out")
    assert "has the outputs of another file" in str(other.exception)
    assert (tmp_path / "out/a.png").read_bytes() == made(service, 1)


def test_what_can_not_be_a_batch_is_said(service, tmp_path):
    assert run(service, tmp_path / "none.jsonl", tmp_path / "out").exit_code == 2
    empty = run(service, write(tmp_path / "empty.jsonl"), tmp_path / "out")
    assert "there is no row" in str(empty.exception)
    twice = run(service, write(tmp_path / "twice.jsonl", row("a", 1), row("a", 2)), tmp_path / "other")
    assert "twice.jsonl: " in str(twice.exception)
    assert not (tmp_path / "other/results.jsonl").exists()


def test_outputs_of_a_service_behind_a_prefix_are_fetched(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url, root_path="/smalti")
    file, out = write(tmp_path / "rows.jsonl", row("a", 1)), tmp_path / "out"
    with working(settings, FakeEngine()), serving(create_app(settings)) as client:
        command = ["batch", str(file), "--out", str(out), "--url", f"{client.base_url}/smalti"]
        done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert (out / "a.png").exists()


def test_without_a_service_it_says_so_at_once(tmp_path):
    file = write(tmp_path / "rows.jsonl", row("a", 1))
    command = ["batch", str(file), "--out", str(tmp_path / "out"), "--url", "http://127.0.0.1:9"]
    done = CliRunner().invoke(cli, command)
    assert status_of(done.exception) is ExitStatus.UNAVAILABLE
    assert "can't reach the service at http://127.0.0.1:9/" in str(done.exception)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://me:pw@x", "http://x?y"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(CommandError, match="--url is like http://127"):
        client_of(url)


def test_the_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    assert read_key(None) is None
    monkeypatch.setenv("SMALTI_API_KEY", "smalti-1")
    assert read_key(None) == "smalti-1"
    file = tmp_path / "key"
    file.write_text("smalti-2\n")
    assert read_key(file) == "smalti-2"
    for text in ("", "a b", "é"):
        file.write_text(text)
        with pytest.raises(CommandError, match="--api-key-file"):
            read_key(file)
    with pytest.raises(CommandError, match="can't be read"):
        read_key(tmp_path / "none")


def test_names_are_safe_and_of_one_row_each():
    ids = ["cat", "../../etc/passwd", "a/b", "a_b", "Cat", "a", "a-0", ".hidden", "", "é", "x" * 300, "IMG_1"]
    names = names_of(ids)
    assert len({name.casefold() for name in names.values()}) == len(ids)
    assert (names["a"], names["a_b"].startswith("a_b-"), names["IMG_1"]) == ("a", True, "IMG_1")
    assert names["a-0"] != "a-0"  # which is the first of a's outputs
    for name in names.values():
        assert not name.startswith(".")
        assert "/" not in name
        assert len(name) < 120
    assert names_of(reversed(ids)) == names


@pytest.mark.ci
def test_killed_again_and_again_it_ends_with_every_output(service, tmp_path):
    service.engine.step_s = 0.02
    rows = [row(f"r{seed}", seed) for seed in range(150)]
    file, out = write(tmp_path / "rows.jsonl", *rows), tmp_path / "out"
    command = [sys.executable, "-m", "app.cli.main", "batch", str(file), "--out", str(out)]
    command += ["--url", str(service.client.base_url)]
    try:
        for number in range(3):
            with subprocess.Popen(command) as process:
                wait_until(lambda: len(list(out.glob("*.png"))) > 20 * number, 30)  # noqa: B023
                process.send_signal(signal.SIGKILL)
        began = time.monotonic()
        assert subprocess.run(command, timeout=120, check=False).returncode == 0
        assert time.monotonic() - began < 100
    finally:
        service.engine.step_s = None
    assert [each["files"] for each in results(out)] == [[f"r{seed}.png"] for seed in range(150)]
    assert all((out / f"r{seed}.png").stat().st_size for seed in range(150))
    assert (out / "r149.png").read_bytes() == made(service, 149)
    assert len(service.client.get("/batches").json()["batches"]) >= 1
