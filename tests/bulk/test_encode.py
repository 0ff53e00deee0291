"""`smalti encode --out`: the codes of /encode, whatever the files are and however often it is ended."""

import gzip
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bulk.manifest import partial_suffix
from bulk.shards import remove_partial
from models.code_shards import iterate_codes, read_manifest
from tests.bulk.pictures import OPTIONS, picture, write_pictures, write_tar
from tests.models.media.picture_files import chunk


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows_of(folder: Path) -> list[dict]:
    tables = [pyarrow.parquet.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return pyarrow.concat_tables(tables).to_pylist()


def encode_until(folder: Path, num_shards: int, *options: str) -> None:
    """Start to encode pics/ in a process of its own, and kill it once so many shards are there."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "app.cli.main",
            "encode",
            "pics",
            "--out",
            str(folder),
            *OPTIONS,
            *options,
        ],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline_s = time.monotonic() + 60
        while len(list(folder.glob("*.parquet"))) < num_shards and process.poll() is None:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
    finally:
        process.kill()
        status = process.wait()
    assert status == -signal.SIGKILL


@pytest.fixture
def pictures(tmp_path) -> Path:
    write_pictures(tmp_path / "pics", 20)
    return tmp_path / "pics"


def test_codes_and_psnr_are_those_of_encode(smalti, pictures):
    smalti("encode", "pics", "--out", "codes", "--return-psnr", *OPTIONS)
    out, _ = smalti("encode", *sorted(map(str, pictures.iterdir())), "--return-psnr", "--pipeline", "tiny")
    alone = [json.loads(line) for line in out.splitlines()]
    rows = rows_of(Path("codes"))
    assert [row["id"] for row in rows] == [Path(each["file"]).name for each in alone]
    for row, each in zip(rows, alone, strict=True):
        assert row["codes"] == np.ravel(each["codes"]["codes"]).tolist()
        assert row["psnr_db"] == pytest.approx(each["outputs"][0]["psnr_db"], rel=1e-6)
        assert (row["width_px"], row["height_px"], row["crop_box"]) == (20, 16, [2, 0, 18, 16])
    assert json.loads(Path("codes/card.json").read_text())["psnr_db"]["mean"] > 0


def test_a_run_that_is_killed_and_started_again_ends_in_the_same_bytes(smalti, tmp_path):
    write_pictures(tmp_path / "pics", 96)
    encode_until(tmp_path / "killed", 3)
    assert 3 <= len(list((tmp_path / "killed").glob("*.parquet"))) < 12
    (tmp_path / "killed" / "codes-000011.bin").write_bytes(b"half")
    told = smalti("encode", "pics", "--out", "killed", *OPTIONS)[1]
    assert "were there already" in told
    smalti("encode", "pics", "--out", "undisturbed", *OPTIONS)
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


@pytest.mark.ci
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("num_kills", "options"), [(10, ()), (3, ("--crops", "2", "--flips", "--pack"))])
def test_kills_at_any_moment_leave_the_same_bytes(smalti, tmp_path, num_kills, options):
    write_pictures(tmp_path / "pics", 400)
    write_tar(tmp_path / "pics" / "some.tar", [f"{number}.png" for number in range(400)])
    packed = gzip.compress((tmp_path / "pics" / "some.tar").read_bytes(), 1)
    (tmp_path / "pics" / "some.tar.gz").write_bytes(packed)
    chance = random.Random(0)
    for kill in range(num_kills):
        encode_until(tmp_path / "killed", 10 * kill + chance.randrange(1, 10), *options)
    smalti("encode", "pics", "--out", "killed", *OPTIONS, *options)
    smalti("encode", "pics", "--out", "undisturbed", *OPTIONS, *options)
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_machines_that_share_the_work_make_what_one_makes(smalti, codes, tmp_path):
    told = smalti("encode", "pics", "--out", "shared", "--shard", "2/2", *OPTIONS)[1]
    assert "2 of 3 shards are still missing" in told
    assert not (tmp_path / "shared" / "card.md").exists()
    smalti("encode", "pics", "--out", "shared", "--shard", "1/2", *OPTIONS)
    assert contents(tmp_path / "shared") == contents(codes)


def test_files_that_cannot_be_used_are_rows_with_errors_and_flips_are_rows(smalti, pictures, tmp_path):
    (pictures / "a.gif").write_bytes(picture(0, format="GIF"))
    cut = picture(0, 64, 64, format="JPEG")
    (pictures / "b.jpg").write_bytes(cut[: len(cut) * 3 // 4])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**16, 2**16, 8, 2, 0, 0, 0))
    (pictures / "c.png").write_bytes(picture(0)[:8] + header + picture(0)[33:])
    (pictures / "d.png").write_bytes(b"")
    (pictures / "0003.jpg").write_bytes(picture(3))  # a repeated one
    smalti("encode", "pics", "--out", "codes", "--flips", *OPTIONS)
    rows = rows_of(tmp_path / "codes")
    assert len(rows) == 2 * 25
    errors = {row["id"]: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"a.gif", "b.jpg", "c.png", "d.png"}
    assert errors["a.gif"] == "the bytes are not a PNG, JPEG or WebP file"
    assert errors["b.jpg"] == "the JPEG file is broken or truncated"
    assert errors["c.png"] == "at most 33554432 pixels, got far more"
    assert errors["d.png"] == "is empty"
    assert all(row["codes"] == [0] * 36 and row["crop_box"] == [0] * 4 for row in rows if row["error"])
    assert [row["is_flipped"] for row in rows] == [False, True] * 25
    (mirrored,) = rows_mirrored(smalti, tmp_path, "0005.png")
    assert mirrored == next(row["codes"] for row in rows if row["id"] == "0005.png" and row["is_flipped"])
    codes = np.concatenate(list(iterate_codes(tmp_path / "codes")))
    assert codes.dtype == np.uint16
    assert codes.reshape(42, 36).tolist() == [row["codes"] for row in rows if not row["error"]]
    card = json.loads((tmp_path / "codes" / "card.json").read_text())
    assert (card["num_rows"], card["num_errors"]) == (50, 8)
    assert (card["num_duplicate_files"], card["num_duplicate_codes"]) == (1, 1)
    assert card["num_codes_used"] == len(np.unique(codes))
    assert (
        "| 2 | the bytes are not a PNG, JPEG or WebP file |" in (tmp_path / "codes" / "card.md").read_text()
    )


def rows_mirrored(smalti, tmp_path, name):
    """Return the codes of the mirror image of a picture, encoded as a file."""
    from PIL import Image, ImageOps

    with Image.open(tmp_path / "pics" / name) as image:
        ImageOps.mirror(image).save(tmp_path / "mirrored.png")
    out, _ = smalti("encode", "mirrored.png", "--pipeline", "tiny")
    return [np.ravel(each).tolist() for each in json.loads(out)["codes"]["codes"]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--shard-size", "4"), "--shard-size: there 8, now 4"),
        (("--flips",), "transform: there "),
        (("--effort", "1"), "--effort: there 0, now 1"),
    ],
)
def test_a_folder_of_other_codes_is_not_gone_on_with(smalti, codes, options, said):
    told = smalti("encode", "pics", "--out", "codes", *OPTIONS, *options, status=1)[1]
    assert f"smalti: codes holds other codes: {said}" in told
    manifest = read_manifest(codes)
    (codes / "manifest.json").write_text(json.dumps({**manifest, "tokenizer": "0" * 16}))
    told = smalti("encode", "pics", "--out", "codes", *OPTIONS, status=1)[1]
    assert f"tokenizer: there {'0' * 16}, now {manifest['tokenizer']}" in told


def test_sources_that_have_changed_are_told(smalti, codes):
    Path("pics/sub/0001.png").rename("pics/sub/new.png")
    told = smalti("encode", "pics", "--out", "codes", *OPTIONS, status=1)[1]
    assert "names and sizes of the pictures: there " in told
    assert "names or sizes differ" in smalti("verify", "codes", status=1)[1]


def test_mistakes_are_told_before_anything_is_computed(smalti, pictures, monkeypatch):
    monkeypatch.setattr("workers.engine.loading.load_engine", lambda *_: pytest.fail("loads the models"))
    for options, said in (
        (("--shard", "3/2"), "--shard must be I/N with I from 1 to N, as in 2/4, got '3/2'"),
        (("--effort", "99"), "effort: "),
        (("--pipeline", "none"), "pipeline: there is no 'none'"),
    ):
        told = smalti("encode", "pics", "--out", "codes", *options, status=1)[1]
        assert told.startswith(f"smalti: {said}")
    assert "need --out DIR" in smalti("encode", "pics/0001.png", "--flips", status=1)[1]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    told = smalti("encode", "pics", "--out", "codes", status=1)[1]
    assert told.endswith("pip install 'smalti[bulk]'\n")
    assert not Path("codes").exists()


def test_partial_files_of_processes_that_ended_are_removed(codes):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = codes / f".codes-000001.bin{partial_suffix(ended.pid)}"
    kept = [
        codes / f".codes-000001.bin{partial_suffix(os.getpid())}",
        codes / f".codes-000001.bin.partial-elsewhere-{ended.pid}",
    ]
    for path in (gone, *kept):
        path.write_bytes(b"x")
    remove_partial(codes)
    assert not gone.exists()
    assert all(path.exists() for path in kept)


def test_what_cannot_be_used_is_told_and_equal_names_in_a_tar_stay_apart(smalti, tmp_path):
    (tmp_path / "pics").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), tmp_path / "pics" / "notes.parquet")
    write_tar(tmp_path / "pics" / "a.tar", ["0.png", "0.png"])
    told = smalti("encode", "pics", "--out", "codes", *OPTIONS)[1]
    problem = "no column holds bytes, or structs with bytes; it has these: text"
    assert (
        f"smalti: notes.parquet#: {problem}\nsmalti: files of the sources that can't be used, each a row with an error: 1\n"
        in told
    )
    assert [row["error"] for row in rows_of(tmp_path / "codes")] == [None, None, problem]
    smalti("decode", "codes", "--out", "back")
    names = sorted(path.name for path in (tmp_path / "back").iterdir())
    assert names == ["a.tar!0.png#2.png", "a.tar!0.png.png"]
