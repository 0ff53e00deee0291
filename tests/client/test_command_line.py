"""The command line against a running service: what it prints, and what its exit status says."""

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.cli.exit_status import ExitStatus
from app.cli.main import main
from tests.client.conftest import Service
from tests.waiting import wait_until

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.fixture
def smalti(service: Service, tmp_path, monkeypatch, capfd) -> Callable[..., tuple[str, str]]:
    """Run the command line with the service's address behind it; give what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.cli.at_service._RETRY_S", 0.0)

    def run(*arguments: str, status: int = 0, url: str = service.url) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["smalti", *arguments, "--url", url])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capfd.readouterr()
        assert (ended.value.code or 0) == status, told.err
        return told.out, told.err

    return run


def test_outputs_of_a_service_are_written_and_json_is_alone_on_standard_output(smalti, client):
    out, told = smalti("generate", "--seed", "5", "--num-outputs", "2", "--out", "a.png", "--return-codes")
    assert out == "a-0.png\na-1.png\na.json\n"
    assert "smalti: seed 5, " in told
    expected = client.generate(seed=5, num_outputs=2)
    assert [Path(f"a-{number}.png").read_bytes() for number in range(2)] == [
        each.bytes() for each in expected.outputs
    ]
    result = json.loads(smalti("generate", "--seed", "5", "--out", "b.webp", "--json")[0])
    assert result["files"] == ["b.webp"]
    assert (result["seed"], result["outputs"][0]["media_type"]) == (5, "image/webp")
    piped = smalti("generate", "--seed", "5", "--out", "b.png")[0]
    assert piped == "b.png\n"
    assert "want standard output" in smalti("generate", "--out", "-", "--json", status=1)[1]


def test_codes_of_a_service_are_lines_and_come_back(smalti):
    smalti("generate", "--seed", "5", "--num-outputs", "2", "--out", "a.png")
    Path("bad.png").write_bytes(b"not an image")
    out, told = smalti("encode", "a-1.png", "bad.png", "a-0.png", status=1)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["file"] for line in lines] == ["a-1.png", "a-0.png"]
    assert "smalti: bad.png: " in told
    assert "1 of 3 files are not encoded, named above" in told
    Path("codes.jsonl").write_text(out)
    out, _ = smalti("decode", "codes.jsonl", "--out", "back.png", "--json")
    assert json.loads(out) == {"files": ["back-0.png", "back-1.png"]}
    alone = json.loads(smalti("encode", "a-0.png")[0])
    assert alone["codes"] == lines[1]["codes"]


def test_jobs_are_listed_and_cancelled_and_pipelines_told(smalti, service, client):
    service.engine.is_held.set()
    job = client.submit("generate", seed=1)
    assert f"{job.id}  " in smalti("jobs", "--limit", "5")[0]
    newest = json.loads(smalti("jobs", "--limit", "1", "--json")[0])
    assert newest["id"] == job.id
    out, _ = smalti("cancel", job.id)
    assert out.startswith(f"{job.id}  ")
    service.engine.is_held.clear()
    wait_until(lambda: job.refresh().status == "cancelled")
    assert json.loads(smalti("cancel", job.id, "--json")[0])["status"] == "cancelled"
    assert "there are no such jobs" in smalti("jobs", "--status", "running")[1]
    named = [each["name"] for each in json.loads(smalti("pipelines", "--json")[0])]
    assert [line.partition(":")[0] for line in smalti("pipelines")[0].splitlines()] == named


def test_the_exit_status_says_why_it_ended(smalti, client, monkeypatch, tmp_path):
    assert "failed: " in smalti("generate", "--seed", "668", "--out", "a.png", status=ExitStatus.FAILED)[1]
    unreachable = {"status": ExitStatus.UNAVAILABLE, "url": "http://127.0.0.1:1"}
    assert "can't reach the service" in smalti("generate", "--out", "a.png", **unreachable)[1]
    assert "can't reach the service" in smalti("jobs", **unreachable)[1]
    assert "seed: " in smalti("generate", "--seed", str(2**70), "--out", "a.png", status=1)[1]
    assert "--url is like http" in smalti("pipelines", status=1, url="localhost")[1]
    assert smalti("cancel", "0" * 32, status=1)[1].startswith("smalti: ")
    smalti("generate", "--no-such-option", "--out", "a.png", status=ExitStatus.USAGE)
    monkeypatch.setattr("app.cli.at_service._TIMEOUT_S", 0.0)
    assert "it goes on" in smalti("generate", "--out", "a.png", status=ExitStatus.NOT_IN_TIME)[1]
    monkeypatch.setenv("SMALTI_API_KEY", "with a space")
    assert "SMALTI_API_KEY is printable ASCII" in smalti("jobs", status=1)[1]


@pytest.fixture
def locked() -> Iterator[str]:
    """The address of a service that takes the key "right" alone."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_known = self.headers["Authorization"] == "Bearer right"
            body = b"[]" if is_known else b'{"code": "unauthorized", "detail": "an API key is needed"}'
            self.send_response(200 if is_known else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_key_comes_from_the_environment(smalti, locked, monkeypatch):
    told = smalti("pipelines", url=locked, status=ExitStatus.NOT_ALLOWED)[1]
    assert "an API key is needed" in told
    monkeypatch.setenv("SMALTI_API_KEY", "right")
    assert smalti("pipelines", url=locked, status=0)[0] == ""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_ctrl_c_cancels_the_job_that_is_waited_for(service, client, tmp_path):
    service.engine.is_held.set()
    before = {job.id for job in client.jobs()}
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli.main", "generate", "--out", "a.png", "--url", service.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    new: set[str] = set()

    def is_made() -> bool:
        new.update({job.id for job in client.jobs()} - before)
        return bool(new)

    wait_until(is_made)
    process.send_signal(signal.SIGINT)
    out, told = process.communicate(timeout=30)
    service.engine.is_held.clear()
    assert (process.returncode, out) == (ExitStatus.INTERRUPTED, "")
    (job_id,) = new
    assert f"smalti: job {job_id} is " in told
    wait_until(lambda: client.job(job_id).info.status == "cancelled")


@pytest.mark.parametrize("is_here", [False, True])
def test_names_of_pipelines_are_completed(service, client, tiny_weights, tmp_path, is_here):
    place = "" if is_here else f"--url {service.url} "
    names = ["tiny"] if is_here else [each.name for each in client.pipelines()]
    variables = {
        "_SMALTI_COMPLETE": "complete_bash",
        "COMP_WORDS": f"smalti generate {place}--pipeline {names[0][:2]}",
        "COMP_CWORD": "3" if is_here else "5",
        "SMALTI_WEIGHTS_DIR": str(tiny_weights),
        "SMALTI_API_KEY": "key",
    }
    source = "import sys; sys.argv = ['smalti']; from app.cli.main import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True, text=True, cwd=tmp_path, env={**environment(), **variables}, check=False,
    )  # fmt: skip
    assert run.stdout.split() == [name for name in names if name.startswith(names[0][:2])], run.stderr


def test_the_docs_say_what_each_exit_status_means():
    told = {int(number) for number in re.findall(r"^\| `(\d+)` \|", DOCS.read_text(), re.MULTILINE)}
    assert told == set(ExitStatus)
