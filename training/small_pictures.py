"""Small copies of pictures, for a prior that learns to draw such pictures larger.

Nobody knows how the pictures that will come were made small. So there are two kinds of copies: means over
areas, and bicubic interpolation, whose edges are harder.
"""

from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from models.autoencoders.enlarging import enlarge
from models.autoencoders.shuffle import ShuffleAutoencoder
from models.conditioning import Conditions
from training.data.dataset import scale_to_unit
from training.examples import Examples

Filter = Literal["area", "bicubic"]

_NUM_PREVIEWS = 64
_BATCH_SIZE = 500


def shrink(images: Tensor, size_px: int, filter: Filter = "area") -> Tensor:
    """Return images (N, C, H, W) uint8 at ``size_px`` a side, as a file of that size would hold them."""
    is_bicubic = filter == "bicubic"
    small = F.interpolate(images.float(), (size_px, size_px), mode=filter, antialias=is_bicubic)
    return small.round().clamp(0, 255).to(torch.uint8)


def add_sources(
    examples: Examples, tokenizer: ShuffleAutoencoder, images: Tensor, size_px: int, null: Conditions
) -> Examples:
    """Return examples with the latents of their small copies.

    images: (N, C, H, W) uint8; where there are twice as many examples, the second half is of flipped ones.
    null: what the network is asked for (one row) when it is asked for nothing; previews ask for no more than
    a source to be drawn larger.
    """
    if len(examples) > len(images):
        images = torch.cat([images, images.flip(-1)])
    sources = encode_sources(tokenizer, images, size_px)
    shown = torch.linspace(0, len(images) - 1, min(_NUM_PREVIEWS, len(images))).long()
    previews = replace(null.to("cpu").expand(len(shown)), source=sources[shown, 0].float())
    return replace(examples, sources=sources, preview_conditions=previews)


@torch.inference_mode()
def encode_sources(tokenizer: ShuffleAutoencoder, images: Tensor, size_px: int) -> Tensor:
    """Return latents (N, kinds, d, h, w) bfloat16 of small copies of images (N, C, H, W), enlarged again."""
    device, size = tokenizer.latent_mean.device, tokenizer.signal_shape[1:]
    parts = []
    for batch in images.split(_BATCH_SIZE):
        copies = [scale_to_unit(shrink(batch, size_px, filter)).to(device) for filter in get_args(Filter)]
        latents = [tokenizer.encode(enlarge(copy, size)).to("cpu", torch.bfloat16) for copy in copies]
        parts.append(torch.stack(latents, 1))
    return torch.cat(parts)
