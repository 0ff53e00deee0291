"""Shards of all kinds of codes hold what was written, and the same rows give the same bytes."""

import numpy as np
import pytest

from bulk.errors import BulkError
from bulk.manifest import Manifest, SourcesInfo, Transform
from bulk.pictures import Box
from bulk.shards import Row, codes_of, read_shard, write_shard
from models.code_shards import open_codes, pack, unpack


def manifest(**fields) -> Manifest:
    defaults = {
        "smalti": "1",
        "pipeline": "p",
        "tokenizer": "0" * 16,
        "grid": (3,),
        "num_codebooks": 1,
        "codebook_size": 16,
        "transform": Transform(width_px=8, height_px=8, channels=3),
        "shard_size": 4,
        "sources": SourcesInfo(given=("x",), num_items=3, digest="d"),
    }
    return Manifest(**{**defaults, **fields})


def rows(shape, size) -> list[Row]:
    codes = np.random.default_rng(0).integers(0, size, (2, *shape))
    codes[0].flat[0] = size - 1
    box = Box(0.5, 0, 8.5, 8)
    good = [
        Row(name, False, each, box, (9, 8), bytes(range(32))) for name, each in zip("ac", codes, strict=True)
    ]
    return [good[0], Row("b", error="is broken"), good[1]]


@pytest.mark.parametrize(
    ("fields", "dtype", "shape"),
    [
        ({}, "<u2", (3,)),
        ({"codebook_size": 2**16}, "<u2", (3,)),
        ({"codebook_size": 2**16 + 1, "grid": (2, 3)}, "<u4", (2, 3)),
        ({"num_codebooks": 2}, "<u2", (2, 3)),
        ({"codebook_size": 1000, "bits_per_code": 10, "format": 2}, "<u2", (3,)),
        ({"codebook_size": 2**17, "bits_per_code": 17, "format": 2, "grid": (2, 3)}, "<u4", (2, 3)),
    ],
)
def test_codes_come_back_in_their_type_and_shape(tmp_path, fields, dtype, shape):
    made_by = manifest(**fields)
    written = rows(shape, made_by.codebook_size)
    write_shard(tmp_path, 0, written, made_by)
    expected = np.stack([row.codes for row in written if row.codes is not None])
    codes, good = codes_of(read_shard(tmp_path, 0, made_by), made_by)
    mapped = open_codes(tmp_path / "codes-000000.bin")
    assert good.tolist() == [0, 2]
    assert mapped.dtype == codes.dtype == np.dtype(dtype)
    assert np.array_equal(mapped, expected)
    assert np.array_equal(codes, expected)


def test_packed_codes_lie_as_the_docs_say_whatever_their_number():
    for num_rows in (0, 1, 4097):
        codes = np.random.default_rng(num_rows).integers(0, 1000, (num_rows, 7)).astype(np.uint16)
        packed = pack(codes, 10)
        assert packed.shape == (num_rows, 9)
        assert np.array_equal(unpack(packed, 7, 10, codes.dtype), codes)
        for row, expected in zip(packed[-3:], codes[-3:], strict=True):
            number = int.from_bytes(row.tobytes(), "little")
            assert [number >> 10 * at & 1023 for at in range(7)] == expected.tolist()


def test_a_shard_of_errors_alone_can_be_read(tmp_path):
    made_by = manifest(sources=SourcesInfo(given=(), num_items=1, digest="d"))
    write_shard(tmp_path, 0, [Row("a", error="is broken")], made_by)
    assert open_codes(tmp_path / "codes-000000.bin").shape == (0, 3)
    assert codes_of(read_shard(tmp_path, 0, made_by), made_by)[0].shape == (0, 3)


def test_a_shard_of_another_manifest_is_refused(tmp_path):
    write_shard(tmp_path, 0, rows((3,), 16), manifest())
    read_shard(tmp_path, 0, manifest(smalti="2"))
    with pytest.raises(BulkError, match="effort: not as the folder's manifest says"):
        read_shard(tmp_path, 0, manifest(effort=1))
    with pytest.raises(BulkError, match="its columns, or its 3 rows, are not those of the manifest"):
        read_shard(tmp_path, 0, manifest(sources=SourcesInfo(given=(), num_items=2, digest="d")))


def test_more_shards_than_have_names_are_refused():
    sources = SourcesInfo(given=(), num_items=10**6 + 1, digest="d")
    with pytest.raises(BulkError, match="--shard-size: must be 2 or more for 1000001 pictures, got 1"):
        manifest(shard_size=1, sources=sources).check()
    manifest(shard_size=2, sources=sources).check()
