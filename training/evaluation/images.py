"""The images that a pipeline makes to be measured: generated, reconstructed, and from searched codes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from models.autoencoders.base import Autoencoder, Quantizing
from models.autoencoders.code_search import search_codes
from models.conditioning import Conditions, stack_conditions
from models.pipeline import Pipeline
from training.data.dataset import scale_to_unit
from training.evaluation.options import EvaluationOptions
from training.evaluation.scores import TokenizerMetrics, score_reconstructions
from training.precision import autocast

_SEARCHED_AT_ONCE = 16


@dataclass(frozen=True)
class Reconstructed:
    """images: (N, C, H, W) float in [-1, 1]. codes: (N, h, w), None without a codebook. Both on the CPU."""

    images: Tensor
    codes: Tensor | None


@torch.inference_mode()
def reconstruct(autoencoder: Autoencoder, images: Tensor, options: EvaluationOptions) -> Reconstructed:
    """Put images, (N, C, H, W) uint8 or float in [-1, 1], through an autoencoder, and its codebook if any.

    Of a distribution of latents, the mean is decoded.
    """
    codes, reconstructions = [], []
    for start in tqdm(range(0, len(images), options.batch_size), desc="reconstruct", unit="batch"):
        batch = scale_to_unit(images[start : start + options.batch_size]).to(options.device)
        latents = autoencoder.encode(batch)
        if isinstance(autoencoder, Quantizing):
            quantized = autoencoder.quantize(latents)
            codes.append(quantized.codes.cpu())
            latents = quantized.latents
        reconstructions.append(autoencoder.decode(latents).cpu())
    return Reconstructed(torch.cat(reconstructions), torch.cat(codes) if codes else None)


def codes_of(*reconstructed: Reconstructed) -> Tensor | None:
    """Return the codes of all of them; None without a codebook."""
    codes = [each.codes for each in reconstructed if each.codes is not None]
    return torch.cat(codes) if codes else None


def score_searched(pipeline: Pipeline, images: Tensor, options: EvaluationOptions) -> TokenizerMetrics:
    """Score reconstructions of ``images`` from codes that were searched for."""
    codes = []
    for batch in tqdm(scale_to_unit(images).split(_SEARCHED_AT_ONCE), desc="search codes", unit="batch"):
        with autocast(pipeline.device):
            codes.append(search_codes(pipeline.tokenizer, batch.to(pipeline.device), options.effort))
    decoded = torch.cat([pipeline.tokenizer.decode_codes(batch).cpu() for batch in codes])
    return score_reconstructions(
        scale_to_unit(images), decoded, torch.cat(codes), pipeline.spec.codebook_size
    )


def generate(
    pipeline: Pipeline,
    num_images: int,
    conditions_of: Callable[[slice], Conditions],
    options: EvaluationOptions,
) -> Tensor:
    """Generate images (N, C, H, W) float in [-1, 1], on the CPU, batch by batch.

    conditions_of: the conditions of a slice of them.
    """
    images = []
    starts = range(0, num_images, options.batch_size)
    sampling = options.sampling(pipeline.spec.defaults)
    for index, start in enumerate(tqdm(starts, desc="generate", unit="batch")):
        conditions = conditions_of(slice(start, min(start + options.batch_size, num_images)))
        images.append(pipeline.generate(conditions, options.seed + index, sampling).float().cpu())
    return torch.cat(images)


def generate_prompts(
    pipeline: Pipeline,
    prompts: Sequence[str],
    labels: Sequence[Mapping[str, int]],
    options: EvaluationOptions,
) -> Tensor:
    """Generate an image for each prompt, with numbers of labels by set; see ``generate``."""

    def conditions_of(rows: slice) -> Conditions:
        asked = zip(prompts[rows], labels[rows], strict=True)
        return stack_conditions([pipeline.conditions(numbers, prompt) for prompt, numbers in asked])

    return generate(pipeline, len(prompts), conditions_of, options)
