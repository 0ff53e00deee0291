"""The README and the pages of docs/: their examples run as written, their tables held against the code."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import TypeAdapter

from app import api_page
from app.errors import PROBLEM_MEDIA_TYPE, problem_of
from app.examples import PROBLEMS
from app.main import create_app
from app.settings import AppSettings
from models.media.base import MEDIA
from workers.errors import ServiceError
from workers.settings import CLIENT_VARIABLES, ENV_PREFIX, ServiceSettings, WorkerSettings

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"])
MAX_README_WORDS = 900
SIDES_PX = {"coat": 28, "sneaker": 28, "small": 32}  # of other pictures than emoji
START_TIMEOUT_S = 110
COMMAND_TIMEOUT_S = 120
_BLOCK = re.compile(r"(?:<!-- (?P<mark>\w+)\b.*?-->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.S)
EXACT = ("code", "detail", "fingerprint", "medium", "name", "operation", "pipeline", "status", "tokenizer")
_FOLDERS = "app|bulk|workers|models|training|tests|weights|benchmarks|docs|client|examples"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- examples --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    is_long: bool


def blocks(page: Path) -> list[Block]:
    found = _BLOCK.finditer(page.read_text())
    return [Block(each["language"], each["text"], each["mark"] == "long") for each in found]


def has_examples(page: Path) -> bool:
    return any(block.language == "sh" and not block.is_long for block in blocks(page))


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of service and commands alike: as the seed promise wants it, and small, so that it is quick."""
    kept = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SMALTI_WEIGHTS_DIR": str(ROOT / "weights"),
        "SMALTI_MAX_BATCH_SIZE": "4",
    }


