"""A folder of codes is read without Smalti, checked against its sources, and decoded."""

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bulk.manifest import Manifest
from bulk.verify import check_shards
from tests.bulk.pictures import OPTIONS, picture, write_pictures
from training.data.code_folder import read_codes as read_coded

DOCS = Path(__file__).parents[2] / "docs" / "codes.md"


def rewrite(path: Path, **columns) -> None:
    """Write a shard again with some columns changed, its footer as it was."""
    table = pyarrow.parquet.read_table(path)
    for name, change in columns.items():
        at = table.schema.get_field_index(name)
        values = change(table.column(name).to_pylist())
        field = table.schema.field(name)
        table = table.set_column(at, field, pyarrow.array(values, field.type))
    pyarrow.parquet.write_table(table, path)


def read_as_documented(tmp_path: Path, row: int) -> tuple[int, list]:
    """Run the reader in the docs on codes/, without Smalti; return the number of rows, and the codes of one."""
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    script = "import sys\n" + snippet + f"codes = Codes('codes')\nprint(len(codes), codes[{row}].tolist())\n"
    script += "assert not {'torch', 'pyarrow', 'models'} & set(sys.modules)\n"
    run = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    number, last = run.stdout.split(maxsplit=1)
    return int(number), json.loads(last)


def test_the_reader_in_the_docs_reads_what_the_docs_say(codes, tmp_path):
    number, last = read_as_documented(tmp_path, 18)
    assert number == 19
    table = pyarrow.parquet.read_table(codes / "codes-000002.parquet")
    assert np.ravel(last).tolist() == table.column("codes").to_pylist()[-1]
    row, column = 2, 7  # of the last shard: as the bytes are stated
    (code,) = struct.unpack_from("<H", (codes / "codes-000002.bin").read_bytes(), (row * 36 + column) * 2)
    assert code == table.column("codes").to_pylist()[row][column]
    assert json.loads((codes / "codes-000000.json").read_text())["error_rows"] == [0]
    footer = json.loads(table.schema.metadata[b"smalti"])
    assert set(footer) == {
        "format", "smalti", "pipeline", "tokenizer", "precision", "grid", "num_codebooks", "codebook_size",
        "effort", "return_psnr", "transform",
    }  # fmt: skip


def test_verify_finds_nothing_wrong_with_what_encode_made(smalti, codes):
    Path("pics").rename("elsewhere")
    out, _ = smalti("verify", "codes", "elsewhere", "--decoders", "1", "--rows", "7")
    assert out == "20 rows read, 7 of them encoded again: all as they should be\n"
    assert "pics: there is no such file" in smalti("verify", "codes", status=1)[1]


