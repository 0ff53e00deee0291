"""A checkpoint as its publisher saved it: a file, or a folder of diffusers or of another project."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from torch import Tensor

from models.checkpoint import load_tensors
from models.importers.base import ImportFailed, Source
from models.importers.pickles import read_pickle
from models.importers.unpickling import ZIP_START
from models.importers.wrappers import unwrap

MODEL_INDEX = "model_index.json"  # of a pipeline that diffusers saved
PARTS = ("vae", "vqvae", "vqmodel", "movq", "transformer", "scheduler")  # those that importers may want
UVIT = "UVit2DModel"  # whose pipelines, aMUSEd's, are taken over with the encoder of their prompts
TEXT_PARTS = ("text_encoder", "tokenizer")
WORDS_FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json"),
)
CONFIGS = ("config.json", "scheduler_config.json")
YAML_SUFFIXES = (".yaml", ".yml")
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
_USUAL_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_INDEX = ".index.json"
_PICKLE_STARTS = (ZIP_START, *(bytes([0x80, protocol]) for protocol in range(2, 6)))
_BRACE_AT = 8  # behind the length of a header
_MAX_CONFIG_BYTES = 2**22
_MAX_SHARDS = 1000


def open_source(
    path: Path, *, scratch: Path | None = None, config: Path | None = None, weights: str | None = None
) -> Source:
    """Return the tensors and the configuration in a file or a folder; nothing of them runs.

    scratch: a folder with room for what pickles hold, in safetensors. config: of a file that has none beside
    it. weights: "ema" or "model", where a file holds both.

    Raises: ConfigError when it isn't there, damaged, or not a checkpoint.
    """
    if not path.exists():
        raise ImportFailed(f"{path}: there is no such file or folder")
    with tempfile.TemporaryDirectory(prefix="smalti-import-", dir=scratch) as folder:
        reader = _Reader(Path(folder), config, weights)
        if path.is_dir():
            return reader.folder(path)
        pair = choose_pair([each.name for each in path.parent.iterdir()], path.name)
        return reader.pair(path.parent, pair) if pair else reader.file(path)


def choose_weights(names: Sequence[str]) -> str | None:
    """Return which file of a folder holds its weights, or is the index of those that do; None for none.

    Safetensors go before pickles, what is whole in one file before its parts, the usual names before others;
    of variants ("model.fp16.safetensors") none is taken where there is a plain one.

    Raises: ImportFailed where it could be several.
    """
    for suffix in (".safetensors", *PICKLE_SUFFIXES):
        whole = [name for name in names if name.endswith(suffix) and not _is_shard(name)]
        usual = [f"{stem}{suffix}" for stem in _USUAL_STEMS if f"{stem}{suffix}" in whole]
        index = [name for name in names if name.endswith(suffix + _INDEX)]
        plain = [name for name in whole if PurePosixPath(name).stem.count(".") == 0] or whole
        found = usual[:1] or index or plain
        if len(found) > 1:
            raise ImportFailed(f"it has several files of weights; name one: {', '.join(sorted(found)[:10])}")
        if found:
            return found[0]
    return None


def choose_pair(names: Sequence[str], named: str | None = None) -> dict[str, str]:
    """Return the two files that hold an autoencoder's halves, by half; none where there are not.

    As TAESD is published: "NAME_encoder.pth" and "NAME_decoder.pth". named: one of them; None where a folder
    is to have no other weights.
    """
    weights = [name for name in names if name.endswith((".safetensors", *PICKLE_SUFFIXES))]
    if named is None and len(weights) != 2:
        return {}
    for own, other in (("encoder", "decoder"), ("decoder", "encoder")):
        for name in weights if named is None else (named,):
            stem, dot, suffix = name.rpartition(".")
            if stem.endswith(own) and (beside := f"{stem.removesuffix(own)}{other}{dot}{suffix}") in weights:
                return dict(sorted({own: name, other: beside}.items(), reverse=True))
    return {}


def choose_config(names: Sequence[str], weights: str | None = None) -> str | None:
    """Return the file of a folder that is the configuration of ``weights``, or None."""
    stem = PurePosixPath(weights.removesuffix(_INDEX)).stem if weights else None
    own = [name for suffix in (*YAML_SUFFIXES, ".json") if (name := f"{stem}{suffix}") in names]
    yamls = [name for name in names if name.endswith(YAML_SUFFIXES)]
    usual = [name for name in CONFIGS if name in names]
    return next(iter(own or usual or (yamls if len(yamls) == 1 else [])), None)


def shards_of(index: Path) -> list[str]:
    """Return the names of the files, in its own folder, that an index lists.

    Raises: ImportFailed.
    """
    found = read_config(index).get("weight_map")
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found.values()):
        raise ImportFailed(f"{index}: has no weight_map from tensors to files")
    shards = sorted(set(found.values()))
    for name in shards:
        if PurePosixPath(name).name != name or "\\" in name:
            raise ImportFailed(f"{index}: names a file outside of its folder, {name[:100]!r}")
    if not 1 <= len(shards) <= _MAX_SHARDS:
        raise ImportFailed(f"{index}: lists {len(shards)} files; 1 to {_MAX_SHARDS} are read")
    return shards


def parts_of(index: Mapping[str, Any]) -> list[str]:
    """Return the parts of a pipeline of diffusers that importers may want, as its index lists them."""
    takes_prompts = UVIT in str(index.get("transformer"))
    return [name for name in PARTS + TEXT_PARTS * takes_prompts if index.get(name)]


def read_config(path: Path) -> dict[str, Any]:
    """Return a configuration from JSON or YAML.

    Raises: ImportFailed.
    """
    try:
        if (num_bytes := path.stat().st_size) > _MAX_CONFIG_BYTES:
            raise ImportFailed(f"{path}: is too large for a configuration, {num_bytes} bytes")
        text = path.read_text("utf-8-sig")
        read = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ImportFailed(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        if isinstance(error, ImportFailed):
            raise
        words = " ".join(str(error).split())
        raise ImportFailed(f"{path}: is not a valid configuration: {words[:200]}") from error
    if not isinstance(read, dict):
        raise ImportFailed(f"{path}: must hold fields by name, got {type(read).__name__}")
    return read


class _Reader:
    """Reads the files of one source."""

    def __init__(self, scratch: Path, config: Path | None, weights: str | None) -> None:
        self._scratch = scratch
        self._config = config
        self._weights = weights

    def folder(self, path: Path) -> Source:
        """Return what a folder holds, with its parts where it is a pipeline of diffusers or a pair."""
        names = [each.name for each in path.iterdir() if each.is_file()]
        if MODEL_INDEX in names:
            return self._pipeline(path)
        if pair := choose_pair(names):
            return self.pair(path, pair)
        if (chosen := choose_weights(names)) is not None:
            return replace(self.file(path / chosen), path=path)
        if words := [path / name for name in WORDS_FILES if name in names]:
            return Source(path, {}, files=tuple(words))
        if (config := self._config_of(path, names)) and PurePosixPath(config).name in CONFIGS[1:]:
            return Source(path, {}, read_config(path / config), files=(path / config,))
        wanted = ", ".join((".safetensors", *PICKLE_SUFFIXES))
        raise ImportFailed(f"{path}: holds no weights: there is no {MODEL_INDEX} and no file of {wanted}")

    def pair(self, folder: Path, names: Mapping[str, str]) -> Source:
        """Return both halves of an autoencoder, each a part."""
        halves = {half: self.file(folder / name) for half, name in names.items()}
        notes = tuple(f"{half}: {note}" for half, opened in halves.items() for note in opened.notes)
        files = tuple(file for opened in halves.values() for file in opened.files)
        return Source(folder, {}, parts=halves, notes=notes, files=files)

    def file(self, path: Path) -> Source:
        """Return what a file of weights, or an index of several, holds."""
        names = [each.name for each in path.parent.iterdir() if each.is_file()]
        config = self._config_of(path.parent, names, path.name)
        read = {} if config is None else read_config(path.parent / config)
        beside = () if config is None else (path.parent / config,)
        if not path.name.endswith(_INDEX):
            return replace(self._tensors(path), config=read, files=(path, *beside))
        tensors: dict[str, Tensor] = {}
        notes: tuple[str, ...] = ()
        for name in shards_of(path):
            if not (shard := path.parent / name).exists():
                raise ImportFailed(f"{path}: lists {name}, which isn't there; get it, too")
            opened = self._tensors(shard)
            if twice := tensors.keys() & opened.tensors.keys():
                raise ImportFailed(f"{shard}: {min(twice)[:100]} is in an earlier file, too")
            tensors.update(opened.tensors)
            notes = notes or opened.notes
        listed = read_config(path)["weight_map"]
        if lost := listed.keys() - tensors.keys():
            raise ImportFailed(
                f"{path}: lists {len(lost)} tensors that no file has, such as {min(lost)[:100]}"
            )
        files = (path, *(path.parent / name for name in shards_of(path)), *beside)
        return Source(path, tensors, read, files=files, notes=notes)

    def _pipeline(self, path: Path) -> Source:
        index = read_config(path / MODEL_INDEX)
        parts = {name: self.folder(path / name) for name in parts_of(index) if (path / name).is_dir()}
        if not parts:
            raise ImportFailed(f"{path}: has none of the parts that can be imported: {', '.join(PARTS)}")
        notes = tuple(f"{name}: {note}" for name, part in parts.items() for note in part.notes)
        files = (path / MODEL_INDEX, *(file for part in parts.values() for file in part.files))
        return Source(path, {}, index, parts=parts, files=files, notes=notes)

    def _tensors(self, path: Path) -> Source:
        with path.open("rb") as file:
            start = file.read(_BRACE_AT + 1)
        # A length comes first in safetensors, and may begin as a pickle does; a brace stands behind it.
        is_safetensors = start[_BRACE_AT:] == b"{"
        if start.startswith(_PICKLE_STARTS) and not is_safetensors:
            read = read_pickle(path, self._scratch, self._weights)
            return Source(path, read.tensors, wrapper=read.wrapper, notes=read.notes)
        unwrapped = unwrap(load_tensors(path), self._weights)  # which tells what else it may be
        return Source(path, unwrapped.tensors, notes=unwrapped.notes)

    def _config_of(self, folder: Path, names: Sequence[str], weights: str | None = None) -> str | None:
        """Return the configuration's name, or the path that was given."""
        return str(self._config.absolute()) if self._config else choose_config(names, weights)


def _is_shard(name: str) -> bool:
    """Whether a file is one of several, "model-00001-of-00002.safetensors"."""
    stem, _, of = PurePosixPath(name).stem.rpartition("-of-")
    return of.isdigit() and stem.rpartition("-")[2].isdigit()
