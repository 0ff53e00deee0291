"""DiT as its authors publish it: ``DiT-XL-2-256x256.pt`` and others of that code."""

import re
from collections.abc import Mapping

from models.importers.base import Imported, Source
from models.importers.dit_names import LATENT_SCALE, finish, has_layers_of_its_heirs, is_dit, read_network
from models.options import DiffusionOptions
from models.priors.schedules import DiffusionSchedule

_SIT = re.compile(r"(?<![a-z])sit(?![a-z])", re.IGNORECASE)


def recognises(source: Source) -> bool:
    """Whether the names are DiT's, and neither the file's name nor the outputs tell that it is a SiT."""
    tensors = source.tensors
    if not is_dit(tensors) or has_layers_of_its_heirs(tensors) or _SIT.search(source.path.name):
        return False
    patches, outputs = tensors["x_embedder.proj.weight"], tensors.get("final_layer.linear.weight")
    return outputs is None or len(outputs) != patches[0].numel()  # without a variance, it is a SiT


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the prior: noise is predicted at one of 1,000 timesteps with linear betas.

    settings: ``num_heads`` where the network is of no published size, ``guided_channels``, ``latent_scale``.

    Raises: ImportFailed.
    """
    network = read_network(source.tensors, settings)
    variance = "learned_range" if network.learns_variance else "fixed_large"
    return finish(
        "dit",
        source.tensors,
        network,
        DiffusionSchedule(variance=variance),  # type: ignore[arg-type]
        DiffusionOptions(num_steps=250, sampler="ddpm", guidance_scale=4.0),
        settings,
        1 / LATENT_SCALE,
        (
            "It samples as its authors do, in 250 ancestral steps at a guidance scale of 4; dpmpp_2m with 20"
            " steps is twelve times faster.",
            "DiT and SiT have the same tensors: this one is taken for a DiT. Import a SiT with --format sit.",
        ),
    )
