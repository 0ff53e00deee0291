"""A pipeline's folder from what was imported."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.autoencoders.base import Autoencoder, Quantizing
from models.checkpoint import Unfilled, load_tensors, save_checkpoint
from models.importers.base import Imported, ImportFailed
from models.options import Options
from models.pipeline import AUTOENCODER_FILE, PRIOR_FILE, Pipeline, autoencoder_spec
from models.priors.base import DrawsCodes, Prior
from models.registry import AUTOENCODERS, PRIORS, load_kind
from models.spec import SPEC_FILE, CodesSpec, PipelineSpec

_MEAN, _STD = "latent_mean", "latent_std"
_SIZE = "image_size_px"  # of every autoencoder of pictures
_TOLERANCE = 1e-6  # relative; figures are written with seven digits or more


@dataclass(frozen=True)
class _Joined:
    """The autoencoder of a pipeline: its kind, its file, and the folder that it is shared with."""

    kind: str
    file: Path
    shares_with: str | None = None


def build(
    imported: Sequence[Imported],
    folder: Path,
    name: str,
    beside: str | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Pipeline:
    """Write a pipeline's folder, and return it as it is loaded again.

    imported: an autoencoder, a prior, or both. beside: the folder next to this one that has the autoencoder
    of a prior that comes alone; where the prior was trained on other figures, or on pictures of another size,
    it gets a copy with those. note: is told what was changed so.

    Raises: ConfigError where they don't fit each other; OSError or SafetensorError where the disk is full.
    """
    by_role = {each.role: each for each in imported}
    prior, autoencoder = by_role.get("prior"), by_role.get("autoencoder")
    folder.mkdir()
    if autoencoder is not None:
        joined = _saved(autoencoder, prior, folder)
    elif prior is not None and beside is not None:
        joined = _of_another(folder.parent / beside, prior, folder)
    else:
        raise ImportFailed(
            "this is a prior, which needs an autoencoder: import that first, then say --autoencoder NAME,"
            " the folder beside this one"
        )
    loaded = _loaded(joined)
    own_prior: Prior | None = None
    prompt_encoder = None if prior is None else prior.prompt_encoder
    if prior is not None:
        config = _with_grey(prior.config, loaded)
        save_checkpoint(folder / PRIOR_FILE, dict(prior.tensors), config)
        if prompt_encoder is not None:
            prompt_encoder.save(folder, in_eight_bits=False)
        own_prior = load_kind(PRIORS, prior.kind).load(folder / PRIOR_FILE)
        wanted = tuple(own_prior.latent_shape)
        if wanted != tuple(loaded.latent_shape):
            joined = _resized(joined, folder, tuple(loaded.latent_shape), wanted)
            loaded = _loaded(joined)
            note(f"Its pictures are {loaded.signal_shape[-1]} px instead, as the prior's latents ask.")
    spec = autoencoder_spec(name, joined.kind, loaded)
    if isinstance(own_prior, DrawsCodes):
        _check_codebook(own_prior.codebook_size, spec.codes)
    replace(
        spec,
        labels={} if prior is None else prior.labels,
        takes_prompt=prompt_encoder is not None,
        prior=None if prior is None else prior.kind,
        defaults=(prior.defaults if prior else None) or Options(),
        shares_with=joined.shares_with,
    ).save(folder / SPEC_FILE)
    return Pipeline.load(folder, dtype=torch.float32)


def _loaded(joined: _Joined) -> Autoencoder:
    with Unfilled():
        autoencoder: Autoencoder = load_kind(AUTOENCODERS, joined.kind).load(joined.file)
    return autoencoder


def _saved(autoencoder: Imported, prior: Imported | None, folder: Path) -> _Joined:
    """Write an imported autoencoder, with the figures of the prior that came with it."""
    tensors = dict(autoencoder.tensors)
    if prior is not None:
        tensors |= _other_figures(tensors, prior)
    save_checkpoint(folder / AUTOENCODER_FILE, tensors, autoencoder.config)
    return _Joined(autoencoder.kind, folder / AUTOENCODER_FILE)


def _of_another(other: Path, prior: Imported, folder: Path) -> _Joined:
    """Return the autoencoder of a pipeline that is there, or a copy of it with the prior's figures."""
    spec = PipelineSpec.load(other / SPEC_FILE)
    owner = other.parent / spec.shares_with if spec.shares_with else other
    kind, file = spec.autoencoders[spec.medium.medium], owner / AUTOENCODER_FILE
    tensors = load_tensors(file)
    changed = _other_figures(tensors, prior)
    if not changed:
        return _Joined(kind, file, owner.name)
    return _Joined(kind, _copied(file, folder, tensors | changed))


