"""Codes from which an image is decoded better than from those nearest to its latents.

Every latent is snapped to the codebook by itself, but a pixel is drawn from many codes, whose errors may add
up or cancel. So, as image and video coders do, other codes are tried and what decodes best is kept
(analysis by synthesis): at every fifth row and column at once, far enough apart not to disturb each other.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.autoencoders.similarity import WINDOW_PX, measure_similarity
from models.autoencoders.vq import Tokenizer

SPACING = 5  # in rows and columns: between codes that change at once; of the square an error is summed over
CALLS_PER_SWEEP = SPACING**2
NUM_CANDIDATES = 8
_SIMILARITY_WEIGHT = 0.2  # of 1 − structural similarity, beside the squared error


class CodeSearch:
    """The search for codes of ``images`` (B, C, H, W) in [-1, 1], each by itself.

    It starts at ``nearest``, (B, h, w), the codes nearest to the latents. In one sweep, of CALLS_PER_SWEEP
    calls of ``improve``, each code may change once. ``is_finite``, (B,), says which images have latents and
    decoded codes without NaN and infinity; the codes of others mean nothing.
    """

    def __init__(self, tokenizer: Tokenizer, images: Tensor, num_candidates: int = NUM_CANDIDATES) -> None:
        self._tokenizer = tokenizer
        self._images = images
        latents = tokenizer.encode(images)
        self.is_finite = latents.isfinite().flatten(1).all(1)
        self.nearest = tokenizer.quantize(latents).codes
        self._candidates = _nearest_codes(tokenizer, latents, num_candidates)  # (candidates, B, h, w)

    @torch.inference_mode()
    def improve(self, codes: Tensor, call: int) -> Tensor:
        """Try other codes instead of ``codes`` (B, h, w), and return the best: at the places of ``call``."""
        row, column = divmod(call % CALLS_PER_SWEEP, SPACING)
        places = (..., slice(row, None, SPACING), slice(column, None, SPACING))
        trials = codes.repeat(1 + len(self._candidates), 1, 1, 1)  # (trials, B, h, w): first, as it is
        trials[1:][places] = self._candidates[places]
        images = self._tokenizer.decode_codes(trials.flatten(0, 1)).unflatten(0, trials.shape[:2])
        errors = self._errors(images)
        self.is_finite &= errors[0].isfinite().flatten(1).all(1)
        errors = errors.nan_to_num(nan=math.inf, posinf=math.inf)  # what can't be decoded is never the best
        best = errors[places].argmin(0, keepdim=True)  # (1, B, …)
        improved = codes.clone()
        improved[places] = trials[places].gather(0, best)[0]
        return improved

    def _errors(self, images: Tensor) -> Tensor:
        """Return the error of decoded ``images`` (trials, B, C, H, W) around each code, (trials, B, h, w)."""
        padding = (WINDOW_PX // 2,) * 4
        with torch.autocast(images.device.type, enabled=False):  # small differences of squares
            similarity = measure_similarity(_reflected(images, padding), _reflected(self._images, padding))
        errors = (images - self._images).square() + _SIMILARITY_WEIGHT * (1 - similarity)
        errors = errors.mean(-3).flatten(0, 1)[:, None]  # (trials·B, 1, H, W)
        errors = F.avg_pool2d(errors, self._tokenizer.config.downsample_factor)  # (trials·B, 1, h, w)
        errors = F.avg_pool2d(errors, SPACING, stride=1, padding=SPACING // 2)
        return errors[:, 0].unflatten(0, images.shape[:2])


@torch.inference_mode()
def search_codes(
    tokenizer: Tokenizer, images: Tensor, num_sweeps: int, num_candidates: int = NUM_CANDIDATES
) -> Tensor:
    """Return the codes (B, h, w) of ``images`` (B, C, H, W) in [-1, 1] after so many sweeps."""
    search = CodeSearch(tokenizer, images, num_candidates)
    codes = search.nearest
    for call in range(num_sweeps * CALLS_PER_SWEEP):
        codes = search.improve(codes, call)
    return codes


def _nearest_codes(tokenizer: Tokenizer, latents: Tensor, count: int) -> Tensor:
    """Return the codes (count + 1, B, h, w) next to ``latents`` (B, d, h, w), the nearest first."""
    size = tokenizer.config.codebook_size
    every = torch.arange(size, device=latents.device).view(1, 1, size)
    book = (tokenizer.lookup(every) * tokenizer.latent_std)[0, :, 0].T  # (codes, d)
    vectors = (latents * tokenizer.latent_std).permute(0, 2, 3, 1)  # (B, h, w, d)
    distances = torch.cdist(vectors.flatten(0, 2), book)
    nearest = distances.topk(min(count + 1, size), largest=False).indices
    return nearest.T.reshape(-1, *vectors.shape[:3])


def _reflected(images: Tensor, padding: tuple[int, ...]) -> Tensor:
    return F.pad(images.flatten(0, -4), padding, mode="reflect").unflatten(0, images.shape[:-3])