@pytest.fixture(scope="module")
def address(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `smalti up` on a free port, with the shipped weights."""
    folder = tmp_path_factory.mktemp("service")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "app.cli.main", "up", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("READY at http://127.0.0.1:"), line
        yield line.removeprefix("READY at http://").strip()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(45) == 0
        finally:
            process.kill()
            process.stdout.close()


@pytest.mark.timeout(START_TIMEOUT_S + 240)
@pytest.mark.parametrize("page", [page for page in PAGES if has_examples(page)], ids=name_of)
def test_every_example_runs_and_gives_what_is_shown(
    page: Path, address: str, environment: dict[str, str], tmp_path: Path
) -> None:
    written: dict[str, bytes] = {}
    output = ""
    for block in blocks(page):
        if block.language == "json" and output:
            assert_shows(json.loads(block.text), json.loads(output))
        if block.language == "python":
            text = block.text.replace("localhost:8000", address)
            run_command(f"{sys.executable} -c {shlex.quote(text)}", environment, tmp_path)
            check_files(tmp_path, written, text)
        if block.language != "sh" or block.is_long:
            continue
        is_problem_shown = f'```sh\n{block.text}```\n\n```json\n{{\n  "type": "urn:' in page.read_text()
        for line in block.text.splitlines():
            if line.startswith("make "):
                continue  # run by whoever runs this test
            output = run_command(line.replace("localhost:8000", address), environment, tmp_path)
            assert ("urn:smalti:error" in output) == is_problem_shown, f"{line}\n{output}"
            check_files(tmp_path, written, line)


def run_command(line: str, environment: dict[str, str], folder: Path) -> str:
    result = subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True,
        timeout=COMMAND_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{line}\n{result.stderr}"
    return result.stdout


def check_files(folder: Path, written: dict[str, bytes], line: str) -> None:
    """Pictures have their size; a file that is written again, by whichever way, has the same bytes."""
    for path in folder.iterdir():
        if path.suffix in (".png", ".webp"):
            with Image.open(path) as image:
                side_px = SIDES_PX.get(path.stem, 64)
                assert image.size == (side_px, side_px), line
        elif path.suffix == ".json":
            assert json.loads(path.read_text()).get("status") in (None, "queued", "running", "succeeded")
        if path.suffix != ".json" and path.is_file():
            assert written.setdefault(path.name, path.read_bytes()) == path.read_bytes(), line


def assert_shows(shown: Any, got: Any, where: str = "") -> None:
    """Everything in an example is in the answer, with a value of its kind; lists may differ in length."""
    if isinstance(shown, dict):
        assert isinstance(got, dict), where
        for name, value in shown.items():
            assert name in got, f"{where}.{name}"
            assert_shows(value, got[name], f"{where}.{name}")
            assert name not in EXACT or value == got[name], f"{where}.{name} is {got[name]!r}"
    elif isinstance(shown, list):
        assert isinstance(got, list), where
        assert bool(shown) == bool(got), where
        for index, values in enumerate(zip(shown, got, strict=False)):
            assert_shows(*values, f"{where}[{index}]")
    elif isinstance(shown, float) and isinstance(got, int):
        pass
    else:
        assert type(shown) is type(got), f"{where}: {shown!r} is shown, got {got!r}"


def test_the_pipeline_json_that_is_shown_is_the_shipped_one() -> None:
    (shown,) = (block for block in blocks(ROOT / "docs/adding-a-model.md") if block.language == "json")
    shipped = json.loads((ROOT / "weights/fashion-mnist/pipeline.json").read_text())
    assert_shows(json.loads(shown.text), shipped)
    assert json.loads(shown.text).keys() == shipped.keys()


def test_the_line_of_captions_that_is_shown_is_read_whole() -> None:
    from training.data.captioned import CaptionLine

    (shown,) = (block for block in blocks(ROOT / "docs/training.md") if block.language == "json")
    line = TypeAdapter(CaptionLine).validate_json(shown.text)
    assert asdict(line).keys() == json.loads(shown.text).keys()


# --- size, links and names -------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= MAX_README_WORDS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_are_there(page: Path) -> None:
    for path in re.findall(rf"`((?:{_FOLDERS})/[\w./-]*)`", page.read_text()):
        assert (ROOT / path).exists(), path


def without_blocks(page: Path) -> str:
    return _BLOCK.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def all_text() -> str:
    return "\n".join(page.read_text() for page in PAGES)


def test_every_make_target_named_exists() -> None:
    named = set(re.findall(r"(?:`|^|PYTHON\)\s)make ([a-z-]+)", all_text(), re.M))
    assert {"serve", "test", "test-ci", "test-all", "check", "bench", "install"} <= named
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert named <= targets


def test_every_command_named_exists() -> None:
    named = set(
        re.findall(r"\bsmalti ((?:train |data )[a-z]+|(?!train|data|smalti)[a-z-]+)\b(?=[ `\n])", all_code())
    )
    assert {"up", "serve", "worker", "generate", "encode", "decode", "evaluate", "train prior"} <= named
    for command in sorted(named):
        result = subprocess.run(
            [sys.executable, "-P", "-m", "app.cli.main", *command.split(), "--help"],
            capture_output=True,
            check=False,
        )
        assert result.returncode == 0, command


def all_code() -> str:
    """Return what stands in backquotes, and in blocks of commands."""
    inline = "\n".join(
        f"{code} " for page in PAGES for code in re.findall(r"`([^`\n]+)`", without_blocks(page))
    )
    return (
        inline
        + "\n"
        + "\n".join(block.text for page in PAGES for block in blocks(page) if block.language == "sh")
    )


# --- tables ----------------------------------------------------------------------------------------------


def test_the_configuration_page_is_the_settings() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    shared = set(ServiceSettings.model_fields)
    for title, kind, names in (
        ("Every process", ServiceSettings, shared),
        ("The API", AppSettings, set(AppSettings.model_fields) - shared),
        ("A worker", WorkerSettings, set(WorkerSettings.model_fields) - shared),
    ):
        told = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", sections[title], re.M))
        assert set(told) == {variable_of(name) for name in names}
        for name in names - {"redis_url", "pipelines", "num_threads"}:
            default = kind.model_fields[name].default
            assert told[variable_of(name)] == ("none" if default in ((), "", None) else f"`{default}`")


def variable_of(name: str) -> str:
    return "REDIS_URL" if name == "redis_url" else f"{ENV_PREFIX}{name.upper()}"


def test_no_page_names_a_setting_that_is_not_there() -> None:
    known = {variable_of(name) for kind in (AppSettings, WorkerSettings) for name in kind.model_fields}
    known |= CLIENT_VARIABLES
    for page in PAGES:
        if page.name != "CHANGELOG.md":  # which names those that are gone
            assert set(re.findall(rf"\b{ENV_PREFIX}[A-Z_]+\b", page.read_text())) <= known, page


def test_the_readme_names_addresses_that_there_are() -> None:
    app = create_app(AppSettings(redis_url="redis://127.0.0.1:1", weights_dir=ROOT / "weights"))
    operations = {
        f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods
    }
    named = set(re.findall(r"`((?:GET|POST|DELETE) /[^`]*)`", README.read_text()))
    assert {"POST /generate", "POST /encode", "POST /decode"} < named <= operations


def test_the_api_page_is_made_from_the_openapi_document() -> None:
    made = api_page.page_of(api_page.document())
    assert (ROOT / "docs/api.md").read_text() == made, "run `make docs`"


def test_the_http_page_has_every_error() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", (ROOT / "docs/http.md").read_text(), re.M))
    codes = {"not_found", "method_not_allowed", *PROBLEMS, *(f"invalid_{medium}" for medium in MEDIA)}
    assert set(table) == codes | {kind.code for kind in all_kinds(ServiceError)}
    for code, status in table.items():
        assert problem_of(code, "").status == int(status), code
    assert PROBLEM_MEDIA_TYPE in (ROOT / "docs/http.md").read_text()


def all_kinds(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from all_kinds(each)
