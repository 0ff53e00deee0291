"""Pipelines and a text encoder small enough for tests, untrained and always the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as WordTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors

from models.autoencoders.vae import VariationalAutoencoder
from models.autoencoders.vq import Tokenizer, TokenizerConfig
from models.networks.code_transformer import CodeTransformer, CodeTransformerConfig
from models.networks.dit import DiT, DiTConfig
from models.networks.shuffle_autoencoder import ShuffleConfig
from models.networks.text_encoder import PromptEncoder, TextEncoder, TextEncoderConfig
from models.options import FAMILIES, FlowOptions
from models.pipeline import autoencoder_spec, save_pipeline

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
    autoencoder_config: ShuffleConfig,
    prior_config: DiTConfig | CodeTransformerConfig,
    prompt_encoder: PromptEncoder | None = None,
    **fields: Any,
) -> None:
    """Write a pipeline of random weights; ``fields`` are of ``PipelineSpec``: labels, example_prompt.

    Its autoencoder is a tokenizer, or variational where the configuration isn't a tokenizer's.
    """
    generator = torch.Generator().manual_seed(0)
    autoencoder: Tokenizer | VariationalAutoencoder
    if isinstance(autoencoder_config, TokenizerConfig):
        autoencoder = Tokenizer(autoencoder_config)
    else:
        autoencoder = VariationalAutoencoder(autoencoder_config)
    prior: DiT | CodeTransformer
    if isinstance(prior_config, DiTConfig):
        prior, family, defaults = DiT(prior_config), "flow", FLOW
    else:
        prior = CodeTransformer(prior_config)
        family = "autoregressive" if prior_config.is_causal else "masked"
        defaults = FAMILIES[family]()
    for module in (autoencoder, prior):
        for parameter in module.parameters():
            parameter.data.normal_(std=0.2, generator=generator)
    if isinstance(autoencoder, Tokenizer):
        autoencoder.quantizer.codebook.normal_(generator=generator)
    spec = replace(
        autoencoder_spec(folder.name, autoencoder.kind, autoencoder),
        prior=family,
        takes_prompt=prior_config.takes_prompt,
        defaults=defaults,
        **fields,
    )
    save_pipeline(folder, spec, autoencoder, prior, prompt_encoder)
