"""The README's commands, run as written against a real service, and its tables held against the code."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from app.main import create_app
from app.settings import AppSettings
from workers.settings import WorkerSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
START_TIMEOUT_S = 110


def commands() -> list[str]:
    """Every line of every `sh` block, but for the blocks marked as long."""
    blocks = re.findall(r"(<!-- long.*-->\n)?```sh\n(.*?)```", README, re.S)
    return [line for mark, block in blocks if not mark for line in block.splitlines()]


@contextlib.contextmanager
def service(folder: Path) -> Iterator[str]:
    """`smalti up` on a free port; gives its address."""
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    environment |= {"SMALTI_WEIGHTS_DIR": str(ROOT / "weights"), "SMALTI_DATA_DIR": str(folder / "data")}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "app.cli", "up", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("READY at http://127.0.0.1:"), line
        yield line.removeprefix("READY at ").strip()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(45) == 0
        finally:
            process.kill()
            process.stdout.close()


@pytest.mark.timeout(START_TIMEOUT_S + 120)
def test_every_command_runs_and_makes_what_it_says(tmp_path):
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": binaries, "SMALTI_WEIGHTS_DIR": str(ROOT / "weights")}
    written: dict[str, bytes] = {}
    with service(tmp_path) as address:
        for command in commands():
            if command.startswith("make "):
                continue  # run by whoever runs this test
            command = command.replace("localhost:8000", address.removeprefix("http://"))
            result = subprocess.run(
                command,
                shell=True,
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            assert result.returncode == 0, f"{command}\n{result.stderr}"
            assert "problem+json" not in result.stdout, command
            for path in tmp_path.glob("*.png"):
                with Image.open(path) as image:
                    assert image.size == ((28, 28) if path.stem == "sneaker" else (64, 64))
                # The command line writes over what the service made: the same bytes, as the README says.
                assert written.setdefault(path.name, path.read_bytes()) == path.read_bytes(), command
    assert set(written) == {"cat.png", "sneaker.png", "decoded.png"}


def test_every_make_target_it_names_exists():
    named = set(re.findall(r"\bmake ([a-z]+)\b", README))
    assert {"serve", "test", "check", "bench"} <= named
    for target in named:
        assert (
            subprocess.run(
                ["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=False
            ).returncode
            == 0
        )


def test_its_commands_exist():
    for command in sorted(
        set(re.findall(r"\bsmalti ((?:train |data )?[a-z]+)\b", README)) - {"train", "data"}
    ):
        result = subprocess.run(
            [sys.executable, "-P", "-m", "app.cli", *command.split(), "--help"],
            capture_output=True,
            check=False,
        )
        assert result.returncode == 0, command


def test_its_configuration_table_is_the_settings():
    told = dict(re.findall(r"^\| `((?:SMALTI_|REDIS_)\w+)` \| (.*?) \|", README, re.M))
    fields = {**AppSettings.model_fields, **WorkerSettings.model_fields}
    assert set(told) == {"REDIS_URL" if name == "redis_url" else f"SMALTI_{name.upper()}" for name in fields}
    for name, field in fields.items():
        if name not in ("redis_url", "pipelines", "num_threads"):
            assert told[f"SMALTI_{name.upper()}"] == f"`{field.default}`"


def test_its_api_table_is_the_api():
    app = create_app(AppSettings(redis_url="redis://127.0.0.1:1", weights_dir=ROOT / "weights"))
    operations = {
        f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods
    }
    assert set(re.findall(r"`((?:GET|POST|DELETE) /[^`]*)`", README)) == operations


def test_files_it_names_are_there():
    for path in re.findall(r"\b(?:training|weights)/[\w./-]+\.(?:toml|png)\b", README):
        assert (ROOT / path).exists(), path
