"""Pipelines and a text encoder small enough for tests, untrained and always the same."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as WordTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors

from models.autoencoders.vq import Tokenizer, TokenizerConfig
from models.media.image import ImageSpec
from models.networks.code_transformer import CodeTransformer, CodeTransformerConfig
from models.networks.dit import DiT, DiTConfig
from models.networks.text_encoder import PromptEncoder, TextEncoder, TextEncoderConfig
from models.options import FAMILIES, FlowOptions
from models.pipeline import save_pipeline
from models.spec import CodesSpec, PipelineSpec

TOKENIZER = TokenizerConfig(  # 16×16 colour, 4×4 codes
    image_channels=3,
    image_size_px=16,
    downsample_factor=4,
    hidden_channels=8,
    channel_growth=2,
    num_blocks=1,
    codebook_size=32,
)
PRIOR = DiTConfig(  # of prompts in three styles and two groups
    grid=(4, 4),
    hidden_size=32,
    depth=3,
    num_heads=2,
    label_sizes=(3, 2),
    text_tokens=6,
    text_channels=8,
)
FLOW = FlowOptions(num_steps=4, guidance_scale=2.0, guidance_interval=(0.0, 0.8), time_easing=0.5)
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "cat", "dog", "apple", "smiling", "emoji")


def save_families(weights: Path) -> None:
    """Write a pipeline of each family of priors, of the same tokenizer: "flow", "in-turn" and "masked"."""
    codes = {
        "grid": (6, 6),
        "codebook_size": 32,
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 2,
        "label_sizes": (3,),
    }
    for name, prior in (
        ("flow", DiTConfig(grid=(6, 6), hidden_size=32, depth=2, num_heads=2, label_sizes=(3,))),
        ("in-turn", CodeTransformerConfig(is_causal=True, common_code=5, **codes)),
        ("masked", CodeTransformerConfig(is_causal=False, patch_size=2, **codes)),
    ):
        save_untrained(
            weights / name,
            TokenizerConfig(image_size_px=12, hidden_channels=8, num_blocks=1, codebook_size=32),
            prior,
            labels={"class": ("cat", "dog", "bird")},
        )


def tiny_words() -> WordTokenizer:
    """Return a word tokenizer that knows ``WORDS`` and marks both ends."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = WordTokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return words


def tiny_prompt_encoder() -> PromptEncoder:
    """Return an untrained encoder of 6 tokens and 8 channels."""
    config = TextEncoderConfig(
        name="tiny", vocab_size=len(WORDS), hidden_size=8, depth=2, num_heads=2, inner_size=16,
        max_positions=16, max_tokens=6,
    )  # fmt: skip
    network = TextEncoder(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if "norm" not in name:  # norms stay 1 and 0, so that words stay apart
            parameter.data.normal_(std=0.3, generator=generator)
    network.embed_tokens.weight.data *= 5
    return PromptEncoder(network, tiny_words())


def save_untrained(
    folder: Path,
    tokenizer_config: TokenizerConfig,
    prior_config: DiTConfig | CodeTransformerConfig,
    prompt_encoder: PromptEncoder | None = None,
    **fields: Any,
) -> None:
    """Write a pipeline of random weights; ``fields`` are of ``PipelineSpec``: labels, example_prompt."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = Tokenizer(tokenizer_config)
    prior: DiT | CodeTransformer
    if isinstance(prior_config, DiTConfig):
        prior, family, defaults = DiT(prior_config), "flow", FLOW
    else:
        prior = CodeTransformer(prior_config)
        family = "autoregressive" if prior_config.is_causal else "masked"
        defaults = FAMILIES[family]()
    for module in (tokenizer, prior):
        for parameter in module.parameters():
            parameter.data.normal_(std=0.2, generator=generator)
    tokenizer.quantizer.codebook.normal_(generator=generator)
    spec = PipelineSpec(
        name=folder.name,
        makes=(
            ImageSpec(
                width_px=tokenizer_config.image_size_px,
                height_px=tokenizer_config.image_size_px,
                channels=tokenizer_config.image_channels,
            ),
        ),
        latents=tokenizer.latent_shape,
        codes=CodesSpec(
            grid=tokenizer_config.grid,
            size=tokenizer_config.codebook_size,
            fingerprint=tokenizer.fingerprint(),
        ),
        autoencoders={"image": "vq"},
        prior=family,
        takes_prompt=prior_config.takes_prompt,
        defaults=defaults,
        **fields,
    )
    save_pipeline(folder, spec, tokenizer, prior, prompt_encoder)
