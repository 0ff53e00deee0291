"""The command line, with a tiny pipeline whose codes tell pictures apart."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.cli.main import main
from models.checkpoint import save_checkpoint
from models.media.image import IMAGE, load_image
from models.pipeline import AUTOENCODER_FILE, Pipeline
from tests.bulk.pictures import OPTIONS, picture, write_pictures

NUM_PICTURES = 8  # whose latents become the codebook


@pytest.fixture(scope="session")
def weights(tiny_weights, tmp_path_factory) -> Path:
    """A weights folder with "tiny", its codebook made of latents of pictures: an untrained one is far off."""
    folder = tmp_path_factory.mktemp("bulk-weights")
    shutil.copytree(tiny_weights / "tiny", folder / "tiny")
    pipeline = Pipeline.load(folder / "tiny")
    tokenizer = pipeline.tokenizer
    arrays = [load_image(picture(number), 12, 12, 1) for number in range(NUM_PICTURES)]
    signals = torch.stack([torch.tensor(IMAGE.to_signal(array)) for array in arrays])
    with torch.inference_mode():
        latents = tokenizer.encode(signals).movedim(1, -1).flatten(0, -2)  # (N·h·w, d)
        size = tokenizer.config.codebook_size
        tokenizer.quantizer.codebook.copy_(latents[:: len(latents) // size][:size])
    save_checkpoint(folder / "tiny" / AUTOENCODER_FILE, tokenizer.exported(), tokenizer.config)
    spec = pipeline.spec
    codes = replace(spec.codes, fingerprint=tokenizer.fingerprint())
    replace(spec, codes=codes).save(folder / "tiny" / "pipeline.json")
    return folder


@pytest.fixture
def smalti(weights, tmp_path, monkeypatch, capfd) -> Callable[..., tuple[str, str]]:
    """Run the command line in a folder of its own; give its standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("SMALTI_WEIGHTS_DIR", str(weights))
    monkeypatch.setenv("SMALTI_DEVICE", "cpu")

    def run(*arguments: str, status: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["smalti", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capfd.readouterr()
        assert (ended.value.code or 0) == status, told.err
        return told.out, told.err

    return run


@pytest.fixture(scope="session")
def made(weights, tmp_path_factory) -> Path:
    """A folder with pics/ and codes/: three shards of 20 pictures, the first of which is an error."""
    folder = tmp_path_factory.mktemp("made")
    write_pictures(folder / "pics" / "sub", 19)
    (folder / "pics" / "bad.png").write_bytes(b"x")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SMALTI_WEIGHTS_DIR", str(weights))
        patch.setenv("SMALTI_DEVICE", "cpu")
        patch.setattr(sys, "argv", ["smalti", "encode", "pics", "--out", "codes", *OPTIONS])
        with pytest.raises(SystemExit):
            main()
    return folder


@pytest.fixture
def codes(smalti, made, tmp_path) -> Path:
    """A copy of what was made, in the folder of a test."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "codes"
