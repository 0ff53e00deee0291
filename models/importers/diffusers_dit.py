"""``DiTTransformer2DModel`` of diffusers: its folder, or a pipeline with that and a scheduler."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.importers.base import Imported, ImportFailed, Source
from models.importers.compvis import made
from models.importers.dit_names import LATENT_SCALE, imported, made_options
from models.importers.keys import shapes_of, take
from models.networks.class_dit import ClassDiT, ClassDiTConfig
from models.options import DiffusionOptions
from models.priors.schedules import DiffusionSchedule

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")  # the second is its former name
SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
_KNOWN_NETWORK = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "upcast_attention": False,
}
_KNOWN_SCHEDULER = {  # what would be computed in another way
    "trained_betas": None,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "use_karras_sigmas": False,
    "use_lu_lambdas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_flow_sigmas": False,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
}
_NAMES = {
    "embed_patches": "pos_embed.proj",
    "final_modulate": "proj_out_1",
    "to_output": "proj_out_2",
}
_FIRST = "transformer_blocks.0.norm1.emb."  # every block has a copy of the embeddings
EMBEDDINGS = {
    "embed_time.0": "timestep_embedder.linear_1",
    "embed_time.2": "timestep_embedder.linear_2",
    "embed_labels": "class_embedder.embedding_table",
}
BLOCK_NAMES = {
    "modulate": "norm1.linear",
    "attention.out": "attn1.to_out.0",
    "attention.qkv": "attn1.to_qkv",  # of three
    "feed_forward.widen": "ff.net.0.proj",
    "feed_forward.narrow": "ff.net.2",
}


def recognises(source: Source) -> bool:
    """Whether the configuration, of the folder or of its part, names the class."""
    found = _find(source)
    return found is not None and found.config.get("norm_type", "ada_norm_zero") == "ada_norm_zero"


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the prior, with the scheduler of its pipeline, or DDIM's where it comes without one.

    settings: ``guided_channels``, where not all of them, ``latent_scale``.

    Raises: ImportFailed.
    """
    found = _find(source)
    assert found is not None, "a source that is recognised"
    network = read_network(found.config)
    scheduler = source.parts.get("scheduler")
    schedule, sampler = read_scheduler({} if scheduler is None else scheduler.config, network)
    with torch.device("meta"):
        expected = shapes_of(ClassDiT(network).state_dict())
    table = {transformer_name(name): name for name in expected}
    tensors = take(_laid_out(found.tensors, network), table, expected)
    notes = () if scheduler else ("There was no scheduler: DDIM with linear betas is taken, as DiT has it.",)
    made_of = imported(
        "dit",
        tensors,
        network,
        schedule,
        made_options(DiffusionOptions, num_steps=50, sampler=sampler, guidance_scale=4.0),
        settings,
        None if "vae" in source.parts else 1 / LATENT_SCALE,
        network.latent_channels,
        notes,
    )
    return replace(made_of, parts=("transformer",))


def read_network(said: Mapping[str, Any]) -> ClassDiTConfig:
    """Return the shape of a network from ``config.json``. Raises: ImportFailed."""
    for name, known in _KNOWN_NETWORK.items():
        if said.get(name, known) != known:
            raise ImportFailed(f"{name} must be {known!r}, got {str(said[name])[:40]!r}")
    heads, size = said.get("num_attention_heads", 16), said.get("attention_head_dim", 72)
    channels, side, patch = said.get("in_channels", 4), said.get("sample_size", 32), said.get("patch_size", 2)
    if not all(isinstance(each, int) for each in (heads, size, channels, side)):
        raise ImportFailed(
            "num_attention_heads, attention_head_dim, in_channels and sample_size must be whole numbers, got"
            f" {heads}, {size}, {channels} and {side}"
        )
    config: ClassDiTConfig = made(
        ClassDiTConfig,
        latent_channels=channels,
        grid=(side, side),
        patch_size=patch,
        hidden_size=heads * size,
        depth=said.get("num_layers", 28),
        num_heads=heads,
        mlp_size=4 * heads * size,
        out_channels=said.get("out_channels") or channels,
        num_labels=said.get("num_embeds_ada_norm", 1000),
        frequency_shift=1,
        second_norm_eps=said.get("norm_eps", 1e-5),
    )
    return config


