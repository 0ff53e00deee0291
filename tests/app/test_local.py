"""`smalti generate`, `encode` and `decode`, without a server, with a tiny pipeline of random weights."""

import json
import sys

import pytest
from PIL import Image

from app.cli.main import main


@pytest.fixture
def smalti(tiny_weights, tmp_path, monkeypatch, capfdbinary):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("SMALTI_WEIGHTS_DIR", str(tiny_weights))
    monkeypatch.setenv("SMALTI_DEVICE", "cpu")

    def run(*arguments: str, status: int = 0) -> tuple[bytes, bytes]:
        """Run the command line; give its standard output and standard error."""
        monkeypatch.setattr(sys, "argv", ["smalti", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capfdbinary.readouterr()
        assert (ended.value.code or 0) == status, told.err.decode()
        return told.out, told.err

    return run


def test_a_seed_gives_the_same_bytes_and_the_path_is_the_result(smalti, tmp_path):
    out, told = smalti(
        "generate", "--class-label", "cat", "--seed", "7", "--num-images", "2", "--out", "a.png"
    )
    assert out == b"a-0.png\na-1.png\n"
    assert b"seed 7" in told
    piped, _ = smalti("generate", "--class-label", "0", "--seed", "7", "--out", "-")
    assert piped == (tmp_path / "a-0.png").read_bytes()
    assert piped != (tmp_path / "a-1.png").read_bytes()


def test_codes_come_back_as_they_went(smalti, tmp_path):
    smalti("generate", "--seed", "1", "--out", "a.webp")
    (tmp_path / "a.json").write_bytes(smalti("encode", "a.webp")[0])
    codes = json.loads((tmp_path / "a.json").read_text())["codes"]
    assert codes["grid"] == [6, 6]
    assert codes["codebook_size"] == 32
    searched = json.loads(smalti("encode", "a.webp", "--effort", "1")[0])["codes"]
    assert searched["codes"] != codes["codes"]
    assert searched["tokenizer"] == codes["tokenizer"]
    smalti("decode", "a.json", "--out", "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (12, 12)


def test_what_the_service_would_refuse_is_refused_in_its_words(smalti, tmp_path):
    _, told = smalti("generate", "--class-label", "sneaker", "--out", "a.png", status=1)
    assert told == b"smalti: class_label: tiny has no class 'sneaker'; known are cat, dog, bird\n"
    (tmp_path / "foreign.json").write_text(json.dumps({"codes": [[[0] * 6] * 6], "tokenizer": "f" * 16}))
    assert b"which is not the tokenizer of" in smalti("decode", "foreign.json", "--out", "a.png", status=1)[1]


def test_codes_and_their_tokenizer_alone_are_decoded_too(smalti, tmp_path):
    smalti("generate", "--seed", "1", "--out", "a.webp")
    codes = json.loads(smalti("encode", "a.webp")[0])["codes"]
    (tmp_path / "old.json").write_text(json.dumps({name: codes[name] for name in ("codes", "tokenizer")}))
    smalti("decode", "old.json", "--out", "b.png")
    (tmp_path / "new.json").write_text(json.dumps({"codes": codes}))
    smalti("decode", "new.json", "--out", "c.png")
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_a_file_that_is_not_an_image_is_named(smalti, tmp_path):
    (tmp_path / "a.png").write_bytes(b"not an image")
    _, told = smalti("encode", "a.png", status=1)
    assert told == b"smalti: a.png: the bytes are not a PNG, JPEG or WebP file\n"


def test_damaged_weights_are_named(smalti, tiny_weights):
    path = tiny_weights / "tiny" / "prior.safetensors"
    intact = path.read_bytes()
    try:
        path.write_bytes(intact[:100])
        _, told = smalti("generate", "--out", "a.png", status=1)
        assert told.startswith(b"smalti: ")
        assert b"prior.safetensors" in told
    finally:
        path.write_bytes(intact)
