"""Tensors as their authors' own code has them: names and shapes, and small results of that code.

``published/*.txt``: names and shapes of the full sizes; ``published/*.safetensors``: images, latents, codes
and decoded images of a small size, with the weights of ``weights``, computed once by the code that the
metadata names.
"""

import json
import math
from pathlib import Path

import torch
from safetensors import safe_open

FOLDER = Path(__file__).parent / "published"


def full_size(name):
    """Return tensors on the meta device as a published checkpoint has them."""
    _, *lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    shapes = dict(line.split(" ") for line in lines)
    return {
        name: torch.empty([int(n) for n in shape.split("x") if n], device="meta")
        for name, shape in shapes.items()
    }


def small(name):
    """Return the weights of a small model, and what its authors' code made with them."""
    with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as opened:
        shapes = json.loads(opened.metadata()["shapes"])
        return weights(shapes), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


def weights(shapes, seed=0):
    """Return weights by name that any machine draws alike."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in sorted(shapes):
        shape = shapes[name]
        value = torch.rand(shape, generator=generator) * 2 - 1
        if len(shape) > 1:
            value *= math.sqrt(3 / math.prod(shape[1:]))
        elif name.endswith("weight"):
            value = 1 + value / 5
        else:
            value /= 10
        made[name] = value
    return made