def test_packed_crops_and_flips_are_read_checked_and_decoded(smalti, tmp_path):
    write_pictures(tmp_path / "pics", 5)
    options = (*OPTIONS, "--crops", "2", "--flips")
    smalti("encode", "pics", "--out", "plain", *options)
    smalti("encode", "pics", "--out", "codes", *options, "--pack")
    plain = pyarrow.parquet.read_table("plain/codes-000000.parquet").to_pylist()
    table = pyarrow.parquet.read_table("codes/codes-000000.parquet")
    kinds = [(row["id"], row["crop"], row["is_flipped"]) for row in table.to_pylist()]
    assert kinds[:5] == [
        ("0000.png", 0, False), ("0000.png", 0, True), ("0000.png", 1, False), ("0000.png", 1, True),
        ("0001.png", 0, False),
    ]  # fmt: skip
    assert len({tuple(row["crop_box"]) for row in plain}) == 1 + 5
    num_bytes = -(-36 * 5 // 8)  # codes of 5 bits
    assert table.schema.field("codes").type == pyarrow.binary(num_bytes)
    assert Path("codes/codes-000000.bin").stat().st_size == 20 * num_bytes
    assert json.loads(table.schema.metadata[b"smalti"])["format"] == 2
    number, codes = read_as_documented(tmp_path, 6)
    assert number == 20
    assert np.ravel(codes).tolist() == plain[6]["codes"]
    assert "20 rows read, 20 of them encoded again: all" in smalti("verify", "codes")[0]
    smalti("decode", "codes", "--out", "back")
    names = sorted(path.name for path in Path("back").iterdir())[:4]
    assert names == [f"0000.png{kind}.png" for kind in (".crop1.flipped", ".crop1", ".flipped", "")]
    assert "5, 2 crops of each, each also flipped" in Path("codes/card.md").read_text()
    fingerprint = json.loads(Path("codes/manifest.json").read_text())["tokenizer"]
    read = read_coded(Path("codes"), fingerprint).codes.flatten(1).tolist()
    assert read == [row["codes"] for row in plain]


def test_verify_names_what_differs(smalti, codes, tmp_path):
    (tmp_path / "pics" / "sub" / "0003.png").write_bytes(picture(3)[::-1])
    changed = [[31 - code for code in codes] for codes in read_codes(codes / "codes-000001.parquet")]
    rewrite(codes / "codes-000001.parquet", codes=lambda _: changed)
    np.array(changed, "<u2").tofile(codes / "codes-000001.bin")
    told = smalti("verify", "codes", "--decoders", "1", status=1)[1]
    assert "sub/0003.png: its file has other bytes than when it was encoded" in told
    assert "sub/0008.png: its codes are others than those made of it now" in told
    assert "9 problems" in told


def read_codes(path: Path) -> list[list[int]]:
    return pyarrow.parquet.read_table(path).column("codes").to_pylist()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("codes-000001.bin", b"\0" * 576, "codes-000001.bin holds other codes than codes-000001.parquet"),
        ("codes-000001.bin", b"", "codes-000001.bin is missing or broken"),
        ("codes-000001.json", b"{}", "codes-000001.bin is missing or broken"),
        ("codes-000001.parquet", b"PAR1", "codes-000001.parquet is missing or broken"),
    ],
)
def test_a_shard_that_is_damaged_is_named(codes, name, content, said):
    (codes / name).write_bytes(content)
    good, (problem,) = check_shards(codes, Manifest.load(codes))
    assert good == [0, 2]
    assert said in problem


def test_a_manifest_that_is_damaged_is_named(smalti, codes):
    (codes / "manifest.json").write_text("{}")
    assert "manifest.json: " in smalti("verify", "codes", status=1)[1]
    (codes / "manifest.json").unlink()
    assert "smalti: codes is not a folder of codes" in smalti("verify", "codes", status=1)[1]


def test_decoded_pictures_are_those_of_decode_and_kept(smalti, codes, tmp_path):
    told = smalti("decode", "codes", "--out", "back")[1]
    assert "19 pictures written, 0 were there already, 1 rows have no codes" in told
    (tmp_path / "a.json").write_text(smalti("encode", "pics/sub/0007.png", "--pipeline", "tiny")[0])
    smalti("decode", "a.json", "--out", "a.png")
    assert (tmp_path / "back/sub/0007.png.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    (tmp_path / "back/sub/0007.png.png").unlink()
    assert "1 pictures written, 18 were there already" in smalti("decode", "codes", "--out", "back")[1]
    smalti("decode", "codes", "--out", "webp", "--format", "webp")
    assert (tmp_path / "webp/sub/0007.png.webp").exists()


def test_an_id_leads_nowhere_else(smalti, codes, tmp_path):
    bad = ["../../up", "/etc/x", "a//b", "a\0b", "x" * 300]
    rewrite(codes / "codes-000001.parquet", id=lambda ids: bad + ids[len(bad) :])
    before = {path for path in tmp_path.rglob("*") if "back" not in path.parts}
    told = smalti("decode", "codes", "--out", "back", status=4)[1]
    assert "'../../up' can't be the name of a file" in told
    assert "File name too long" in told
    assert "5 pictures could not be made" in told
    assert {path for path in tmp_path.rglob("*") if "back" not in path.parts} == before
    assert len(list((tmp_path / "back").rglob("*.png"))) == 19 - 5


def test_codes_of_another_tokenizer_are_not_decoded(smalti, codes):
    manifest = json.loads((codes / "manifest.json").read_text())
    (codes / "manifest.json").write_text(json.dumps({**manifest, "tokenizer": "0" * 16}))
    told = smalti("decode", "codes", "--out", "back", status=1)[1]
    assert told.startswith(f"smalti: the codes were made by the tokenizer {'0' * 16} of tiny, which is not")
