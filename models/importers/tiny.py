"""TAESD and its relatives: ``AutoencoderTiny`` of diffusers, and the two files as their author has them.

github.com/madebyollin/taesd: two files, ``…encoder….pth`` and ``…decoder….pth``, of a plain ``Sequential``.
"""

import re
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from models.autoencoders.tiny import TinyAutoencoder, TinyConfig
from models.importers.base import Imported, ImportFailed, Source
from models.importers.compvis import made, size_of
from models.importers.diffusers_kl import read_figures
from models.importers.keys import shapes_of, take
from models.importers.vq_parts import read_image_size_px

_CLASS = "AutoencoderTiny"
_BARE = re.compile(r"\d+\.(conv\.[024]\.|pool\.[013]\.|skip\.)?(weight|bias)")
_LAYERS = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)")
_FIXED = {  # what diffusers could have otherwise, and no published model has
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
}
_LATENT_FIGURES = ("latent_mean", "latent_std")


def recognises(source: Source) -> bool:
    """Whether the configuration names the class, or the tensors have the names of one file, or of both."""
    if source.config.get("_class_name") == _CLASS:
        return True
    has_both = "encoder.layers.1.conv.0.weight" in source.tensors
    pattern = _LAYERS if has_both else _BARE
    tensors = [name for half in _halves(source) for name in half.tensors] or list(source.tensors)
    return bool(tensors) and all(map(pattern.fullmatch, tensors))


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the autoencoder.

    settings: ``image_size_px``.

    Raises: ImportFailed.
    """
    said = source.config
    for name, known in _FIXED.items():
        if said.get(name, known) != known:
            raise ImportFailed(f"{name} must be {known!r}, got {str(said[name])[:40]!r}")
    is_bare = all(map(_BARE.fullmatch, source.tensors))
    tensors = _both_files(source) if is_bare else {_numbered(name): t for name, t in source.tensors.items()}
    size_px, notes = read_image_size_px(settings, None)
    config = _infer(tensors, size_px)
    with torch.device("meta"):
        whole = shapes_of(TinyAutoencoder(config).state_dict())
    expected = {name: shape for name, shape in whole.items() if name not in _LATENT_FIGURES}
    ours = {name: t.float() for name, t in take(tensors, {name: name for name in tensors}, expected).items()}
    mean, std = read_figures(said, config.latent_channels, default_scale=1.0)
    ours |= {"latent_mean": mean, "latent_std": std}
    return Imported("autoencoder", "tiny", config, ours, parts=tuple(source.parts), notes=notes)


def _infer(tensors: Mapping[str, Tensor], size_px: int) -> TinyConfig:
    """Return the configuration that the tensors' names and shapes tell.

    Raises: ImportFailed.
    """
    config: TinyConfig = made(
        TinyConfig,
        image_channels=size_of(tensors, "encoder.0.weight", 1),
        image_size_px=size_px,
        latent_channels=size_of(tensors, "decoder.1.weight", 1),
        hidden_channels=size_of(tensors, "encoder.0.weight", 0),
        encoder_blocks=_runs(tensors, "encoder"),
        decoder_blocks=_runs(tensors, "decoder"),
        has_pool=any(".pool." in name for name in tensors),
    )
    return config


def _runs(tensors: Mapping[str, Tensor], network: str) -> tuple[int, ...]:
    """Return how many blocks there are between two layers that are none."""
    names = [name.split(".") for name in tensors if name.startswith(f"{network}.")]
    numbers = {int(parts[1]) for parts in names}
    blocks = {int(parts[1]) for parts in names if parts[2] == "conv"}
    runs, plain = [], sorted(numbers - blocks)
    for first, last in pairwise(plain):
        runs.append(sum(first < number < last for number in blocks))
    return tuple(runs)


def _numbered(name: str) -> str:
    """Return the author's number of a layer for diffusers', whose decoder doesn't count the squashing."""
    found = _LAYERS.fullmatch(name)
    if found is None:
        return name
    network, number, rest = found.groups()
    return f"{network}.{int(number) + (network == 'decoder')}.{rest}"


def _halves(source: Source) -> tuple[Source, ...]:
    """Return the author's two files, encoder and decoder; none where there aren't both."""
    found = (source.parts.get("encoder"), source.parts.get("decoder"))
    return tuple(half for half in found if half is not None) if all(found) else ()


def _both_files(source: Source) -> dict[str, Tensor]:
    """Return the tensors of both files.

    Raises: ImportFailed where one is there alone.
    """
    halves = _halves(source)
    if not halves:
        raise ImportFailed(
            f"{source.path}: is one half of a tiny autoencoder; the other must lie beside it, under the same"
            " name with encoder for decoder, or the other way round"
        )
    return {
        f"{network}.{name}": tensor
        for network, half in zip(("encoder", "decoder"), halves, strict=True)
        for name, tensor in half.tensors.items()
    }
