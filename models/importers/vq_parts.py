"""What the importers of tokenizers share: settings, names beside the networks, and the last steps."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.autoencoders.vqgan import Vqgan, VqganConfig
from models.importers.base import Imported, ImportFailed
from models.importers.keys import shapes_of, take
from models.importers.ldm_names import is_attention_weight

SIZE_SETTING = "image_size_px"
_LATENT_FIGURES = ("latent_mean", "latent_std")


def read_image_size_px(settings: Mapping[str, str], said: object) -> tuple[int, tuple[str, ...]]:
    """Return the side of the pictures that a tokenizer is for, and notes of where it is from.

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


def finish(
    config: VqganConfig,
    tensors: Mapping[str, Tensor],
    their_name: Callable[[str], str],
    notes: tuple[str, ...],
) -> Imported:
    """Return a tokenizer in the house's form, every tensor float32 and of the shape it should have.

    their_name: our name → the one in ``tensors``.

    Raises: ImportFailed.
    """
    with torch.device("meta"):
        whole = shapes_of(Vqgan(config).state_dict())
    expected = {name: shape for name, shape in whole.items() if name not in _LATENT_FIGURES}
    table = {their_name(name): name for name in expected}
    taken = take({name: _as_matrix(table.get(name, ""), t) for name, t in tensors.items()}, table, expected)
    for name, tensor in taken.items():
        if not tensor.is_floating_point():
            raise ImportFailed(f"the tensor {their_name(name)} is {tensor.dtype}, expected floating point")
    ours = {name: tensor.float() for name, tensor in taken.items()}
    if config.lookup == "cosine":
        ours["quantizer.codebook"] = F.normalize(ours["quantizer.codebook"], dim=-1)
    ours["latent_mean"] = torch.zeros(config.code_channels, 1, 1)
    ours["latent_std"] = torch.ones(config.code_channels, 1, 1)
    return Imported("autoencoder", "vqgan", config, ours, notes=notes)


def _as_matrix(name: str, tensor: Tensor) -> Tensor:
    """Return the weight of a 1×1 convolution as the matrix that our ``name`` is; others as they are."""
    is_matrix = is_attention_weight(name) or name == "quantizer.scores.weight"
    return tensor[:, :, 0, 0] if is_matrix and tensor.shape[2:] == (1, 1) else tensor
