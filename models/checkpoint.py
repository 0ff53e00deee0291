"""Tensors and their configuration in one safetensors file; no pickle is ever opened."""

import hashlib
import json
import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from models.eight_bits import from_eight_bits
from models.options import ConfigError, describe_invalid

_LENGTH_BYTES = 8  # of the header, little-endian, before a safetensors file's header
_ZIP_START = b"PK\x03\x04"  # of torch.save's archive
_PICKLE_STARTS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))  # of a bare pickle
_MAX_HEADER_BYTES = 100_000_000  # as safetensors has it
_LFS_START = b"version https://git-lfs.github.com/spec/"


class CheckpointError(ConfigError):
    """A file that can't be loaded; the message says which, why, and what to do."""


def save_checkpoint(path: Path, tensors: dict[str, Tensor], config: Any) -> None:
    """Write ``tensors`` with the dataclass ``config`` as JSON in the header; whole or not at all.

    Where float16 holds every float32 value exactly, as after ``in_half_precision``, that is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in _narrowed(tensors).items()}
    save_file(contiguous, partial, metadata={"config": json.dumps(asdict(config))})
    partial.chmod(0o644)  # safetensors makes files that nobody else may read
    partial.replace(path)


def _narrowed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` with float32 as float16, or as they are where that would change a value."""
    halves = {name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()}
    is_exact = all(torch.equal(half.to(tensors[name].dtype), tensors[name]) for name, half in halves.items())
    return halves if is_exact else tensors


def load_checkpoint(path: Path, config_class: Any) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors of ``path`` and its configuration as a ``config_class``, or as one of a union.

    Raises: CheckpointError when the file is missing, cut, a pickle, or otherwise not ours.
    """
    _check_kind(path)
    config: Any
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
        config = TypeAdapter(config_class).validate_json(metadata.get("config", ""))
        return from_eight_bits(load_file(path)), config
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    except ValidationError as error:
        wanted = getattr(config_class, "__name__", config_class)
        raise CheckpointError(f"{path} holds no usable {wanted}: {describe_invalid(error)}") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file of anybody's, read from the disk when they are used.

    Raises: CheckpointError when the file is missing, cut, a pickle, or otherwise no such file.
    """
    _check_kind(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def load_into(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy ``tensors`` into ``module``; every one must be there, and no other, and finite.

    Raises: CheckpointError naming what is missing, unexpected, of another shape or not finite.
    """
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        _, *reasons = map(str.strip, str(error).splitlines())
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        reason = textwrap.shorten(reasons[0], 200, placeholder=" …")
        raise CheckpointError(f"{path} does not fit its configuration: {reason}{more}") from error
    for name, tensor in tensors.items():
        if (
            tensor.is_floating_point()
            and tensor.numel()
            and not all(map(math.isfinite, torch.aminmax(tensor)))
        ):
            raise CheckpointError(
                f"{path}: the tensor {name} holds NaN or infinity, as after a training that diverged;"
                " export an earlier checkpoint, or fetch the file again"
            )


class Unfilled(TorchFunctionMode):
    """Within it, modules are made without drawing weights that are loaded over at once.

    Drawing them takes half the time of loading.
    """

    _DRAWS: ClassVar = frozenset(
        {init.uniform_, init.normal_, init.kaiming_uniform_, Tensor.uniform_, Tensor.normal_}
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in self._DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def fingerprint(named: Mapping[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that tell these named values and these tensors from all others."""
    digest = hashlib.sha256(json.dumps(dict(named), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def set_fields(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration that differ from their defaults, by name.

    So a field that is added later, with a default, leaves fingerprints as they were.
    """
    found = {}
    for each in fields(config):
        value = getattr(config, each.name)
        if is_dataclass(value):
            found[each.name] = {"kind": type(value).__name__, **set_fields(value)}
        elif value != each.default:
            found[each.name] = value
    return found


def _check_kind(path: Path) -> None:
    """Check that a file begins as a safetensors file does, and is as long as its header says.

    The length of the header comes first, and may begin as a pickle does: so the brace behind it is looked at,
    and whether so long a header fits.

    Raises: CheckpointError saying what the file is instead.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_START))
            num_bytes = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    if not start:
        raise CheckpointError(f"{path} is empty. Get or write it again.")
    if start.startswith(_LFS_START):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the weights themselves. Run `git lfs pull` in its repository."
        )
    header_bytes = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if start[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and header_bytes <= _MAX_HEADER_BYTES:
        _check_length(path, _LENGTH_BYTES + header_bytes, num_bytes)
    elif start.startswith((_ZIP_START, *_PICKLE_STARTS)):
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is loaded. `smalti import` takes the weights out"
            " of it without running any."
        )
    elif num_bytes <= _LENGTH_BYTES:
        raise CheckpointError(f"{path} is not a safetensors file: it has {num_bytes} bytes")


def _check_length(path: Path, data_start: int, num_bytes: int) -> None:
    """Check that all the data is there that the header announces.

    Raises: CheckpointError. A header that can't be understood is left to safetensors.
    """
    expected = data_start
    if data_start <= num_bytes:
        with path.open("rb") as file:
            header = file.read(data_start)[_LENGTH_BYTES:]
        try:
            entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
            expected += max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return
    if num_bytes < expected:
        raise CheckpointError(
            f"{path} is truncated: it has {num_bytes} bytes, its header asks for {expected}. Get it again."
        )