def read_scheduler(said: Mapping[str, Any], network: ClassDiTConfig) -> tuple[DiffusionSchedule, str]:
    """Return the schedule and the sampler that ``scheduler_config.json`` tells. Raises: ImportFailed."""
    name = said.get("_class_name", "DDIMScheduler")
    if name not in SAMPLERS:
        raise ImportFailed(f"the scheduler must be one of {', '.join(SAMPLERS)}, got {str(name)[:60]}")
    for field, known in _KNOWN_SCHEDULER.items():
        if said.get(field, known) != known:
            raise ImportFailed(f"the scheduler's {field} must be {known!r}, got {str(said[field])[:40]!r}")
    if said.get("clip_sample", name != "DPMSolverMultistepScheduler" and bool(said)):
        raise ImportFailed(
            "the scheduler's clip_sample must be false: latents aren't clipped here. Set it in"
            " scheduler/scheduler_config.json if the prior was trained on latents"
        )
    variance = said.get("variance_type") or "fixed_small"
    if name != "DDPMScheduler":  # which alone has noise to add; asked for, it is the authors'
        variance = "learned_range" if network.learns_variance else "fixed_small"
    schedule: DiffusionSchedule = made(
        DiffusionSchedule,
        predicts=_known(PREDICTS, said.get("prediction_type", "epsilon")),
        num_timesteps=said.get("num_train_timesteps", 1000),
        betas=_known(BETAS, said.get("beta_schedule", "linear")),
        beta_start=said.get("beta_start", 0.0001),
        beta_end=said.get("beta_end", 0.02),
        spacing=said.get("timestep_spacing", "linspace" if "DPM" in name else "leading"),
        steps_offset=said.get("steps_offset", 0),
        ends_at_first=not said.get("set_alpha_to_one", True),
        variance=variance,
    )
    return schedule, SAMPLERS[name]


def transformer_name(name: str) -> str:
    """Return the name that a ``DiTTransformer2DModel`` has for ours, but for queries, keys and values."""
    layer, _, kind = name.rpartition(".")
    if layer in EMBEDDINGS:
        return f"{_FIRST}{EMBEDDINGS[layer]}.{kind}"
    if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", layer):
        return f"transformer_blocks.{found[1]}.{BLOCK_NAMES[found[2]]}.{kind}"
    return f"{_NAMES[layer]}.{kind}"


def _laid_out(tensors: Mapping[str, Tensor], network: ClassDiTConfig) -> dict[str, Tensor]:
    """Return tensors as ours are: embeddings once, queries, keys and values together, patches as a matrix.

    Raises: ImportFailed where the blocks' embeddings differ.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if found := re.fullmatch(r"transformer_blocks\.\d+\.norm1\.emb\.(.+)", name):
            first = tensors.get(_FIRST + found[1])
            if first is not None and not torch.equal(first, tensor):
                raise ImportFailed(f"{name} differs from the first block's, which should be the same")
            kept[_FIRST + found[1]] = tensor
        elif name == "pos_embed.proj.weight" and tensor.dim() == 4:
            kept[name] = tensor.flatten(1)
        elif name.startswith("proj_out_2.") and len(tensor) == network.out_channels * network.patch_size**2:
            kept[name] = tensor.unflatten(0, (-1, network.out_channels)).transpose(0, 1).flatten(0, 1)
        elif name != "pos_embed.pos_embed":
            kept[name] = tensor
    for number in range(network.depth):
        for kind in ("weight", "bias"):
            names = [f"transformer_blocks.{number}.attn1.to_{each}.{kind}" for each in "qkv"]
            if all(each in kept for each in names):
                kept[f"transformer_blocks.{number}.attn1.to_qkv.{kind}"] = torch.cat(
                    [kept.pop(each) for each in names]
                )
    return kept


def _known(names: Mapping[str, str], name: object) -> str:
    """Return our name of a word of theirs; of one that isn't known, it itself, which is refused later."""
    return names.get(str(name), str(name))


def _find(source: Source) -> Source | None:
    """Return the folder of the class, which may be a part of a pipeline."""
    for found in (source, source.parts.get("transformer")):
        if found is not None and found.config.get("_class_name") in CLASSES:
            return found
    return None
