"""A pipeline: an autoencoder, a prior and what it is asked for, from one folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from models.autoencoders.base import Autoencoder, Probabilistic, Quantizing
from models.autoencoders.shuffle import ShuffleAutoencoder
from models.autoencoders.stages import DecodeStage, EncodeStage, LatentsStage, PsnrStage, SearchStage
from models.autoencoders.vq import Tokenizer, channels_last
from models.checkpoint import Unfilled, fingerprint, save_checkpoint
from models.conditioning import Conditions
from models.eight_bits import to_eight_bits
from models.media.image import ImageSpec
from models.networks.code_transformer import CodeTransformer
from models.networks.dit import DiT
from models.networks.text_encoder import PromptEncoder
from models.options import ConfigError, Options, Precision
from models.priors.base import DrawsCodes, Prior
from models.registry import AUTOENCODERS, PRIORS, load_kind
from models.spec import SPEC_FILE, CodesSpec, PipelineSpec
from models.stage import Sample, SampleSpec, Stage, run_path

AUTOENCODER_FILE = "tokenizer.safetensors"
PRIOR_FILE = "prior.safetensors"


@dataclass(frozen=True)
class Stages:
    """A pipeline's stages, with room for so many samples; an engine has its own, as they keep its samples.

    source: what a source that is drawn anew goes through, to codes or to latents, as the prior draws.
    """

    encode: EncodeStage
    decode: DecodeStage
    psnr: PsnrStage
    source: EncodeStage | LatentsStage
    sample: Stage | None = None
    search: SearchStage | None = None

    def path(
        self,
        operation: Literal["generate", "encode", "decode"],
        *,
        effort: int = 0,
        return_psnr: bool = False,
        is_edit: bool = False,
    ) -> tuple[Stage, ...]:
        """Return the stages that a request's samples walk; with ``return_psnr``, they need a ``source``.

        is_edit: whether what is generated starts from a ``source``.
        """
        match operation:
            case "generate":
                assert self.sample is not None, "this pipeline has no prior"
                return (self.source, self.sample, self.decode) if is_edit else (self.sample, self.decode)
            case "encode":
                assert self.search is not None or not effort, "this pipeline has no codes"
                first: Stage = self.search if effort and self.search is not None else self.encode
                return (first, self.psnr) if return_psnr else (first,)
            case "decode":
                return (self.decode,)


class Pipeline:
    """Everything that turns conditions into signals, and signals into codes and back; frozen, on one device.

    The prior computes in ``dtype``; the autoencoder in float32, so that codes are the same everywhere, or,
    where the process has let its GPU do so, in the ``precision`` TF32.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        autoencoder: Autoencoder,
        prior: Prior | None,
        device: torch.device,
        dtype: torch.dtype,
        prompt_encoder: PromptEncoder | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.spec = spec
        self.precision = precision
        self.device = device
        self.dtype = dtype
        if isinstance(autoencoder, torch.nn.Module):
            channels_last(autoencoder.to(device)).eval().requires_grad_(False)
        if prior is not None:
            prior.network.to(device, dtype).eval().requires_grad_(False)
        self.autoencoder = autoencoder
        self.prior = prior
        self.prompt_encoder = prompt_encoder

    @classmethod
    def load(
        cls,
        folder: Path | str,
        device: str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        precision: Precision = "float32",
    ) -> "Pipeline":
        """Load ``pipeline.json`` and the tensors from ``folder``, and what it shares from the one beside it.

        Raises: ConfigError or CheckpointError when something is missing, damaged, or does not fit.
        """
        folder = Path(folder)
        spec = PipelineSpec.load(folder / SPEC_FILE)
        shared = folder.parent / spec.shares_with if spec.shares_with else folder
        if not shared.is_dir():
            raise ConfigError(
                f"{folder / SPEC_FILE}: shares_with: there is no folder {shared}; fetch that pipeline, too"
            )
        try:
            kind = load_kind(AUTOENCODERS, spec.autoencoders[spec.medium.medium])
        except ConfigError as error:
            raise ConfigError(f"{folder / SPEC_FILE}: autoencoders: {error}") from error
        with Unfilled():
            autoencoder: Autoencoder = kind.load(shared / AUTOENCODER_FILE)
            prior: Prior | None = None
            if spec.prior is not None:
                prior = load_kind(PRIORS, spec.prior).load(folder / PRIOR_FILE)
            prompt_encoder = PromptEncoder.load(shared, device) if spec.takes_prompt else None
        _check_fit(spec, autoencoder, prior, prompt_encoder, folder)
        return cls(spec, autoencoder, prior, torch.device(device), dtype, prompt_encoder, precision)

    @property
    def num_bytes(self) -> int:
        """What its weights take in memory."""
        networks = [
            self.autoencoder,
            self.prior and self.prior.network,
            self.prompt_encoder and self.prompt_encoder.network,
        ]
        return sum(
            tensor.numel() * tensor.element_size()
            for network in networks
            if isinstance(network, torch.nn.Module)
            for tensor in (*network.parameters(), *network.buffers())
        )

    @cached_property
    def prior_fingerprint(self) -> str:
        """Tells the prior's weights from all others; reads all of them, once."""
        assert self.prior is not None
        return fingerprint({}, dict(self.prior.network.state_dict()))

    @property
    def tokenizer(self) -> Tokenizer:
        """The autoencoder of a pipeline of pictures with codes."""
        assert isinstance(self.autoencoder, Tokenizer)
        return self.autoencoder

    def make_stages(self, num_slots: int) -> Stages:
        """Return stages with room for ``num_slots`` samples that are sampled at the same time."""
        encode = EncodeStage(self.autoencoder, num_slots, self.device)
        draws_codes = isinstance(self.prior, DrawsCodes)
        return Stages(
            encode=encode,
            decode=DecodeStage(self.autoencoder, num_slots, self.device),
            psnr=PsnrStage(self.autoencoder, num_slots, self.device),
            source=encode if draws_codes else LatentsStage(self.autoencoder, num_slots, self.device),
            sample=None if self.prior is None else self.prior.make_stage(num_slots),
            search=SearchStage(self.autoencoder) if isinstance(self.autoencoder, Tokenizer) else None,
        )

    def conditions(self, labels: Mapping[str, int] | None = None, prompt: str | None = None) -> Conditions:
        """Return one row of conditions: numbers of labels by set, and a prompt; what is left out is open.

        A source is none of them: a sample brings it.
        """
        assert self.prior is not None
        null = self.prior.null_conditions()
        asked = labels or {}
        numbers = [asked.get(name, len(known)) for name, known in self.spec.labels.items()]
        text = pooled = None
        if self.prompt_encoder is not None:
            encoded = self.prompt_encoder.encode(prompt or "")
            text, pooled = encoded.states[None], None if encoded.pooled is None else encoded.pooled[None]
        row = Conditions(torch.tensor([numbers], dtype=torch.long), text, null.source, pooled)
        return row.to(self.device)

    def generate(self, conditions: Conditions, seed: int, options: Options | None = None) -> Tensor:
        """Return signals (B, C, *size) float32 of ``conditions`` (B rows), all in one batch, on the CPU.

        Sample i starts from the noise of (seed, i). Without ``options``, the pipeline's defaults are taken.
        """
        assert self.prior is not None
        conditions, null = conditions.to(self.device), self.conditions()
        chosen = options or self.spec.defaults
        samples = [
            Sample(SampleSpec(seed, chosen, conditions[i : i + 1], null), index=i)
            for i in range(len(conditions))
        ]
        run_path(self.make_stages(len(samples)).path("generate"), samples)
        return torch.stack([sample.value for sample in samples if sample.value is not None])


