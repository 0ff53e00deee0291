"""Pipelines of random weights, in the sizes that a GPU is measured with."""

from collections.abc import Iterable

import torch
from torch import nn

from models.autoencoders.vq import Tokenizer, TokenizerConfig
from models.media.image import ImageSpec
from models.networks.dit import DiT, DiTConfig
from models.options import FlowOptions
from models.pipeline import Pipeline
from models.priors.flow import FlowPrior
from models.spec import CodesSpec, PipelineSpec

EMOJI_TOKENIZER = TokenizerConfig(  # of the shape of emoji-64's: 64 px, 16×16 codes
    image_channels=3,
    image_size_px=64,
    downsample_factor=4,
    hidden_channels=32,
    channel_growth=4,
    num_blocks=3,
    latent_channels=8,
    codebook_size=4096,
)
WIDE_PRIOR = DiTConfig(  # 34 M, 64 tokens
    latent_channels=8,
    grid=(16, 16),
    patch_size=2,
    hidden_size=512,
    depth=12,
    num_heads=8,
    mlp_ratio=2.0,
    label_sizes=(10,),
)
F16_TOKENIZER = TokenizerConfig(  # 63 M: 256 px, 16×16 codes
    image_channels=3,
    image_size_px=256,
    downsample_factor=16,
    hidden_channels=64,
    channel_growth=2,
    num_blocks=4,
    latent_channels=8,
    codebook_size=16384,
)
SMALL_TOKENIZER = TokenizerConfig(image_channels=3, image_size_px=16, hidden_channels=8, num_blocks=1)
SMALL_PRIOR = DiTConfig(grid=(8, 8), hidden_size=32, depth=2, num_heads=2, label_sizes=(10,))


def untrained_pipeline(tokenizer_config: TokenizerConfig, prior_config: DiTConfig, device: str) -> Pipeline:
    """Return a pipeline of 4 unguided steps, with a class label."""
    tokenizer, prior = Tokenizer(tokenizer_config), DiT(prior_config)
    for module in (tokenizer, prior):
        draw_zeros(module.parameters())
    tokenizer.quantizer.codebook.normal_(generator=torch.Generator().manual_seed(0))
    channels, height_px, width_px = tokenizer.signal_shape
    spec = PipelineSpec(
        name="untrained",
        makes=(ImageSpec(width_px=width_px, height_px=height_px, channels=3 if channels == 3 else 1),),
        latents=tokenizer.latent_shape,
        codes=CodesSpec(
            grid=tokenizer_config.grid,
            size=tokenizer_config.codebook_size,
            fingerprint=tokenizer.fingerprint(),
        ),
        labels={"class": tuple(f"class {number}" for number in range(prior_config.label_sizes[0]))},
        autoencoders={"image": "vq"},
        prior="flow",
        defaults=FlowOptions(num_steps=4, sampler="euler", guidance_scale=1.0),
    )
    return Pipeline(spec, tokenizer, FlowPrior(prior), torch.device(device), torch.bfloat16)


@torch.no_grad()
def draw_zeros(parameters: Iterable[nn.Parameter]) -> None:
    """Make small numbers of what begins as zeros: products of zeros take a GPU less time."""
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        if not parameter.any():
            parameter.normal_(std=0.02, generator=generator)
