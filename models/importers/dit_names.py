"""What checkpoints of DiT, SiT and LightningDiT have in common: names, layouts, and what shapes tell."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.importers.base import Imported, ImportFailed
from models.importers.class_labels import class_names
from models.importers.compvis import made, size_of
from models.importers.keys import shapes_of, take, without
from models.networks.class_dit import ClassDiT, ClassDiTConfig, pair_turns, sine_positions
from models.networks.layers import MAX_INPUTS
from models.options import ConfigError, Options
from models.priors.class_prior import ClassPriorConfig
from models.priors.schedules import Schedule

NUM_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1536: 24}  # by hidden size, of the published networks
LATENT_SCALE = 0.18215  # of Stable Diffusion's autoencoder, in whose latents DiT and SiT were trained
GUIDED_CHANNELS = 3  # as the authors' code has it
_POSITIONS = "pos_embed"
_TURNS = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")
_TOLERANCE = 1e-4  # of positions and turns that are made again, not loaded
_NAMES = {  # ours → the publisher's; ``blocks.N.`` before those of a block
    "embed_patches": "x_embedder.proj",
    "embed_time.0": "t_embedder.mlp.0",
    "embed_time.2": "t_embedder.mlp.2",
    "embed_labels": "y_embedder.embedding_table",
    "final_modulate": "final_layer.adaLN_modulation.1",
    "final_norm.norm": "final_layer.norm_final",
    "to_output": "final_layer.linear",
}
_BLOCK_NAMES = {
    "modulate": "adaLN_modulation.1",
    "first_norm.norm": "norm1",
    "second_norm.norm": "norm2",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "attention.query_norm": "attn.q_norm",
    "attention.key_norm": "attn.k_norm",
}


def is_dit(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of DiT's authors, or of code that was made from theirs."""
    return "x_embedder.proj.weight" in tensors and "blocks.0.adaLN_modulation.1.weight" in tensors


