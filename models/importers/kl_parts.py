"""What the importers of KL autoencoders share: the last steps."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from models.autoencoders.kl import KlAutoencoder, KlConfig
from models.importers.base import Imported
from models.importers.keys import shapes_of, take
from models.importers.ldm_names import is_attention_weight

_LATENT_FIGURES = ("latent_mean", "latent_std")


def finish(
    config: KlConfig,
    tensors: Mapping[str, Tensor],
    their_name: Callable[[str], str],
    latent_mean: Tensor,
    latent_std: Tensor,
    notes: tuple[str, ...],
) -> Imported:
    """Return a KL autoencoder in the house's form, every tensor float32 and of the shape it should have.

    their_name: our name → the one in ``tensors``. latent_mean, latent_std: (d, 1, 1).

    Raises: ImportFailed.
    """
    with torch.device("meta"):
        whole = shapes_of(KlAutoencoder(config).state_dict())
    expected = {name: shape for name, shape in whole.items() if name not in _LATENT_FIGURES}
    table = {their_name(name): name for name in expected}
    given = {name: _as_matrix(table.get(name, ""), tensor) for name, tensor in tensors.items()}
    ours = {name: tensor.float() for name, tensor in take(given, table, expected).items()}
    ours |= {"latent_mean": latent_mean, "latent_std": latent_std}
    return Imported("autoencoder", "kl", config, ours, notes=notes)


def _as_matrix(name: str, tensor: Tensor) -> Tensor:
    """Return the weight of a 1×1 convolution as the matrix that our ``name`` is; others as they are."""
    is_matrix = is_attention_weight(name) and tensor.shape[2:] == (1, 1)
    return tensor[:, :, 0, 0] if is_matrix else tensor