def autoencoder_spec(name: str, kind: str, autoencoder: Autoencoder) -> PipelineSpec:
    """Return what ``pipeline.json`` says of an autoencoder of pictures, of this kind, without a prior.

    Raises: ConfigError where its pictures are neither grey nor in colour.
    """
    channels, height_px, width_px = autoencoder.signal_shape
    if channels not in (1, 3):
        raise ConfigError(f"pictures have 1 or 3 channels, this autoencoder's have {channels}")
    codes = _codes_spec(autoencoder)
    return PipelineSpec(
        name=name,
        makes=(ImageSpec(width_px=width_px, height_px=height_px, channels=1 if channels == 1 else 3),),
        latents=tuple(autoencoder.latent_shape),
        autoencoders={"image": kind},
        codes=codes,
        fingerprint=None if codes else autoencoder.fingerprint(),
        has_posterior=isinstance(autoencoder, Probabilistic),
    )


def _codes_spec(autoencoder: Autoencoder) -> CodesSpec | None:
    """Return what ``pipeline.json`` says of codes, None where there is no codebook."""
    if not isinstance(autoencoder, Quantizing):
        return None
    device = next(autoencoder.parameters()).device if isinstance(autoencoder, torch.nn.Module) else None
    with torch.inference_mode():
        codes = autoencoder.quantize(torch.zeros(1, *autoencoder.latent_shape, device=device)).codes
    num_codebooks = 1 if codes.dim() == len(autoencoder.latent_shape) else codes.shape[1]
    size: int = autoencoder.config.codebook_size  # type: ignore[attr-defined]
    grid = tuple(autoencoder.latent_shape[1:])
    return CodesSpec(grid=grid, size=size, fingerprint=autoencoder.fingerprint(), num_codebooks=num_codebooks)


