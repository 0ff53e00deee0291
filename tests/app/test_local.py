"""`smalti generate`, `encode` and `decode`, without a server, with a tiny pipeline of random weights."""

import json
import sys

import numpy as np
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


def test_labels_number_and_codes_of_outputs_are_options(smalti, tmp_path):
    out, _ = smalti(
        "generate",
        "--labels",
        "class=cat",
        "--seed",
        "7",
        "--num-outputs",
        "2",
        "--return-codes",
        "--out",
        "a.png",
    )
    assert out == b"a-0.png\na-1.png\na.json\n"
    smalti("generate", "--class-label", "cat", "--seed", "7", "--out", "b.png")
    assert (tmp_path / "a-0.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    smalti("decode", "a.json", "--out", "c.png")
    for number in range(2):
        pictures = [np.asarray(Image.open(tmp_path / f"{name}-{number}.png")) for name in "ac"]
        assert np.array_equal(*pictures)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["cat"], b"smalti: --labels must be SET=NAME, as in style=noto, got 'cat'\n"),
        (["class=cat", "class=dog"], b"smalti: --labels names the set 'class' twice: 'cat' and 'dog'\n"),
    ],
)
def test_a_label_that_is_no_pair_or_comes_twice_is_refused(smalti, labels, said):
    options = [part for label in labels for part in ("--labels", label)]
    assert smalti("generate", *options, "--out", "a.png", status=1)[1] == said


def test_several_files_give_a_line_each_in_order_and_a_bad_one_is_named(smalti, tmp_path):
    smalti("generate", "--seed", "1", "--num-outputs", "3", "--out", "a.webp")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    files = ["a-2.webp", "bad.png", "a-0.webp", "missing.png", "a-1.webp", "a-0.webp"]
    out, told = smalti("encode", *files, "--pipeline", "tiny", status=1)
    assert told.splitlines() == [
        b"smalti: bad.png: the bytes are not a PNG, JPEG or WebP file",
        b"smalti: missing.png can't be read: No such file or directory",
        b"smalti: 2 of 6 files are not encoded, named above",
    ]
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line.pop("file") for line in lines] == ["a-2.webp", "a-0.webp", "a-1.webp", "a-0.webp"]
    for number, line in ((2, lines[0]), (0, lines[1])):
        assert line == json.loads(smalti("encode", f"a-{number}.webp", "--pipeline", "tiny")[0])

    (tmp_path / "a.jsonl").write_bytes(out)
    smalti("decode", "a.jsonl", "--out", "b.png")
    (tmp_path / "last.json").write_bytes(out.splitlines()[-1])
    smalti("decode", "last.json", "--out", "c.png")
    assert (tmp_path / "b-3.png").read_bytes() == (tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("none/a.png", b"smalti: --out none/a.png: the folder none is missing; make it first\n"),
        ("folder.png", b"smalti: --out must name a file, and folder.png is a folder\n"),
        ("a.gif", b"smalti: format: image files are png, webp, jpeg, got 'gif'\n"),
    ],
)
def test_where_nothing_can_be_written_nothing_is_computed(smalti, tmp_path, monkeypatch, out, said):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "codes.json").write_text("{}")
    monkeypatch.setattr("workers.engine.loading.load_engine", lambda *_: pytest.fail("loads the models"))
    assert smalti("generate", "--out", out, status=1)[1] == said
    if out != "a.gif":
        assert smalti("decode", "codes.json", "--out", out, status=1)[1] == said


def test_several_outputs_do_not_go_to_standard_output(smalti):
    told = smalti("generate", "--num-outputs", "2", "--out", "-", status=1)[1]
    assert told == b"smalti: --out - takes one output, and there are 2\n"
    told = smalti("generate", "--return-codes", "--out", "-", status=1)[1]
    assert told.startswith(b"smalti: --return-codes writes the codes beside the file")


@pytest.mark.parametrize("device", ["cuda:4096", "mps" if sys.platform != "darwin" else "cuda"])
def test_a_device_that_is_not_here_is_said_in_a_line(smalti, monkeypatch, device):
    monkeypatch.setenv("SMALTI_DEVICE", device)
    _, told = smalti("generate", "--out", "a.png", status=1)
    assert told.startswith(f"smalti: SMALTI_DEVICE is {device}, but PyTorch finds ".encode())
    assert told.count(b"\n") == 1


@pytest.mark.parametrize("name", ["pipeline.json", "tokenizer.safetensors"])
def test_weights_that_cannot_be_read_are_named_in_a_line(smalti, tiny_weights, name):
    path = tiny_weights / "tiny" / name
    intact = path.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
    try:
        for content in (pointer, b"{}", b""):
            path.write_bytes(content)
            _, told = smalti("generate", "--out", "a.png", status=1)
            assert str(path).encode() in told
            assert told.count(b"\n") == 1
            if content == pointer and name == "pipeline.json":
                assert b"is a Git LFS pointer: run `git lfs pull`" in told
    finally:
        path.write_bytes(intact)


def test_what_nobody_foresaw_is_a_line_and_with_debug_its_traceback(smalti, tiny_weights, monkeypatch):
    monkeypatch.setattr("models.pipeline.Pipeline.load", lambda *_, **__: {}["odd"])
    _, told = smalti("generate", "--out", "a.png", status=70)
    assert (
        told == b"smalti: KeyError: 'odd'; for the traceback, run it again as `smalti --debug \xe2\x80\xa6`\n"
    )
    monkeypatch.setattr(sys, "argv", ["smalti", "--debug", "generate", "--out", "a.png"])
    with pytest.raises(KeyError):
        main()


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