def has_layers_of_its_heirs(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are layers that DiT and SiT don't have, and LightningDiT may."""
    names = ("blocks.0.mlp.w12.weight", "blocks.0.norm1.weight", "blocks.0.attn.q_norm.weight", *_TURNS)
    return any(name in tensors for name in names)


def publisher_name(name: str, *, is_gated: bool = False) -> str:
    """Return the name that a checkpoint has for ours, which ends with weight or bias."""
    layer, _, kind = name.rpartition(".")
    found = re.fullmatch(r"(blocks\.\d+\.)(.+)", layer)
    if found is None:
        return f"{_NAMES[layer]}.{kind}"
    widen, narrow = ("mlp.w12", "mlp.w3") if is_gated else ("mlp.fc1", "mlp.fc2")
    names = _BLOCK_NAMES | {"feed_forward.widen": widen, "feed_forward.narrow": narrow}
    return f"{found[1]}{names[found[2]]}.{kind}"


def read_network(tensors: Mapping[str, Tensor], settings: Mapping[str, str]) -> ClassDiTConfig:
    """Return the shape of a network, from its tensors; of its heads, from the table or ``num_heads``.

    Raises: ImportFailed.
    """
    hidden, channels, patch = (size_of(tensors, "x_embedder.proj.weight", axis) for axis in (0, 1, 2))
    num_tokens = size_of(tensors, _POSITIONS, 1)
    side = int(num_tokens**0.5)
    if side * side != num_tokens:
        raise ImportFailed(f"{_POSITIONS} has {num_tokens} places, which is no square grid")
    numbers = {int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d{1,4})\.", name))}
    is_gated = "blocks.0.mlp.w12.weight" in tensors
    has_rope = _TURNS[0] in tensors
    head_size = size_of(tensors, _TURNS[0], 1) if has_rope else None
    num_heads = hidden // head_size if head_size else NUM_HEADS.get(hidden)
    if "num_heads" in settings:
        num_heads = whole_number(settings, "num_heads")
    if num_heads is None:
        raise ImportFailed(
            f"no published network has hidden_size {hidden}, and tensors don't tell the number of heads:"
            " say --set num_heads=…"
        )
    second = size_of(tensors, "blocks.0.mlp.w3.weight" if is_gated else "blocks.0.mlp.fc2.weight", 1)
    config: ClassDiTConfig = made(
        ClassDiTConfig,
        latent_channels=channels,
        grid=(side * patch, side * patch),
        patch_size=patch,
        hidden_size=hidden,
        depth=max(numbers) + 1,
        num_heads=num_heads,
        mlp_size=second,
        out_channels=size_of(tensors, "final_layer.linear.weight", 0) // patch**2,
        num_labels=size_of(tensors, "y_embedder.embedding_table.weight", 0) - 1,
        norm="rms" if "blocks.0.norm1.weight" in tensors else "layer",
        has_qk_norm="blocks.0.attn.q_norm.weight" in tensors,
        is_gated=is_gated,
        has_rope=has_rope,
        has_shift=size_of(tensors, "blocks.0.adaLN_modulation.1.weight", 0) != 4 * hidden,
    )
    return config


def finish(
    kind: str,
    tensors: Mapping[str, Tensor],
    network: ClassDiTConfig,
    schedule: Schedule,
    defaults: Options,
    settings: Mapping[str, str],
    latent_std: float | None,
    notes: tuple[str, ...],
) -> Imported:
    """Return a prior in the house's form, every tensor of the shape it should have.

    latent_std: what latents were divided by; ``latent_scale`` in settings is one over it.

    Raises: ImportFailed.
    """
    _check_made(
        tensors, _POSITIONS, sine_positions(network.grid[0] // network.patch_size, network.hidden_size)
    )
    if network.has_rope:
        side = network.grid[0] // network.patch_size
        for name, made_again in zip(_TURNS, pair_turns(side, network.head_size), strict=True):
            _check_made(tensors, name, made_again)
    with torch.device("meta"):
        expected = shapes_of(ClassDiT(network).state_dict())
    table = {publisher_name(name, is_gated=network.is_gated): name for name in expected}
    kept = without(tensors, _POSITIONS, *_TURNS)
    ours = take({name: laid_out(name, tensor, network) for name, tensor in kept.items()}, table, expected)
    return imported(kind, ours, network, schedule, defaults, settings, latent_std, GUIDED_CHANNELS, notes)


def imported(
    kind: str,
    tensors: Mapping[str, Tensor],
    network: ClassDiTConfig,
    schedule: Schedule,
    defaults: Options,
    settings: Mapping[str, str],
    latent_std: float | None,
    guided_channels: int,
    notes: tuple[str, ...],
) -> Imported:
    """Return a prior whose tensors have the house's names. Raises: ImportFailed."""
    if "guided_channels" in settings:
        guided_channels = whole_number(settings, "guided_channels")
    if "latent_scale" in settings:
        latent_std = 1 / number(settings, "latent_scale")
    channels = network.latent_channels
    config = made(
        ClassPriorConfig,
        network=network,
        schedule=schedule,
        guided_channels=min(guided_channels, channels),
    )
    mean, std = None, None
    if latent_std is not None:
        mean, std = torch.zeros(channels, 1, 1), torch.full((channels, 1, 1), latent_std)
    if guided_channels < channels:
        notes += (
            f"Guidance acts on the first {guided_channels} of {channels} channels, as in the authors' code;"
            " import with --set guided_channels=… for others.",
        )
    if network.hidden_size > MAX_INPUTS:
        notes += (
            f"With {network.hidden_size} channels, each picture of a batch has matrix products of its own on"
            " a CPU in bfloat16, so that its bytes don't depend on the others: on a busy machine eight took"
            " about 1.5 times as long at 768 channels, 1.8 times at 1,152. A lone picture costs no more.",
        )
    labels = {"class": class_names(network.num_labels)}
    return Imported("prior", kind, config, tensors, defaults, labels, mean, std, notes=notes)


def laid_out(name: str, tensor: Tensor, network: ClassDiTConfig) -> Tensor:
    """Return a tensor as ours is: patches as a matrix, the output's rows by channel instead of by place."""
    if name == "x_embedder.proj.weight" and tensor.dim() == 4:
        return tensor.flatten(1)
    places = network.patch_size**2
    if name.startswith("final_layer.linear.") and len(tensor) == places * network.out_channels:
        return tensor.unflatten(0, (places, network.out_channels)).transpose(0, 1).flatten(0, 1)
    return tensor


def whole_number(settings: Mapping[str, str], name: str) -> int:
    """Return a setting above 0. Raises: ImportFailed."""
    text = settings[name]
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise ImportFailed(f"{name} must be a whole number from 1, got {text[:40]!r}")
    return int(text)


def number(settings: Mapping[str, str], name: str) -> float:
    """Return a setting above 0. Raises: ImportFailed."""
    text = settings[name]
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ImportFailed(f"{name} must be a number above 0, got {text[:40]!r}")
    return value


def made_options(family: type[Options], **values: Any) -> Any:
    """Return options. Raises: ImportFailed saying which can't be."""
    try:
        return family(**values)
    except (ConfigError, ValueError) as error:
        raise ImportFailed(
            f"the way of sampling that the configuration tells is not known: {error}"
        ) from error


def _check_made(tensors: Mapping[str, Tensor], name: str, expected: Tensor) -> None:
    """Check that a fixed tensor is the one that is made again in its place. Raises: ImportFailed."""
    found = tensors[name].float().reshape(-1)
    if found.numel() != expected.numel() or not torch.allclose(found, expected.reshape(-1), atol=_TOLERANCE):
        raise ImportFailed(
            f"{name} {tuple(tensors[name].shape)} is not the fixed embedding of its authors' code; a network"
            " that learned its own is not known here"
        )
