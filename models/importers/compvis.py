"""What CompVis' checkpoints and their heirs have in common: how they are wrapped, and what shapes tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from models.importers.base import ImportFailed, Source
from models.importers.keys import under, without
from models.networks.ldm_autoencoder import LdmConfig
from models.options import describe_invalid

_FIRST_STAGE = "first_stage_model."
_AVERAGES = "model_ema."
_LOSS = "loss."


@dataclass(frozen=True)
class FirstStage:
    """An autoencoder out of a checkpoint: its tensors, what its configuration says, and what was done.

    class_name: as the configuration names it, or empty. params: what its class was made with.
    """

    tensors: Mapping[str, Tensor]
    class_name: str
    params: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def ddconfig(self) -> Mapping[str, Any]:
        """What the two networks were made with."""
        return as_mapping(self.params.get("ddconfig"))


def first_stage(source: Source, *, takes_averages: bool = False) -> FirstStage:
    """Return the autoencoder of a checkpoint: alone, or inside one of a whole diffusion model.

    takes_averages: take the moving averages of its training, where there are any, as some authors evaluate.

    Raises: ImportFailed where averages are to be taken, but not all are there.
    """
    notes = []
    tensors: Mapping[str, Tensor] = source.tensors
    if inner := under(tensors, _FIRST_STAGE):
        tensors = inner
        notes.append("Taken out of a whole diffusion model, whose other parts were left out.")
    if any(name.startswith(_LOSS) for name in tensors):
        notes.append("The losses of its training (discriminator, perceptual network) were left out.")
    averages = under(tensors, _AVERAGES)
    tensors = without(tensors, _LOSS, _AVERAGES)
    if averages and takes_averages:
        tensors = _averaged(tensors, averages)
        notes.append("The moving averages of its training were taken (--set weights=model takes the last).")
    elif averages:
        notes.append("The moving averages of its training were left out (--set weights=ema takes them).")
    model = as_mapping(source.config.get("model"))
    params = as_mapping(model.get("params") or model.get("init_args"))
    if stage := as_mapping(params.get("first_stage_config")):
        model, params = stage, as_mapping(stage.get("params"))
    return FirstStage(tensors, class_name_of(model), params, tuple(notes))


def class_name_of(model: Mapping[str, Any]) -> str:
    """Return the class that a part of a configuration names, or an empty string."""
    return str(model.get("target") or model.get("class_path") or "")


def infer_config(tensors: Mapping[str, Tensor], *, has_tanh: bool = False) -> LdmConfig:
    """Return the shape of the networks whose ``tensors`` have CompVis' names.

    Raises: ImportFailed naming a tensor that is missing, or an unusable shape.
    """
    latent_channels = size_of(tensors, "decoder.conv_in.weight", 1)
    levels = range(count(tensors, "encoder.down.{}.block.0.conv1.weight"))
    widths = tuple(size_of(tensors, f"encoder.down.{level}.block.0.conv1.weight", 0) for level in levels)
    stem = size_of(tensors, "encoder.conv_in.weight", 0)
    return made(
        LdmConfig,
        image_channels=size_of(tensors, "encoder.conv_in.weight", 1),
        latent_channels=latent_channels,
        stem_channels=None if widths[:1] == (stem,) else stem,
        level_channels=widths,
        num_blocks=count(tensors, "encoder.down.0.block.{}.conv1.weight"),
        attention_levels=tuple(
            level for level in levels if f"encoder.down.{level}.attn.0.q.weight" in tensors
        ),
        has_middle_attention="encoder.mid.attn_1.q.weight" in tensors,
        has_moments=size_of(tensors, "encoder.conv_out.weight", 0) == 2 * latent_channels,
        has_tanh=has_tanh,
    )


def check_ddconfig(config: LdmConfig, ddconfig: Mapping[str, Any]) -> None:
    """Compare what a configuration says of the networks with what the tensors are.

    Raises: ImportFailed naming the first difference.
    """
    stem = config.stem_channels or config.level_channels[0]
    found: dict[str, Any] = {
        "in_channels": config.image_channels,
        "z_channels": config.latent_channels,
        "ch": stem,
        "ch_mult": [channels // stem for channels in config.level_channels],
        "num_res_blocks": config.num_blocks,
        "double_z": config.has_moments,
    }
    check_said({name: ddconfig[name] for name in found if name in ddconfig}, found, "ddconfig.")
    resolution, attended = ddconfig.get("resolution"), ddconfig.get("attn_resolutions")
    if ddconfig.get("attn_type") != "none" and isinstance(resolution, int) and isinstance(attended, list):
        levels = enumerate(config.level_channels)
        said = [level for level, _ in levels if resolution >> level in attended]
        check_said({"levels": said}, {"levels": list(config.attention_levels)}, "ddconfig.attn_resolutions: ")


def check_said(said: Mapping[str, Any], found: Mapping[str, Any], where: str = "") -> None:
    """Compare what a configuration says with what the tensors are.

    Raises: ImportFailed naming the first difference.
    """
    for name, value in said.items():
        expected = found[name]
        given = list(value) if isinstance(value, list | tuple) else value
        if given != expected:
            raise ImportFailed(
                f"the configuration says {where}{name} {str(given)[:80]}, but the tensors are those of"
                f" {expected}: they belong to different models"
            )


def made(config_class: Any, **values: Any) -> Any:
    """Return a configuration.

    Raises: ImportFailed saying which field can't be.
    """
    try:
        return config_class(**values)
    except ValidationError as error:
        raise ImportFailed(
            f"this shape of a {config_class.__name__} is not known: {describe_invalid(error)}"
        ) from error


def size_of(tensors: Mapping[str, Tensor], name: str, axis: int) -> int:
    """Return the size of a tensor's axis.

    Raises: ImportFailed where there is no such tensor or axis.
    """
    if name not in tensors:
        raise ImportFailed(f"the tensor {name} is missing")
    shape = tensors[name].shape
    if axis >= len(shape):
        raise ImportFailed(f"the tensor {name} has the shape {tuple(shape)}, which has too few axes")
    return shape[axis]


def count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many tensors there are whose names are ``pattern`` with 0, 1, 2 and so on."""
    number = 0
    while pattern.format(number) in tensors:
        number += 1
    return number


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a part of a configuration; an empty one where it is not there or something else."""
    return value if isinstance(value, Mapping) else {}


def _averaged(tensors: Mapping[str, Tensor], averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` with their averages, whose names have lost their dots."""
    found = {name: averages.get(name.replace(".", "")) for name in tensors}
    missing = [name for name, tensor in found.items() if tensor is None]
    if missing:
        raise ImportFailed(
            f"{len(missing)} of {len(found)} tensors have no moving average, the first of them"
            f" {missing[0]}: expected all or none under {_AVERAGES}"
        )
    return {name: tensor for name, tensor in found.items() if tensor is not None}
