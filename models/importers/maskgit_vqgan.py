"""MaskGIT's VQGAN as 1d-tokenizer and open-muse have it: ``maskgit-vqgan-imagenet-f16-256.bin``.

Chang et al. 2022 (arXiv:2202.04200). Its networks know pictures in [0, 1], and no 1×1 convolutions lead to
the codebook.
"""

from collections.abc import Mapping
from functools import partial

from models.autoencoders.vqgan import VqganConfig
from models.importers.base import Imported, Source
from models.importers.compvis import made, size_of
from models.importers.magvit_names import CODEBOOK, has_names_of, infer_config, their_name
from models.importers.vq_parts import finish, read_image_size_px


def recognises(source: Source) -> bool:
    """Whether there is a codebook beside networks with these names."""
    return CODEBOOK in source.tensors and has_names_of(source.tensors, "maskgit")


def read(source: Source, settings: Mapping[str, str]) -> Imported:
    """Return the tokenizer.

    settings: ``image_size_px``, 256 where it is left out.

    Raises: ImportFailed.
    """
    network = infer_config(source.tensors, "maskgit")
    size_px, notes = read_image_size_px(settings, None)
    config = made(
        VqganConfig,
        network=network,
        image_size_px=size_px,
        codebook_size=size_of(source.tensors, CODEBOOK, 0),
        code_channels=size_of(source.tensors, CODEBOOK, 1),
        has_projections=False,
        is_from_zero=True,
    )
    return finish(config, source.tensors, partial(their_name, config=network), notes)
