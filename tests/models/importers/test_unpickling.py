"""Nothing in a pickle runs, whatever it asks for; and what isn't of ``torch.save`` is refused."""

import argparse
import collections
import contextlib
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from models.importers.base import ImportFailed
from models.importers.unpickling import Inert, convert, load_inert, read_object

LIGHTNING = Path(__file__).parent / "files" / "lightning.ckpt"  # that Trainer.save_checkpoint wrote
MARK = "pickle_ran"


def saved(path: Path, data: bytes, records: dict[str, bytes] | None = None, **options: Any) -> Path:
    """Write an archive as torch.save lays it out, around a pickle of one's own."""
    with zipfile.ZipFile(path, "w", options.get("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
        for name, content in (records or {}).items():
            archive.writestr(f"archive/{name}", content)
    return path


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def hostile_pickles(mark: Path) -> dict[str, bytes]:
    """Return pickles that would each write ``mark`` if anything of them ran."""
    shell = f"echo x > {mark}"
    python = f"open({str(mark)!r}, 'w').close()"
    system = text(shell)
    return {
        "os.system": pickle.dumps(Calls(os.system, shell)),
        "posix.system at protocol 0": f"cposix\nsystem\n(S'{shell}'\ntR.".encode(),
        "builtins.eval": pickle.dumps(Calls(eval, python)),
        "builtins.exec within weights": pickle.dumps({"state_dict": {"w": Calls(exec, python)}}),
        "a name with dots": b"\x80\x04" + text("torch") + text("os.system") + b"\x93" + system + b"\x85R.",
        "torch's own way to os": b"ctorch.serialization\nos.system\n" + system + b"\x85R.",
        "a call of a stub": b"cbuiltins\ngetattr\n(cos\n__dict__\n" + text("system") + b"tR" + system + b"\x85R.",
        "INST": b"(" + system + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + system + b"o.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n" + system + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04csubprocess\nPopen\n" + system + b"\x85}" + text("shell") + b"\x88s\x92.",
        "BUILD of a stub": b"cos\nsystem\n)R}" + text("__class__") + b"cos\nsystem\nsb" + b".",
        "BUILD of a dictionary": (
            b"ccollections\nOrderedDict\n)R}" + text("items") + b"cos\nsystem\nsb" + b"."
        ),
    }  # fmt: skip


HOSTILE = sorted(hostile_pickles(Path(MARK)))


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_pickle_runs(tmp_path: Path, name: str) -> None:
    mark = tmp_path / MARK
    path = saved(tmp_path / "hostile.pt", hostile_pickles(mark)[name])
    out = tmp_path / "out.safetensors"
    with pytest.raises(ImportFailed):  # there are no weights in it, or it isn't read to its end
        convert(path, out, None)
    with contextlib.suppress(pickle.UnpicklingError, TypeError, AttributeError):
        load_inert(path)
    assert not mark.exists()
    assert not out.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.exec within weights", "BUILD of a dictionary"])
def test_the_pickles_of_these_tests_do_harm_where_they_run(tmp_path: Path, name: str) -> None:
    """Or the test above would show nothing."""
    mark = tmp_path / MARK
    loaded = pickle.loads(hostile_pickles(mark)[name])
    if name.startswith("BUILD"):
        loaded.items(f"echo x > {mark}")
    assert mark.exists()


@pytest.mark.parametrize(
    "state",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__defaults__") + b")sb.",
        b"ctorch\nFloatStorage\n}" + text("dtype") + b"Nsb.",
        b"ccollections\nOrderedDict\n}" + text("items") + b"Nsb.",
    ],
)
def test_a_file_can_not_change_what_it_may_call(tmp_path: Path, state: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="sets the state"):
        load_inert(saved(tmp_path / "state.pt", state))


def test_what_lightning_saved_gives_its_tensors_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):  # so that the other way is what is tested here
        torch.load(LIGHTNING, weights_only=True)
    told = convert(LIGHTNING, tmp_path / "out.safetensors", None)
    assert told["wrapper"] == "state_dict"
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "out.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "net.weight": (2, 3), "net.bias": (2,), "count": (),
    }  # fmt: skip
    assert tensors["count"] == 7
    assert torch.equal(tensors["net.weight"], expected_weight())


def expected_weight() -> torch.Tensor:
    """Read the weights in the archive as bytes, without any unpickler: the largest record is theirs."""
    with zipfile.ZipFile(LIGHTNING) as archive:
        data = next(name for name in archive.namelist() if archive.getinfo(name).file_size == 24)
        return torch.frombuffer(bytearray(archive.read(data)), dtype=torch.float32).reshape(2, 3)


def with_objects(tensors: Any) -> Any:
    """Return a checkpoint as scripts save it, with something that weights_only refuses."""
    return {"model": tensors, "args": argparse.Namespace(lr=0.1), "epoch": 3}


