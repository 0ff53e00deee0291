"""The examples and the pages of the client, against a service with the shipped weights."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.ci, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    packages = os.pathsep.join(str(path) for path in (ROOT, ROOT / "client" / "src"))
    return kept | {
        "PYTHONPATH": packages,
        "SMALTI_WEIGHTS_DIR": str(ROOT / "weights"),
        "SMALTI_MAX_BATCH_SIZE": "4",
    }


@pytest.fixture(scope="module")
def url(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `smalti up` on a free port."""
    command = [sys.executable, "-P", "-m", "app.cli.main", "up", "--port", "0"]
    folder = tmp_path_factory.mktemp("service")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().removeprefix("READY at ").strip()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()


def run(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    """Run Python in a folder, and return what it says."""
    told = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    return told.stdout


def example(name: str) -> str:
    return str(ROOT / "examples" / f"{name}.py")


def test_a_contact_sheet_is_drawn(url, environment, tmp_path):
    arguments = ("a smiling cat", "a red apple", "--columns", "2", "--url", url)
    assert "2 prompts in 2 styles" in run(tmp_path, environment, example("contact_sheet"), *arguments)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 72 + 8, 2 * 72 + 8)
        assert len(np.unique(np.asarray(sheet.crop((8, 8, 72, 72)).convert("L")))) > 10  # something is drawn


def test_a_list_is_drawn_once_and_its_bad_lines_are_told(url, environment, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red apple\n\na blue bird\na pizza\n")
    arguments = (example("draw_list"), "prompts.txt", "--url", url)
    assert "3 drawn, 0 failed, 0 were there" in run(tmp_path, environment, *arguments)
    before = {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    (tmp_path / "pictures" / "000001.png").unlink()
    assert "1 drawn, 0 failed, 2 were there" in run(tmp_path, environment, *arguments)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}

    (tmp_path / "prompts.txt").write_text(f"{'x' * 1001}\na pizza\n")
    told = subprocess.run(
        [sys.executable, *arguments, "--out", "other"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 1
    assert "line 1: prompt:" in told.stderr
    assert "1 drawn, 1 failed" in told.stdout


def test_pictures_become_an_array_and_pictures_again(url, environment, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(20):
        picture = Image.new("RGB", (64, 64), (12 * number, 100, 200))
        picture.save(tmp_path / "pictures" / f"{number:02}.png")
    script = example("codes_to_numpy")
    run(tmp_path, environment, script, "encode", "pictures", "--out", "codes.npz", "--url", url)
    with np.load(tmp_path / "codes.npz") as kept:
        assert (kept["codes"].shape, kept["codes"].dtype) == ((20, 16, 16), np.uint16)
    run(tmp_path, environment, script, "decode", "codes.npz", "--out", "decoded", "--url", url)
    for number in range(20):
        with Image.open(tmp_path / "decoded" / f"{number:02}.png") as decoded:
            mean = np.asarray(decoded.convert("RGB"), float).mean((0, 1))
            assert (
                np.abs(mean - (12 * number, 100, 200)).max() < 30
            )  # a codebook of emoji, not of flat colours


@pytest.mark.parametrize("page", ["client/README.md", "docs/client.md"])
def test_what_the_pages_show_runs(url, environment, tmp_path, page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    source = "\n".join(blocks).replace("Client()", f"Client({url!r})")
    run(tmp_path, environment, "-W", "error", "-c", source)
    assert (tmp_path / "cat.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "decoded.png").exists()
