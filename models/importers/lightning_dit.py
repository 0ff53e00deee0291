"""LightningDiT as its authors publish it: ``lightningdit-xl-imagenet256-*.pt``, with its YAML beside it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from models.importers.base import Imported, ImportFailed, Source
from models.importers.compvis import as_mapping, made
from models.importers.dit_names import finish, has_layers_of_its_heirs, is_dit, made_options, read_network
from models.importers.sources import open_source
from models.options import FlowOptions
from models.priors.schedules import FlowSchedule

_STATS = "latents_stats.pt"
_PUBLISHED = {"num_sampling_steps": 250, "cfg_scale": 10.0, "cfg_interval_start": 0.11, "timestep_shift": 0.3}
_STANDING = {"path_type": "Linear", "prediction": "velocity"}  # of ``transport``
_SOLVERS = ("euler",)


def recognises(source: Source) -> bool:
    """Whether the names are DiT's, with layers that only LightningDiT has."""
    return is_dit(source.tensors) and has_layers_of_its_heirs(source.tensors)


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the prior: the velocity of the straight path at times from 0, noise, to 1, data.

    How it samples is read from the YAML file, and without one as that of its published XL. The latents' mean
    and deviation are read from ``latents_stats.pt`` beside the weights.

    settings: as DiT's, and ``latents_stats``: where that file lies.

    Raises: ImportFailed.
    """
    network = read_network(source.tensors, settings)
    sample, notes = as_mapping(source.config.get("sample")), list[str]()
    if not sample:
        sample = _PUBLISHED
        notes.append(
            "There was no configuration: it samples as the published XL does, guided by 10 from t = 0.11."
        )
    transport = as_mapping(source.config.get("transport"))
    for name, known in _STANDING.items():
        if transport.get(name, known) != known:
            raise ImportFailed(f"transport's {name} must be {known!r}, got {str(transport[name])[:40]!r}")
    if sample.get("sampling_method", "euler") not in _SOLVERS:
        notes.append(
            f"Its authors solve with {str(sample['sampling_method'])[:20]}; here it takes Euler's steps."
        )
    imported = finish(
        "sit",
        source.tensors,
        network,
        made(FlowSchedule, shift=sample.get("timestep_shift") or 1.0),
        made_options(
            FlowOptions,
            num_steps=_number(sample, "num_sampling_steps", 250) - 1,  # theirs counts the times
            sampler="euler",
            guidance_scale=_number(sample, "cfg_scale", 1.0),
            guidance_interval=(_number(sample, "cfg_interval_start", 0.0), 1.0),
        ),
        settings,
        None,
        tuple(notes),
    )
    if "latent_scale" in settings:
        return imported
    multiplier = _number(as_mapping(source.config.get("data")), "latent_multiplier", 1.0)
    mean, std = _read_stats(source.path, settings, network.latent_channels)
    return replace(imported, latent_mean=mean, latent_std=std / multiplier)


def _read_stats(path: Path, settings: Mapping[str, str], channels: int) -> tuple[Tensor, Tensor]:
    """Return the mean and deviation (d, 1, 1) that latents were scaled with. Raises: ImportFailed."""
    folder = path if path.is_dir() else path.parent
    file = Path(settings.get("latents_stats", str(folder / _STATS)))
    if not file.is_file():
        raise ImportFailed(
            f"{file} is not there, which has the mean and deviation of the latents: put it beside the"
            " weights, say --set latents_stats=FILE, or --set latent_scale=… where they were only multiplied"
        )
    tensors = open_source(file).tensors
    found = []
    for name in ("mean", "std"):
        if name not in tensors or tensors[name].numel() != channels:
            raise ImportFailed(
                f"{file} should have a {name} of {channels} channels; it has {', '.join(list(tensors)[:5])}"
            )
        found.append(tensors[name].float().reshape(channels, 1, 1))
    return found[0], found[1]


def _number(said: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return a number that a configuration says. Raises: ImportFailed."""
    value = said.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ImportFailed(f"{name} must be a number, got {str(value)[:40]!r}")
    return value
