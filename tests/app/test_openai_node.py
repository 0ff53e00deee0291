"""OpenAI's Images API, asked by its official client for Node, unmodified. Installs it with npm."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(
        not (shutil.which("npm") and shutil.which("node")),
        reason="needs node and npm: apt-get install nodejs npm",
    ),
]
PAGE = Path(__file__).parents[2] / "docs" / "openai.md"
SCRIPT = Path(__file__).with_name("openai_client.mjs")


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the client."""
    folder = tmp_path_factory.mktemp("node")
    run("npm", "install", "--no-audit", "--no-fund", "openai", folder=folder)
    return folder


def test_the_client_for_node_works_unmodified(service, folder):
    shutil.copy(SCRIPT, folder)
    got = json.loads(run("node", SCRIPT.name, f"{service.client.base_url}/v1", folder=folder))

    assert got["models"] == ["tiny"]
    assert len(got["pictures"]) == 2
    assert got["fetched"] == got["last"]["b64_json"] == got["pictures"][0]
    assert got["last"]["type"] == "image_generation.completed"
    assert got["failures"] == [
        ["NotFoundError", 404, "model_not_found", "model"],
        ["BadRequestError", 400, "invalid_request", "size"],
        ["InternalServerError", 500, "not_finite", None],
    ]


def test_the_example_for_node_writes_a_picture(service, folder):
    (text,) = re.findall(r"```js\n(.*?)```", PAGE.read_text(), re.DOTALL)
    text = text.replace("http://localhost:8000", str(service.client.base_url)).replace(
        "a smiling cat", "sneaker"
    )
    (folder / "example.mjs").write_text(text)
    run("node", "example.mjs", folder=folder)
    with Image.open(folder / "cat.png") as image:
        assert image.format == "PNG"
