"""Editing through the Python client and the command line, against a real service."""

import asyncio
import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.cli.main import main
from smalti import AsyncClient, Client, UnusableSource
from tests.app.conftest import serving_weights
from workers.queue import embedded_server

SOURCE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8))
MASK = np.zeros((24, 24), np.uint8)
MASK[6:18, 6:18] = 255


@pytest.fixture(scope="module")
def url(tiny_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    server = embedded_server.start(folder / "redis")
    try:
        with serving_weights(server.url, tiny_weights, folder / "data") as http:
            yield str(http.base_url)
    finally:
        server.stop()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    SOURCE.save(tmp_path / "source.png")
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    return tmp_path / "source.png", tmp_path / "mask.png"


@pytest.fixture
def edited(url, files) -> bytes:
    with Client(url) as client:
        return client.generate(source=files[0], mask=files[1], seed=2).outputs[0].bytes()


def test_a_source_may_be_anything_that_is_a_picture(url, files, edited):
    with Client(url) as client:
        upload = client.upload(files[0])
        for source, mask in ((SOURCE, MASK), (files[0].read_bytes(), Image.fromarray(MASK)), (upload, MASK)):
            assert client.generate(source=source, mask=mask, seed=2).outputs[0].bytes() == edited
        job = client.submit("generate", source=SOURCE, strength=0.3, seed=2)
        assert job.wait().outputs[0].bytes() != edited


def test_the_async_client_edits_too(url, edited):
    async def edit() -> bytes:
        async with AsyncClient(url) as client:
            result = await client.generate(source=SOURCE, mask=MASK, seed=2)
            return result.outputs[0].bytes()

    assert asyncio.run(edit()) == edited


def test_a_batch_has_files_of_its_rows_in_it(url, edited):
    with Client(url) as client:
        batch = client.batch([{"source": SOURCE, "mask": MASK, "seed": 2}])
        batch.wait()
        (row,) = batch.results()
        assert row.result.outputs[0].sha256 == hashlib.sha256(edited).hexdigest()


def test_what_is_not_a_picture_is_refused_by_its_name(url):
    with Client(url) as client, pytest.raises(UnusableSource, match=r"mask: can't read 'nowhere.png'"):
        client.generate(source=SOURCE, mask="nowhere.png")


@pytest.mark.parametrize("is_remote", [True, False])
def test_the_command_line_edits_here_and_at_a_service(
    url, files, edited, is_remote, tiny_weights, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("SMALTI_WEIGHTS_DIR", str(tiny_weights))
    monkeypatch.setenv("SMALTI_DATA_DIR", str(tmp_path / "data"))

    def smalti(*arguments: str, status: int = 0) -> str:
        where = ("--url", url) if is_remote else ()
        monkeypatch.setattr(sys, "argv", ["smalti", "generate", *arguments, *where])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capfd.readouterr()
        assert (ended.value.code or 0) == status, told.err
        return told.err

    out, (source, mask) = tmp_path / "a.png", map(str, files)
    smalti("--source", source, "--mask", mask, "--seed", "2", "--out", str(out))
    assert out.read_bytes() == edited
    told = smalti("--source", source, "--strength", "0.5", "--seed", "2", "--out", str(out))
    assert out.read_bytes() != edited
    assert is_remote or "strength 0.5" in told
    assert "--mask says" in smalti("--mask", mask, "--out", str(out), status=1)
    assert "there is no source" in smalti("--strength", "0.5", "--out", str(out), status=1)
    told = smalti("--source", mask, "--mask", source, "--strength", "2", "--out", str(out), status=1)
    assert "strength: should be less than or equal to 1" in told
