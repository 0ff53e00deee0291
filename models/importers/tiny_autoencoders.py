"""TAESD and its siblings: as published, two files of a plain sequence of layers, or one of diffusers.

Ollin Boer Bohan, https://github.com/madebyollin/taesd. Every resolution has 64 channels and is known by its
place in the sequence, so its shape is read from the names. ``AutoencoderTiny`` of diffusers has the same
layers under "encoder.layers." and "decoder.layers.", without the decoder's first, which has no weights.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from models.autoencoders.continuous import ContinuousConfig
from models.importers.autoencoder_parts import check_settings, finish_continuous, read_image_size_px
from models.importers.base import Imported, ImportFailed, Source
from models.importers.compvis import made, size_of
from models.networks.tiny_autoencoder import TinyConfig

_CLASS = "AutoencoderTiny"
_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)")
_INNER = {"conv1": "conv.0", "conv2": "conv.2", "conv3": "conv.4"}


@dataclass(frozen=True)
class _Layers:
    """One network's layers with weights: its blocks and its convolutions, by their places in the sequence."""

    blocks: tuple[int, ...]
    convolutions: tuple[int, ...]

    def blocks_by_level(self) -> tuple[int, ...]:
        """Return how many blocks lie between one convolution and the next."""
        pairs = zip(self.convolutions, self.convolutions[1:], strict=False)
        return tuple(sum(start < block < end for block in self.blocks) for start, end in pairs)


def recognises(source: Source) -> bool:
    """Whether there are both networks' sequences of layers."""
    tensors = _tensors(source)
    return {"encoder.layers.0.weight", "encoder.layers.1.conv.0.weight", "decoder.layers.0.weight"} <= set(
        tensors
    )


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the autoencoder.

    settings: ``image_size_px``, as no file says it.

    Raises: ImportFailed.
    """
    check_settings(settings)
    tensors = _tensors(source)
    said = source.parts["vae"].config if "vae" in source.parts else source.config
    for name, known in (("act_fn", "relu"), ("upsample_fn", "nearest"), ("upsampling_scaling_factor", 2)):
        if said.get(name, known) != known:
            raise ImportFailed(f"{name} must be {known!r}, got {str(said[name])[:40]!r}")
    encoder, decoder = _layers(tensors, "encoder"), _layers(tensors, "decoder")
    network = made(
        TinyConfig,
        image_channels=size_of(tensors, "encoder.layers.0.weight", 1),
        latent_channels=size_of(tensors, "decoder.layers.0.weight", 1),
        hidden_channels=size_of(tensors, "encoder.layers.0.weight", 0),
        encoder_blocks=encoder.blocks_by_level(),
        decoder_blocks=decoder.blocks_by_level(),
        has_pools=any(".pool." in name for name in tensors),
    )
    size_px, notes = read_image_size_px(settings, None)
    config = made(ContinuousConfig, network=network, image_size_px=size_px)
    names = dict(_their_names(network))
    return finish_continuous(
        config,
        tensors,
        lambda name: _their_name(name, names),
        notes,
        scaling_factor=said.get("scaling_factor", 1.0),
        shift_factor=said.get("shift_factor"),
    )


def _tensors(source: Source) -> Mapping[str, Tensor]:
    """Return both networks' tensors under the names of diffusers."""
    if {"encoder", "decoder"} <= source.parts.keys():
        encoder, decoder = source.parts["encoder"].tensors, source.parts["decoder"].tensors
        # The published decoder begins with a layer that bounds its input, and has no weights.
        return {f"encoder.layers.{name}": tensor for name, tensor in encoder.items()} | {
            _moved(name): tensor for name, tensor in decoder.items()
        }
    return source.parts["vae"].tensors if "vae" in source.parts else source.tensors


def _moved(name: str) -> str:
    place, _, rest = name.partition(".")
    return f"decoder.layers.{int(place) - 1 if place.isdecimal() else place}.{rest}"


def _layers(tensors: Mapping[str, Tensor], network: str) -> _Layers:
    """Return the layers of one network.

    Raises: ImportFailed naming a tensor that is of none.
    """
    blocks: set[int] = set()
    convolutions: set[int] = set()
    for name in tensors:
        found = _LAYER.fullmatch(name)
        if found is None:
            raise ImportFailed(
                f"{name[:100]} is no tensor of {_CLASS}: it has encoder.layers and decoder.layers"
            )
        if found[1] == network:
            (convolutions if found[3] in ("weight", "bias") else blocks).add(int(found[2]))
    return _Layers(tuple(sorted(blocks)), tuple(sorted(convolutions)))


def _their_names(config: TinyConfig) -> Iterator[tuple[str, str]]:
    """Yield our name of a layer and that of the same one in the sequence."""
    yield "encoder.stem", "encoder.layers.0"
    place = 1
    for level, num_blocks in enumerate(config.encoder_blocks):
        if level:
            yield f"encoder.levels.{level}.resample", f"encoder.layers.{place}"
            place += 1
        for block in range(num_blocks):
            yield f"encoder.levels.{level}.blocks.{block}", f"encoder.layers.{place + block}"
        place += num_blocks
    yield "encoder.to_latents", f"encoder.layers.{place}"
    yield "decoder.from_latents", "decoder.layers.0"
    place, last = 2, len(config.decoder_blocks) - 1  # a ReLU lies between
    for level, num_blocks in enumerate(config.decoder_blocks):
        for block in range(num_blocks):
            yield f"decoder.levels.{level}.blocks.{block}", f"decoder.layers.{place + block}"
        place += num_blocks
        if level < last:
            yield f"decoder.levels.{level}.resample", f"decoder.layers.{place + 1}"
            place += 2  # the doubling, then the convolution
    yield "decoder.to_pixels", f"decoder.layers.{place}"


def _their_name(name: str, layers: Mapping[str, str]) -> str:
    """Return the published name of our ``name``."""
    ours = next(layer for layer in layers if name.startswith(f"{layer}."))
    rest = name[len(ours) + 1 :]
    first, dot, kind = rest.partition(".")
    return f"{layers[ours]}.{_INNER.get(first, first)}{dot}{kind}"
