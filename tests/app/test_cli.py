"""The command line as its user meets it: a process, its exit status, and what it says."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.app.conftest import SPEC

FASHION_MNIST = Path(__file__).parents[2] / "weights/fashion-mnist"


def smalti(
    *arguments: str, environment: dict[str, str] | None = None, cwd=None
) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("SMALTI_", "REDIS_URL"))
    }
    return subprocess.run(
        [sys.executable, "-P", "-m", "app.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**kept, **(environment or {})},
        cwd=cwd,
        check=False,
    )


def test_version_is_the_packages():
    assert smalti("--version").stdout == version("smalti") + "\n"


def test_help_names_the_commands_and_loads_no_models():
    source = "import sys; sys.argv = ['smalti', '--help']\nfrom app.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
    source += "assert not {'torch', 'fastapi', 'pydantic', 'redis'} & set(sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    for command in ("up", "serve", "worker", "generate", "encode", "decode", "train", "evaluate"):
        assert command in result.stdout


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_part_alone_needs_to_be_told_its_queue(command):
    result = smalti(command)
    assert result.returncode == 1
    assert result.stderr.startswith("smalti: REDIS_URL is not set")
    assert "smalti up" in result.stderr
    assert result.stdout == ""


def test_up_without_weights_says_where_it_looked(tmp_path):
    result = smalti("up", environment={"SMALTI_WEIGHTS_DIR": str(tmp_path)}, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"smalti: {tmp_path} holds no pipeline")
    assert "Set SMALTI_WEIGHTS_DIR" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_setting_is_an_error():
    result = smalti("up", environment={"SMALTI_PROT": "8001"})
    assert result.returncode == 1
    assert result.stderr == "smalti: SMALTI_PROT is not a setting of Smalti: did you mean SMALTI_PORT?\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "--class-label", "bag", "--out", "bag"), "--out must end in .png"),
        (("generate", "--num-images", "1000", "--out", "x.png"), "num_images: "),
        (("generate", "--sampler", "dpm", "--out", "x.png"), "sampler: "),
        (("encode", "no-such-file.png"), "no-such-file.png can't be read"),
        (("decode", "no-such-file.json", "--out", "x.png"), "no-such-file.json can't be read"),
        (("train", "tokenizer", "--config", "no-such-file.toml"), "no-such-file.toml can't be read"),
        (("evaluate", "no-such-folder"), "no-such-folder/pipeline.json can't be read"),
        (("evaluate", str(FASHION_MNIST), "--sampler", "ddim"), "sampler: "),
        (("evaluate", str(FASHION_MNIST), "--data", "no-such-folder"), "no-such-folder"),
    ],
)
def test_a_bad_argument_is_named(arguments, said, tmp_path):
    result = smalti(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"smalti: {said}")
    assert "Traceback" not in result.stderr


def test_a_bad_request_is_refused_before_torch_is_loaded(tmp_path):
    (tmp_path / SPEC.name).mkdir()
    SPEC.save(tmp_path / SPEC.name / "pipeline.json")
    source = "import sys; from app.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
    source += "assert 'torch' not in sys.modules"
    result = subprocess.run(
        [sys.executable, "-P", "-c", source, "generate", "--out", "x.gif"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SMALTI_WEIGHTS_DIR": str(tmp_path)},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == "smalti: format: image files are png, webp, jpeg, got 'gif'\n"


@pytest.fixture
def weights(tmp_path) -> dict[str, str]:
    """An environment whose weights folder has a pipeline that can be listed, but not loaded."""
    (tmp_path / "weights" / SPEC.name).mkdir(parents=True)
    SPEC.save(tmp_path / "weights" / SPEC.name / "pipeline.json")
    return {"SMALTI_WEIGHTS_DIR": "weights"}


def test_a_taken_port_is_said_at_once(tmp_path, weights):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for command in (["up"], ["serve"]):
            environment = {
                **weights,
                **({"REDIS_URL": "redis://127.0.0.1:1"} if command == ["serve"] else {}),
            }
            result = smalti(*command, "--port", port, environment=environment, cwd=tmp_path)
            assert result.returncode == 1
            assert result.stderr == (
                f"smalti: can't listen on 127.0.0.1 port {port}: Address already in use."
                " Choose another with --port or --host\n"
            )
    assert not (tmp_path / ".smalti").exists()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"REDIS_URL": "localhost:6379"}, "REDIS_URL must begin with redis://, as in redis://localhost:6379"),
        (
            {"REDIS_URL": "redis://:geheim@127.0.0.1:1"},
            "no queue server answers at redis://127.0.0.1:1 (REDIS_URL): ",
        ),
        ({"SMALTI_DATA_DIR": "file"}, "the folder file (SMALTI_DATA_DIR) can't be written: Not a directory."),
        ({"SMALTI_SEED_PROMISE": "maybe"}, "SMALTI_SEED_PROMISE must be 'on' or 'off', got 'maybe'"),
    ],
)
def test_up_that_cannot_start_says_why_in_a_line(tmp_path, weights, environment, said):
    (tmp_path / "file").write_bytes(b"")
    result = smalti("up", "--port", "0", environment={**weights, **environment}, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"smalti: {said}")
    assert result.stderr.count("\n") == 1
    assert "geheim" not in result.stderr


def test_why_a_process_could_not_start_is_said_in_a_line_also_with_closed_streams(tmp_path, weights):
    """With standard input closed, a pipe of ours would take its number."""
    command = shlex.join([sys.executable, "-P", "-m", "app.cli.main", "up", "--port", "0"])
    ended = subprocess.run(
        f"{command} <&- >&-",
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **weights, "SMALTI_DEVICE": "cuda:4096"},
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "smalti: worker 1 could not start: SMALTI_DEVICE is cuda:4096, but PyTorch finds " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / ".smalti").rglob("*")} == {0}


def test_with_all_streams_closed_the_exit_status_says_it():
    command = shlex.join([sys.executable, "-P", "-m", "app.cli.main"])
    for arguments, status in (("--version", 0), ("encode -", 1)):
        ended = subprocess.run(f"{command} {arguments} <&- >&- 2>&-", shell=True, timeout=60, check=False)
        assert ended.returncode == status


def test_a_reader_that_leaves_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "app.cli.main", "--version"],
        stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(writing)
    assert ended.stderr == ""


def test_ctrl_c_is_quiet(tmp_path, weights):
    os.mkfifo(tmp_path / "image.png")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "app.cli.main", "encode", "image.png"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path, env={**os.environ, **weights},
    )  # fmt: skip
    descriptor = os.open(tmp_path / "image.png", os.O_WRONLY)  # returns once it reads
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    os.close(descriptor)
    assert (process.returncode, out) == (130, b"")
