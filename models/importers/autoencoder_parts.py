"""What the importers of autoencoders share: settings, the scale of latents, and the last steps."""

from collections.abc import Callable, Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.autoencoders.continuous import Continuous, ContinuousConfig
from models.autoencoders.vqgan import Vqgan, VqganConfig
from models.importers.base import Imported, ImportFailed
from models.importers.keys import shapes_of, take
from models.importers.ldm_names import is_attention_weight

SIZE_SETTING = "image_size_px"
_LATENT_FIGURES = ("latent_mean", "latent_std")
_MAX_FACTOR = 1e6


def check_settings(settings: Mapping[str, str], known: Collection[str] = (SIZE_SETTING,)) -> None:
    """Refuse settings that this format doesn't have.

    Raises: ImportFailed naming those it has.
    """
    for name in settings:
        if name not in known:
            raise ImportFailed(f"there is no setting {name!r} here; known are {', '.join(known)}")


def read_image_size_px(settings: Mapping[str, str], said: object) -> tuple[int, tuple[str, ...]]:
    """Return the side of the pictures that an autoencoder is for, and notes of where it is from.

    said: what the checkpoint's configuration says, if it does.

    Raises: ImportFailed.
    """
    if SIZE_SETTING in settings:
        try:
            return int(settings[SIZE_SETTING]), ()
        except ValueError as error:
            raise ImportFailed(
                f"{SIZE_SETTING} must be a whole number, got {settings[SIZE_SETTING][:40]!r}"
            ) from error
    if isinstance(said, int):
        return said, ()
    return 256, (f"Its pictures are taken to be 256 px; import with --set {SIZE_SETTING}=… for others.",)


def finish_tokenizer(
    config: VqganConfig,
    tensors: Mapping[str, Tensor],
    their_name: Callable[[str], str],
    notes: tuple[str, ...],
) -> Imported:
    """Return a tokenizer in the house's form.

    their_name: our name → the one in ``tensors``.

    Raises: ImportFailed.
    """
    with torch.device("meta"):
        expected = shapes_of(Vqgan(config).state_dict())
    ours = _take_all(expected, tensors, their_name)
    if config.lookup == "cosine":
        ours["quantizer.codebook"] = F.normalize(ours["quantizer.codebook"], dim=-1)
    return _scaled("vqgan", config, ours, expected, notes)


def finish_continuous(
    config: ContinuousConfig,
    tensors: Mapping[str, Tensor],
    their_name: Callable[[str], str],
    notes: tuple[str, ...],
    *,
    scaling_factor: object = 1.0,
    shift_factor: object = None,
) -> Imported:
    """Return an autoencoder without a codebook in the house's form.

    their_name: our name → the one in ``tensors``. Latents are scaled to (z − shift_factor) · scaling_factor.

    Raises: ImportFailed.
    """
    scale, shift = _number("scaling_factor", scaling_factor), _number("shift_factor", shift_factor or 0.0)
    if scale <= 0:
        raise ImportFailed(f"scaling_factor must be above 0, got {scale}")
    with torch.device("meta"):
        expected = shapes_of(Continuous(config).state_dict())
    ours = _take_all(expected, tensors, their_name)
    return _scaled("continuous", config, ours, expected, notes, mean=shift, std=1 / scale)


def _take_all(
    expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], their_name: Callable[[str], str]
) -> dict[str, Tensor]:
    """Return every tensor but the latents' figures by our name, in float32 and of the shape it should have.

    Raises: ImportFailed.
    """
    wanted = {name: shape for name, shape in expected.items() if name not in _LATENT_FIGURES}
    table = {their_name(name): name for name in wanted}
    taken = take({name: _as_matrix(table.get(name, ""), t) for name, t in tensors.items()}, table, wanted)
    return {name: tensor.float() for name, tensor in taken.items()}


def _scaled(
    kind: str,
    config: VqganConfig | ContinuousConfig,
    tensors: dict[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    notes: tuple[str, ...],
    *,
    mean: float = 0.0,
    std: float = 1.0,
) -> Imported:
    """Return an autoencoder with the same mean and deviation for every channel of its latents."""
    figures = dict(zip(_LATENT_FIGURES, (mean, std), strict=True))
    scaled = {name: torch.full(expected[name], value) for name, value in figures.items()}
    return Imported("autoencoder", kind, config, {**tensors, **scaled}, notes=notes)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MAX_FACTOR:
        raise ImportFailed(f"{name} must be a number, got {str(value)[:40]!r}")
    return float(value)


def _as_matrix(name: str, tensor: Tensor) -> Tensor:
    """Return the weight of a 1×1 convolution as the matrix that our ``name`` is; others as they are."""
    is_matrix = is_attention_weight(name) or name == "quantizer.scores.weight"
    return tensor[:, :, 0, 0] if is_matrix and tensor.shape[2:] == (1, 1) else tensor
