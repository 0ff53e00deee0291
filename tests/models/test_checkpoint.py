"""A checkpoint is told from other files by its whole beginning."""

import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from models.networks.dit import DiT, DiTConfig


@dataclass(frozen=True)
class Note:
    text: str = ""


WEIGHT = {"weight": torch.arange(6.0)}


def header_bytes(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


def with_header_of(num_bytes: int) -> bytes:
    """Return a checkpoint whose header is padded with spaces, as the format allows, to any length."""
    data = save(WEIGHT, metadata={"config": json.dumps({"text": "note"})})
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].ljust(num_bytes)
    return num_bytes.to_bytes(8, "little") + header + data[8 + length :]


def test_a_header_of_any_length_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for num_bytes in [*range(512, 768), 0x0280, 0x0380, 0x0480, 0x0580, 0x4B50, 0x034B50]:
        path.write_bytes(with_header_of(num_bytes))
        tensors, note = load_checkpoint(path, Note)
        assert torch.equal(tensors["weight"], WEIGHT["weight"])
        assert note == Note("note")


def test_the_prior_whose_header_begins_as_a_pickle_is_loaded(tmp_path: Path) -> None:
    config = DiTConfig(grid=(14, 14), patch_size=2, hidden_size=64, depth=3, num_heads=8, label_sizes=(2,))
    path = tmp_path / "prior.safetensors"
    network = DiT(config)
    lengths = set()
    for num_spare in range(
        0, 256, 8
    ):  # the config's text moves the header's length through all multiples of 8
        save_checkpoint(path, {**network.state_dict(), "x" * (num_spare + 1): torch.zeros(1)}, config)
        lengths.add(header_bytes(path) % 256)
        assert load_checkpoint(path, DiTConfig)[1] == config
    assert 0x80 in lengths


def of_torch(protocol: int, *, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(WEIGHT, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [of_torch(2, zipped=True), of_torch(2, zipped=False)]
    + [pickle.dumps({"{": [1.0]}, protocol) for protocol in range(2, 6)],
)
def test_a_pickle_of_any_protocol_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is a pickle, which can run code"):
        load_checkpoint(path, Note)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WHOLE = with_header_of(512)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"a\.safetensors is empty"),
        (POINTER, "is a Git LFS pointer.*git lfs pull"),
        (WHOLE[:-1], f"is truncated: it has {len(WHOLE) - 1} bytes, its header asks for {len(WHOLE)}"),
        (WHOLE[:520], f"is truncated: it has 520 bytes, its header asks for {len(WHOLE)}"),
        (WHOLE[:100], "is truncated: it has 100 bytes, its header asks for 520"),
        (WHOLE[:9], "is truncated: it has 9 bytes"),
        (WHOLE[:8], "not a safetensors file"),
        (WHOLE[:3], "not a safetensors file"),
        (WHOLE + b"more", "not a safetensors file"),
        (b"nonsense" * 10, "not a safetensors file"),
        (b"\x80{\0\0\0\0\0\0{broken" + bytes(200000), "not a safetensors file"),
        (b"<!DOCTYPE html>" * 9, "not a safetensors file"),
    ],
)
def test_what_a_file_is_instead_is_said_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=said) as raised:
        load_checkpoint(path, Note)
    assert "\n" not in str(raised.value)