def test_tensors_of_every_kind_come_out_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(4, 6, generator=generator)
    tensors = collections.OrderedDict(
        whole=whole,
        columns=whole[:, 1:3],
        across=whole.t(),
        again=whole,
        parameter=torch.nn.Parameter(torch.randn(3, generator=generator)),
        empty=torch.empty(0, 3),
        **{f"as {dtype}": torch.arange(5).to(dtype) for dtype in (
            torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
            torch.uint8, torch.bool,
        )},
    )  # fmt: skip
    torch.save(with_objects(tensors), tmp_path / "odd.pt")
    torch.save({"model": tensors}, tmp_path / "plain.pt")
    from safetensors.torch import load_file

    for name in ("odd", "plain"):
        assert convert(tmp_path / f"{name}.pt", tmp_path / "out.safetensors", None)["wrapper"] == "model"
        read = load_file(tmp_path / "out.safetensors")
        assert read.keys() == tensors.keys()
        for each, tensor in tensors.items():
            assert read[each].dtype == tensor.dtype
            assert torch.equal(read[each], tensor)


def test_a_tensor_that_leaves_its_storage_is_refused(tmp_path: Path) -> None:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"
    for offset, size, stride in (
        (b"K\x01", b"K\x04\x85", b"K\x01\x85"),
        (b"K\x00", b"K\x02\x85", b"K\x09\x85"),
    ):
        data = (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + b"\x89NtR."
        )
        with pytest.raises(ImportFailed, match=r"damaged.*RuntimeError"):
            read_inert(saved(tmp_path / "out.pt", data, {"data/0": bytes(16)}))
    short = saved(tmp_path / "short.pt", b"\x80\x02" + storage + b".", {"data/0": bytes(12)})
    with pytest.raises(ImportFailed, match="missing or too short"):
        read_inert(short)


def read_inert(path: Path) -> Any:
    """Read a file that weights_only refuses, too; in this process."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    records["archive/data.pkl"] = b"cos\nsystem\n0" + records["archive/data.pkl"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return read_object(path)


def test_tensors_much_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**9)}, tmp_path / "bomb.pt")
    with pytest.raises(ImportFailed, match=r"would take 4000000000 bytes, the file has \d+"):
        convert(tmp_path / "bomb.pt", tmp_path / "out.safetensors", None)


def test_zip_bombs_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    bomb = saved(tmp_path / "b.pt", b"N.", {"data/0": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ImportFailed, match="compressed"):
        read_object(bomb)
    plain = saved(tmp_path / "p.pt", b"N.", {"data/0": bytes(1000)}).read_bytes()
    # The directory says that the record is longer than the whole file, as where records overlap.
    at = plain.rindex(b"PK\x01\x02")
    longer = plain[: at + 24] + struct.pack("<I", 10**6) + plain[at + 28 :]
    (tmp_path / "o.pt").write_bytes(longer)
    with pytest.raises(ImportFailed, match="overlap"):
        read_object(tmp_path / "o.pt")


@pytest.mark.parametrize("num_left", [3, 100, 1000, -200, -30])
def test_a_truncated_file_is_refused(tmp_path: Path, num_left: int) -> None:
    (tmp_path / "cut.ckpt").write_bytes(LIGHTNING.read_bytes()[:num_left])
    with pytest.raises(ImportFailed):
        read_object(tmp_path / "cut.ckpt")


@pytest.mark.parametrize(
    "data",
    [
        b"(" * 10**5 + b".",
        b"]" + b"]a" * 10 + b"]" * 50_000 + b"a" * 50_000 + b".",
        b"\x80\x02" + b"\x85" * 10 + b".",
        b"\x80\x7fN.",
        b"\x8a\xff" + b"\xff" * 255 + b".",
        b"\x82\x01.",
        b"h\x07.",
        b"",
        b"Pnowhere\n.",
    ],
    ids=["marks", "nested", "empty stack", "protocol", "long", "extension", "memo", "empty", "persistent"],
)
def test_a_pickle_that_makes_no_sense_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ImportFailed):
        convert(saved(tmp_path / "odd.pt", data), tmp_path / "out.safetensors", None)


def test_a_program_and_an_old_form_with_objects_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ImportFailed, match="TorchScript program"):
        read_object(saved(tmp_path / "script.pt", b"N.", {"constants.pkl": b"N."}))
    torch.save(with_objects({"w": torch.ones(2)}), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ImportFailed, match="damaged or holds more than tensors"):
        read_object(tmp_path / "old.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(ImportFailed, match="it is damaged"):
        read_object(tmp_path / "bare.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_object(tmp_path / "old.pt")["w"], torch.ones(2))


def test_a_stub_takes_whatever_is_done_to_it() -> None:
    stub = Inert("os", "system")
    stub.append(1)
    stub["a"] = 2
    assert stub("echo") is stub
    assert not hasattr(stub, "__dict__")
    with pytest.raises(AttributeError):
        stub.items = 1  # type: ignore[attr-defined]
    assert isinstance(pickle.Unpickler(io.BytesIO(pickle.dumps(3))).load(), int)
