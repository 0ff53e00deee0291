"""The command line as its user meets it: a process, its exit status, and what it says."""

import os
import socket
import subprocess
import sys
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
        (("generate", "--sampler", "ddim", "--out", "x.png"), "sampler: "),
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


def test_a_taken_port_is_said_at_once(tmp_path):
    (tmp_path / SPEC.name).mkdir()
    SPEC.save(tmp_path / SPEC.name / "pipeline.json")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = smalti(
            "up", "--port", str(port), environment={"SMALTI_WEIGHTS_DIR": str(tmp_path)}, cwd=tmp_path
        )
    assert result.returncode == 1
    assert f"can't listen on 127.0.0.1 port {port}" in result.stderr
