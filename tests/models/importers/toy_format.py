"""A format of the house's own tiny networks, as if somebody else had published them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.autoencoders.vq import Tokenizer
from models.importers.base import Imported, Source
from models.importers.keys import shapes_of, take
from models.networks.dit import DiT
from models.options import FlowOptions
from tests.tiny import PRIOR, TOKENIZER

UNPROMPTED = replace(PRIOR, label_sizes=(3,), text_tokens=0, text_channels=0)
CLASSES = ("cat", "dog", "owl")


def recognises(source: Source) -> bool:
    return "toy" in source.config


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    role = source.config["toy"]
    side = source.config.get("grid", 4)
    tensors = take(source.tensors, lambda name: name.removeprefix("toy."), shapes_of(expected(role, side)))
    if role == "autoencoder":
        return Imported("autoencoder", "vq", TOKENIZER, tensors, notes=("a toy | of <ours>",))
    std = source.config.get("latent_std")
    shape = (source.config.get("channels", 4), 1, 1)
    return Imported(
        "prior",
        "flow",
        replace(UNPROMPTED, grid=(side, side)),
        tensors,
        defaults=FlowOptions(num_steps=int(settings.get("num_steps", 3))),
        labels={"class": CLASSES},
        latent_mean=None if std is None else torch.zeros(shape),
        latent_std=None if std is None else torch.full(shape, std),
    )


def expected(role, side):
    if role == "autoencoder":
        return Tokenizer(TOKENIZER).exported()
    return DiT(replace(UNPROMPTED, grid=(side, side))).state_dict()


def publish(folder: Path, role: str, **config) -> Path:
    """Write what ``read`` reads, with random weights."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"toy.{name}": tensor
        if name in ("latent_mean", "latent_std")
        else torch.randn(tensor.shape, generator=generator) / 5
        for name, tensor in expected(role, config.get("grid", 4)).items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"toy": role, **config}))
    return folder
