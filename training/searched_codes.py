"""Codes searched for training images, for a decoder to learn from."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from models.autoencoders.code_search import search_codes
from models.autoencoders.vq import Tokenizer
from training.data.dataset import scale_to_unit
from training.precision import autocast
from training.run import Processes, generator_for

logger = logging.getLogger(__name__)

_NUM_CANDIDATES = 4  # of eight, half: most of what they bring


@dataclass(frozen=True)
class SearchedCodes:
    """Training images (M, C, H, W) uint8, and the codes (M, h, w) searched for them."""

    images: Tensor
    codes: Tensor


def search_training_codes(
    tokenizer: Tokenizer, images: Tensor, num_images: int, folder: Path, seed: int, processes: Processes
) -> SearchedCodes:
    """Search codes for some of ``images``, drawn by ``seed``, in one sweep.

    They are kept in the run's ``folder``, for the next start.
    """
    order = torch.randperm(len(images), generator=generator_for(seed, -4, 0))
    images = images[order[:num_images]]
    key = f"{tokenizer.fingerprint()} seed={seed} images={len(images)}"
    path = folder / "searched_codes.safetensors"
    try:
        if path.exists() and key in (kept := load_file(path)):
            return SearchedCodes(images, kept[key])
    except SafetensorError as error:
        logger.warning("%s is damaged, and searched anew (%s)", path, error)
    found = []
    for batch in tqdm(images.split(16), desc="search codes", unit="batch"):
        targets = scale_to_unit(batch).to(processes.device)
        with autocast(processes.device):
            codes = search_codes(tokenizer, targets, num_sweeps=1, num_candidates=_NUM_CANDIDATES)
        found.append(codes.cpu())
    searched = SearchedCodes(images, torch.cat(found))
    if processes.is_main:
        partial = path.with_suffix(".partial")
        save_file({key: searched.codes}, partial)
        partial.replace(path)
    return searched
