"""Packed tars are read from front to back, as plain ones are, and none takes more than its share."""

import bz2
import gzip
import io
import lzma
import tarfile

import pyarrow
import pytest

from bulk.sources import Sources
from bulk.tars import _Unpacking
from tests.bulk.pictures import picture, write_tar
from tests.bulk.test_sources import read_all

PACKERS = {
    ".tar.gz": lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:]),
    ".tgz": gzip.compress,
    ".tar.xz": lambda data: lzma.compress(data[:5000]) + b"\0" * 8 + lzma.compress(data[5000:]),
    ".tar.bz2": lambda data: bz2.compress(data[:5000]) + bz2.compress(data[5000:]),
    ".tar.zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
    ".TZST": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
}


@pytest.fixture
def plain(tmp_path) -> bytes:
    write_tar(tmp_path / "a.tar", ["0.png", "0.json", "sub/1.png", "2.png"])
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").unlink()
    return data


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_packed_tar_holds_what_the_plain_one_does(tmp_path, plain, suffix):
    (tmp_path / f"a{suffix}").write_bytes(PACKERS[suffix](plain))
    name = f"a{suffix}!"
    assert read_all(tmp_path) == {
        f"{name}0.png": picture(0),
        f"{name}sub/1.png": picture(2),
        f"{name}2.png": picture(3),
    }
    some = [item.read() for number, item in enumerate(Sources([str(tmp_path)]).walk()) if number == 1]
    assert some == [picture(2)]


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_packed_tar_that_is_cut_off_or_broken_says_where(tmp_path, plain, suffix):
    whole = PACKERS[suffix](plain)
    for broken in (whole[: len(whole) // 2], whole[:40] + b"\xff" * 40 + whole[80:], b"", b"x" * 5000):
        (tmp_path / f"a{suffix}").write_bytes(broken)
        found = read_all(tmp_path)
        last = found.pop(f"a{suffix}!")
        assert last.startswith("the tar is broken from here on")
        assert set(found) <= {f"a{suffix}!{name}" for name in ("0.png", "sub/1.png", "2.png")}


def test_a_tar_that_unpacks_to_far_more_than_it_is_stops_there(tmp_path, plain):
    bomb = tarfile.TarInfo("bomb.bin")
    bomb.size = 2**40
    members = plain.rstrip(b"\0")
    members += b"\0" * (-len(members) % 512) + bomb.tobuf(tarfile.GNU_FORMAT)
    packed = pyarrow.compress(members + b"\0" * 80 * 2**20, "zstd", asbytes=True)
    (tmp_path / "a.tar.zst").write_bytes(packed)
    found = read_all(tmp_path)
    assert len(found) == 4
    assert found["a.tar.zst!"].endswith("it unpacks to more than 100 times its bytes")


def test_memory_that_a_packed_file_asks_for_is_bounded():
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**23}]
    packed = io.BytesIO(lzma.compress(b"x", filters=filters))
    small = _Unpacking(packed, lambda: lzma.LZMADecompressor(memlimit=2**22))
    with pytest.raises(lzma.LZMAError, match="Memory usage limit"):
        small.read(1)
