"""SiT as its authors publish it: ``SiT-XL-2-256.pt`` and others of that code."""

from collections.abc import Mapping

from models.importers.base import Imported, Source
from models.importers.dit_names import LATENT_SCALE, finish, has_layers_of_its_heirs, is_dit, read_network
from models.options import FlowOptions
from models.priors.schedules import FlowSchedule


def recognises(source: Source) -> bool:
    """Whether the names are DiT's, which are SiT's, too; what DiT's importer knows as its own goes there."""
    return is_dit(source.tensors) and not has_layers_of_its_heirs(source.tensors)


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the prior: the velocity of the straight path is predicted at times from 0, noise, to 1, data.

    settings: as DiT's.

    Raises: ImportFailed.
    """
    return finish(
        "sit",
        source.tensors,
        read_network(source.tensors, settings),
        FlowSchedule(),
        FlowOptions(num_steps=50, sampler="heun", guidance_scale=4.0),
        settings,
        1 / LATENT_SCALE,
        (
            "Its authors solve with an adaptive method (dopri5); here it takes 50 steps of Heun's.",
            "The linear path and the velocity are taken, which are those of the published weights.",
        ),
    )