def _copied(
    file: Path, folder: Path, tensors: Mapping[str, Tensor], changed: Mapping[str, int] | None = None
) -> Path:
    """Write a copy of an autoencoder, with other tensors and fields of its configuration."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    config = json.loads(metadata["config"]) | dict(changed or {})
    copy = folder / AUTOENCODER_FILE
    partial = copy.with_suffix(".partial")
    save_file(dict(tensors), partial, metadata={**metadata, "config": json.dumps(config)})
    partial.chmod(0o644)
    partial.replace(copy)
    return copy


def _resized(joined: _Joined, folder: Path, has: tuple[int, ...], wanted: tuple[int, ...]) -> _Joined:
    """Return a copy of an autoencoder for pictures of the size that gives the latents of a prior.

    Its layers are convolutions, and attention over however many places there are.

    Raises: ImportFailed where no size does.
    """
    with safe_open(joined.file, framework="pt") as opened:
        size_px = json.loads(opened.metadata()["config"]).get(_SIZE)
    if size_px is None or has[0] != wanted[0] or len(set(wanted[1:])) != 1 or size_px * wanted[1] % has[1]:
        raise ImportFailed(
            f"the prior samples latents {wanted}, the autoencoder has {has} (channels, height, width): they"
            " don't belong together"
        )
    resized = {_SIZE: size_px * wanted[1] // has[1]}
    return _Joined(joined.kind, _copied(joined.file, folder, load_tensors(joined.file), resized))


def _other_figures(tensors: dict[str, Tensor], prior: Imported) -> dict[str, Tensor]:
    """Return the figures of an autoencoder that the prior's replace; nothing where they agree.

    Raises: ImportFailed where they are of another number of channels.
    """
    changed: dict[str, Tensor] = {}
    for name, wanted in ((_MEAN, prior.latent_mean), (_STD, prior.latent_std)):
        if wanted is None:
            continue
        own = tensors[name]
        if wanted.shape != own.shape:
            raise ImportFailed(
                f"the prior's latents have {len(wanted)} channels, the autoencoder's {len(own)}: they don't"
                " belong together"
            )
        if not torch.allclose(own.float(), wanted.float(), rtol=_TOLERANCE, atol=_TOLERANCE):
            changed[name] = wanted.to(own.dtype).contiguous()
    return changed


@torch.inference_mode()
def _with_grey(config: Any, autoencoder: Autoencoder) -> Any:
    """Return the configuration of a prior, with grey for codes that a preview has not yet, where it has such.

    That is the most frequent code of a grey picture; one that the prior doesn't know is refused later.
    """
    if not hasattr(config, "common_code") or not isinstance(autoencoder, Quantizing):
        return config
    latents = autoencoder.encode(torch.zeros(1, *autoencoder.signal_shape))
    code = int(autoencoder.quantize(latents).codes.flatten().mode().values)
    return replace(config, common_code=code) if code < config.codebook_size else config


def _check_codebook(num_drawn: int, codes: CodesSpec | None) -> None:
    """Check that an autoencoder has the codes that a prior draws. Raises: ImportFailed."""
    if codes is None or (codes.size, codes.num_codebooks) != (num_drawn, 1):
        has = "none" if codes is None else f"{codes.num_codebooks} codebook(s) of {codes.size:,}"
        raise ImportFailed(
            f"the prior draws from one codebook of {num_drawn:,} codes, the autoencoder has {has}: they don't"
            " belong together"
        )