def save_pipeline(
    folder: Path,
    spec: PipelineSpec,
    autoencoder: ShuffleAutoencoder,
    network: DiT | CodeTransformer,
    prompt_encoder: PromptEncoder | None = None,
    *,
    in_eight_bits: bool = False,
) -> None:
    """Write a pipeline's folder; the prior's tensors in bfloat16, as it is served, or half as large.

    What it shares with another is not written again. in_eight_bits: see ``eight_bits.py``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not spec.shares_with:
        save_checkpoint(folder / AUTOENCODER_FILE, autoencoder.exported(), autoencoder.config)
        if prompt_encoder is not None:
            prompt_encoder.save(folder)
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in network.state_dict().items()}
    tensors = to_eight_bits(halves) if in_eight_bits else halves
    save_checkpoint(folder / PRIOR_FILE, tensors, network.config)
    spec.save(folder / SPEC_FILE)


def _check_fit(
    spec: PipelineSpec,
    autoencoder: Autoencoder,
    prior: Prior | None,
    prompt_encoder: PromptEncoder | None,
    folder: Path,
) -> None:
    """Compare what ``pipeline.json`` says with what the files hold.

    Raises: ConfigError.
    """

    def check(what: str, said: object, found: object) -> None:
        if said != found:
            raise ConfigError(
                f"{folder}: pipeline.json says {what} {said}, but its weights have {found}; they belong to"
                " different pipelines, so fetch the folder again"
            )

    check("latents", tuple(spec.latents), tuple(autoencoder.latent_shape))
    if spec.tokenizer is not None:
        what = "codes" if spec.codes is not None else "latents"
        check(f"that its {what} are of the tokenizer", spec.tokenizer, autoencoder.fingerprint())
        check("has_posterior", spec.has_posterior, isinstance(autoencoder, Probabilistic))
    if prior is None:
        return
    check("latents", tuple(spec.latents), tuple(prior.latent_shape))
    sizes: Sequence[int] = [len(names) for names in spec.labels.values()]
    check("numbers of labels", tuple(sizes), tuple(prior.label_sizes))
    if isinstance(prior, DrawsCodes):
        check("a number of codes", None if spec.codes is None else spec.codes.size, prior.codebook_size)
    check("takes_prompt", spec.takes_prompt, prior.text_shape is not None)
    null = prior.null_conditions()
    check("needs_source", spec.needs_source, null.source is not None)
    if prompt_encoder is not None:
        config = prompt_encoder.config
        given = (config.max_tokens, config.hidden_size, config.pooled_size)
        wanted = (*(prior.text_shape or ()), None if null.pooled is None else null.pooled.shape[1])
        if given != wanted:
            raise ConfigError(
                f"{folder}: the prior wants (tokens, channels, channels of a vector for all) {wanted},"
                f" the text encoder gives {given}"
            )
