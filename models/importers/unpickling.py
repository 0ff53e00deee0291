"""Tensors out of what ``torch.save`` wrote, without running anything of it; for a process of its own.

``torch.load(weights_only=True)`` goes first. It refuses files that hold objects of other classes, as
checkpoints of Lightning do (callbacks, configurations). Then an unpickler that knows tensors builds an
``Inert`` for everything else: no name in the file is ever looked up in a module.
"""

import json
import mmap
import pickle
import resource
import sys
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from models.importers.base import ImportFailed
from models.importers.wrappers import unwrap

ZIP_START = b"PK\x03\x04"

_LOCAL_HEADER_BYTES = 30  # of a record of a zip file, before its name
_MAX_GROWTH = 4  # of all tensors over the file: those that share storage are written twice
_SPARE_BYTES = 16 * 2**20
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Inert:
    """What stands for anything that isn't a tensor: it takes whatever is done to it, and does nothing."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def _ignore(self, *_: Any, **__: Any) -> None: ...

    __setstate__ = __setitem__ = append = extend = add = _ignore

    def __call__(self, *_: Any, **__: Any) -> "Inert":
        return self


class _Known:
    """A function that a file may call. A state for it would be set on the function: it is refused."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, _: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a function")


class _Held:
    """A tensor, or the dtype of a storage, with nothing that a file could call."""

    __slots__ = ("value",)

    def __init__(self, value: Tensor | torch.dtype) -> None:
        self.value = value

    def __setstate__(self, _: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a tensor")


def _tensor(storage: _Held, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Held:
    """Return a view of a storage. Raises: RuntimeError where it leaves the storage."""
    assert isinstance(storage.value, Tensor)
    return _Held(torch.as_strided(storage.value, size, stride, offset))


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
}


class TensorUnpickler(pickle.Unpickler):
    """An unpickler of ``data.pkl`` that knows tensors, and nothing else."""

    def __init__(self, file: Any, storage_of: Callable[[torch.dtype, str, int], Tensor]) -> None:
        super().__init__(file)
        self._storage_of = storage_of

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return what stands for a global; nothing is imported."""
        if (known := _KNOWN.get((module_name, global_name))) is not None:
            return _Known(known)
        if module_name in ("torch", "torch.storage") and global_name in _DTYPES:
            return _Held(_DTYPES[global_name])
        return Inert

    def persistent_load(self, pid: Any) -> _Held:
        """Return the storage that a file names, flat.

        Raises: UnpicklingError.
        """
        match pid:
            case ("storage", _Held(value=torch.dtype() as dtype), str() as key, str(), int() as num_values):
                return _Held(self._storage_of(dtype, key, num_values))
        raise pickle.UnpicklingError("it refers to something other than a storage of numbers")


def load_inert(path: Path) -> Any:
    """Return the object in a file of ``torch.save``, with an ``Inert`` for all that is no tensor.

    Raises: ImportFailed where its records aren't those of such a file.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
        data = next((name for name in records if name.endswith("/data.pkl") and name.count("/") == 1), None)
        if data is None:
            raise ImportFailed("it is a zip file, but not one of torch.save: it has no data.pkl")
        prefix = data.removesuffix("data.pkl")
        if f"{prefix}byteorder" in records and archive.read(f"{prefix}byteorder") != b"little":
            raise ImportFailed("its numbers are big-endian; save it on a little-endian machine")

        def storage_of(dtype: torch.dtype, key: str, num_values: int) -> Tensor:
            info = records.get(f"{prefix}data/{key}")
            if info is None or not 0 <= num_values * dtype.itemsize <= info.file_size:
                raise pickle.UnpicklingError(f"its storage {key[:40]!r} is missing or too short")
            if num_values == 0:
                return torch.empty(0, dtype=dtype)
            at = info.header_offset
            name_bytes, extra_bytes = (
                int.from_bytes(mapped[at + where : at + where + 2], "little") for where in (26, 28)
            )
            start = at + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
            return torch.frombuffer(mapped, dtype=dtype, count=num_values, offset=start)

        with archive.open(data) as pickled:
            return _released(TensorUnpickler(pickled, storage_of).load())


def _released(held: Any, depth: int = 2) -> Any:
    """Return an object with its tensors, two dictionaries deep; all else in it is of no use."""
    if isinstance(held, _Held):
        return held.value
    if depth and isinstance(held, dict):  # its own methods: a file may have put others into its __dict__
        return {name: _released(value, depth - 1) for name, value in dict.items(held)}
    return None


def check_records(path: Path) -> None:
    """Check that a zip file's records are stored as they are, and together no larger than the file.

    Raises: ImportFailed for what can't come of ``torch.save``, a zip bomb among it.
    """
    num_bytes = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise ImportFailed("it is a TorchScript program, not weights; save its state_dict() with torch.save")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ImportFailed("its records are compressed, which torch.save never does; it may be a zip bomb")
    if (total := sum(record.file_size for record in records)) > num_bytes:
        raise ImportFailed(
            f"its records overlap: they make {total} bytes, the file has {num_bytes}; it may be a zip bomb"
        )


def read_object(path: Path) -> Any:
    """Return what a file of ``torch.save`` holds: tensors as they are, and nothing that could run.

    Raises: ImportFailed.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_START)) == ZIP_START
    try:
        if is_zip:
            check_records(path)
        try:
            with warnings.catch_warnings(action="ignore"):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except pickle.UnpicklingError:
            if not is_zip:
                raise ImportFailed(
                    "it is not the zip file that torch.save writes since 1.6, and it is damaged or holds"
                    " more than tensors; save its state_dict() again with a newer torch"
                ) from None
        return load_inert(path)
    except ImportFailed:
        raise
    except MemoryError:
        raise ImportFailed("it takes far more memory than its size says") from None
    except Exception as error:  # whatever a stranger's file brings about
        raise ImportFailed(f"it is damaged, truncated or not of torch.save: {_in_brief(error)}") from error


def flatten(tensors: Mapping[str, Tensor], file_bytes: int) -> dict[str, Tensor]:
    """Return ``tensors`` each with memory of its own, as safetensors wants them.

    Raises: ImportFailed where they'd be much larger than the file that they came in.
    """
    total = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
    if total > _MAX_GROWTH * file_bytes + _SPARE_BYTES:
        raise ImportFailed(f"its tensors would take {total} bytes, the file has {file_bytes}")
    flat: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ImportFailed(f"its tensor {name[:100]} is sparse or quantised, which none of ours is")
        own = tensor.detach().contiguous()
        if (place := own.untyped_storage().data_ptr()) in places:
            own = own.clone()
        places.add(place)
        flat[name] = own
    return flat


def convert(path: Path, out: Path, weights: str | None) -> dict[str, Any]:
    """Write the tensors of ``path`` to the safetensors file ``out``; return what was found on the way.

    Raises: ImportFailed.
    """
    unwrapped = unwrap(read_object(path), weights)
    save_file(flatten(unwrapped.tensors, path.stat().st_size), out)
    return {"wrapper": unwrapped.wrapper, "notes": list(unwrapped.notes)}


def main(path: str, out: str, weights: str, memory_bytes: int, cpu_s: int) -> None:
    """Convert within limits, and print what came of it as JSON; what torch itself takes is not counted."""
    limit_memory(memory_bytes)
    cpu_s += int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
    torch.set_num_threads(1)
    try:
        told = convert(Path(path), Path(out), weights or None)
    except ImportFailed as error:
        told = {"refused": str(error)}
    except MemoryError:
        told = {"refused": "it takes far more memory than its size says"}
    except (OSError, SafetensorError) as error:
        told = {"not_written": " ".join(str(error).split())}
    print(json.dumps(told))  # noqa: T201
    sys.stdout.flush()


def limit_memory(more_bytes: int) -> None:
    """Limit this process's address space to what it has and ``more_bytes``."""
    statm = Path("/proc/self/statm")
    if not statm.exists():  # elsewhere than on Linux a limit of it is refused, or not kept
        return
    has = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + more_bytes,) * 2)


def _in_brief(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:160]}" if words else type(error).__name__
