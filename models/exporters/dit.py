"""Priors as diffusers' ``DiTTransformer2DModel``, with their scheduler: the folders of a ``DiTPipeline``."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.exporters.base import ExportFailed
from models.importers.diffusers_dit import (
    BETAS,
    CLASSES,
    EMBEDDINGS,
    PREDICTS,
    SAMPLERS,
    transformer_name,
)
from models.networks.class_dit import ClassDiTConfig
from models.options import FlowOptions
from models.pipeline import Pipeline
from models.priors.class_prior import ClassPrior
from models.priors.schedules import DiffusionSchedule

TRANSFORMER, SCHEDULER = "transformer", "scheduler"


def write_dit(pipeline: Pipeline, folder: Path) -> None:
    """Write a prior so that diffusers computes the same, from the network's outputs to whole runs.

    Raises: ExportFailed, before anything is written.
    """
    prior, defaults = pipeline.prior, pipeline.spec.defaults
    assert isinstance(prior, ClassPrior)
    assert isinstance(defaults, FlowOptions)
    network = prior.config.network
    _check_network(network, prior.config.guided_channels)
    scheduler = _scheduler(prior.config.schedule, defaults.sampler)
    tensors = _tensors(prior.network.state_dict(), network)
    (folder / TRANSFORMER).mkdir()
    save_file(
        tensors, folder / TRANSFORMER / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"}
    )
    _write(folder / TRANSFORMER / "config.json", _config(network))
    (folder / SCHEDULER).mkdir()
    _write(folder / SCHEDULER / "scheduler_config.json", scheduler)


def _check_network(network: ClassDiTConfig, guided_channels: int) -> None:
    """Raises: ExportFailed saying what diffusers' network can't be, or its pipeline doesn't do."""
    if network.norm != "layer" or network.has_qk_norm or network.has_rope or network.is_gated:
        raise ExportFailed(f"{CLASSES[0]} has no layers of LightningDiT")
    if not network.has_shift or network.mlp_size != 4 * network.hidden_size:
        raise ExportFailed(
            f"{CLASSES[0]} shifts after its norms, and its inner layers are four times as wide"
        )
    if network.frequency_shift != 1:
        raise ExportFailed(
            f"{CLASSES[0]} divides the exponents of its time embedding by 127, where this network was trained"
            " with 128: it would see other times, and its pictures would differ"
        )
    if guided_channels != network.latent_channels:
        raise ExportFailed(
            f"DiTPipeline guides all {network.latent_channels} channels, this pipeline {guided_channels}"
        )


def _scheduler(schedule: object, sampler: str) -> dict[str, object]:
    """Return what ``scheduler_config.json`` says. Raises: ExportFailed."""
    if not isinstance(schedule, DiffusionSchedule):
        raise ExportFailed("DiTPipeline samples diffusions; this prior is a flow")
    if schedule.spacing == "respaced":
        raise ExportFailed("diffusers has no scheduler that spaces timesteps as DiT's authors do")
    classes = {ours: theirs for theirs, ours in SAMPLERS.items()}
    if sampler not in classes:
        raise ExportFailed(f"the default sampler must be one of {', '.join(classes)}, got {sampler}")
    said: dict[str, object] = {
        "_class_name": classes[sampler],
        "num_train_timesteps": schedule.num_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": _their_name(BETAS, schedule.betas),
        "prediction_type": _their_name(PREDICTS, schedule.predicts),
        "timestep_spacing": schedule.spacing,
        "steps_offset": schedule.steps_offset,
    }
    match sampler:
        case "ddim":
            said |= {"clip_sample": False, "set_alpha_to_one": not schedule.ends_at_first}
        case "ddpm" if schedule.variance == "learned_range":
            raise ExportFailed("DiTPipeline leaves a learned variance out, which the sampler ddpm needs here")
        case "ddpm":
            said |= {"clip_sample": False, "variance_type": schedule.variance}
    return said


def _config(network: ClassDiTConfig) -> dict[str, object]:
    return {
        "_class_name": CLASSES[0],
        "num_attention_heads": network.num_heads,
        "attention_head_dim": network.head_size,
        "in_channels": network.latent_channels,
        "out_channels": network.out_channels,
        "num_layers": network.depth,
        "sample_size": network.grid[0],
        "patch_size": network.patch_size,
        "num_embeds_ada_norm": network.num_labels,
        "norm_eps": network.second_norm_eps,
    }


def _tensors(ours: dict[str, Tensor], network: ClassDiTConfig) -> dict[str, Tensor]:
    """Return tensors by diffusers' names, in its layouts; every block with its copy of the embeddings."""
    made: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        theirs, tensor = transformer_name(name), tensor.detach().cpu()
        if name == "embed_patches.weight":
            patch = network.patch_size
            tensor = tensor.unflatten(1, (network.latent_channels, patch, patch))
        elif name.startswith("to_output."):
            tensor = tensor.unflatten(0, (network.out_channels, -1)).transpose(0, 1).flatten(0, 1)
        if ".attn1.to_qkv." in theirs:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                made[theirs.replace("to_qkv", f"to_{letter}")] = part.clone()
        elif name.rpartition(".")[0] in EMBEDDINGS:
            for number in range(network.depth):
                made[re.sub(r"\.0\.", f".{number}.", theirs, count=1)] = tensor.clone()
        else:
            made[theirs] = tensor.clone(memory_format=torch.contiguous_format)
    return made


def _their_name(names: dict[str, str], ours: str) -> str:
    return next(theirs for theirs, name in names.items() if name == ours)


def _write(path: Path, said: dict[str, object]) -> None:
    path.write_text(json.dumps(said, indent=2) + "\n", "utf-8")
