"""The stages of an autoencoder: encode, search for better codes, decode, measure what was lost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from models.autoencoders.base import Autoencoder, Probabilistic, Quantizing
from models.autoencoders.code_search import CALLS_PER_SWEEP, CodeSearch
from models.autoencoders.enlarging import enlarge
from models.autoencoders.vq import Tokenizer
from models.noise import draw_noise
from models.replay import Replayed
from models.stage import NotFinite, Run, Sample, SampleSpec
from models.transfers import fetch

ROWS_PER_CALL = 4  # on a CPU
_LARGE_PLACES = 128**2  # of a signal: one keeps a CPU busy, and four would take four times as long
_ROWS_ON_GPU = range(4, 33)  # by the size of a signal
_PLACES_ON_GPU = 2**20  # pixels, say, of all signals of a call
MAX_PSNR_DB = 100.0  # of what is equal, too
_PEAK_SQUARE = 4.0  # of signals in [-1, 1]
_NO_CODE = -1  # of latents that aren't finite


_CPU = torch.device("cpu")


def rows_per_call(autoencoder: Autoencoder, device: torch.device) -> int:
    """Return how many rows every call of an autoencoder has.

    Always the same, as it computes in float32, where a row's bits depend on how many there are.
    """
    num_places = math.prod(autoencoder.signal_shape[1:])
    if device.type != "cuda":
        return ROWS_PER_CALL if num_places < _LARGE_PLACES else 1
    return min(max(_PLACES_ON_GPU // num_places, _ROWS_ON_GPU[0]), _ROWS_ON_GPU[-1])


class _OneCall:
    """A stage that is done after one call."""

    reports_progress = False

    def __init__(self, autoencoder: Autoencoder, max_samples: int, device: torch.device = _CPU) -> None:
        self.fixed_rows: Sequence[int] | None = (rows_per_call(autoencoder, device),)
        self.max_samples = max_samples
        self._autoencoder = autoencoder
        self._device = device

    def start(self, sample: Sample) -> None:
        """Keep nothing."""

    def num_calls(self, sample: Sample) -> int:
        return 1

    def preview(self, samples: Sequence[Sample]) -> Tensor | None:
        return None

    def release(self, sample: Sample) -> None:
        """Keep nothing."""


class EncodeStage(_OneCall):
    """Signals (C, *size) → codes (*grid); latents (d, *grid), where there is no codebook.

    Where the autoencoder has a distribution of latents, they are its mean, or drawn from it with the noise of
    (seed, index): mean + std·noise.
    """

    def __init__(self, autoencoder: Autoencoder, max_samples: int, device: torch.device = _CPU) -> None:
        super().__init__(autoencoder, max_samples, device)
        self._encode = Replayed(partial(_encode, autoencoder), device)

    def step(self, samples: Sequence[Sample], run: Run) -> None:
        signals = torch.stack([_value(sample) for sample in samples])
        _finish(samples, run, lambda rows: self._encode(signals[rows]), self.fixed_rows)
        if isinstance(self._autoencoder, Probabilistic):
            for sample in samples:
                if sample.error is None:
                    sample.value = _latents(sample)


class LatentsStage(_OneCall):
    """Signals (C, *size) → scaled latents (d, *grid), not snapped to any codebook.

    Pictures smaller than the autoencoder's are enlarged, each by itself: no neighbour changes its bits.
    """

    def __init__(self, autoencoder: Autoencoder, max_samples: int, device: torch.device = _CPU) -> None:
        super().__init__(autoencoder, max_samples, device)
        self._encode = Replayed(autoencoder.encode, device)

    def start(self, sample: Sample) -> None:
        sample.value = enlarge(_value(sample)[None], self._autoencoder.signal_shape[1:])[0]

    def step(self, samples: Sequence[Sample], run: Run) -> None:
        signals = torch.stack([_value(sample) for sample in samples])
        _finish(samples, run, lambda rows: self._encode(signals[rows]), self.fixed_rows)


class DecodeStage(_OneCall):
    """Latents (d, *grid), snapped to the codebook where there is one, or codes (*grid) → signals (C, *size).

    ``codes`` of a sample are then those that it was decoded from. Where its mask draws nothing anew, the
    signal is its source's.
    """

    def __init__(self, autoencoder: Autoencoder, max_samples: int, device: torch.device = _CPU) -> None:
        super().__init__(autoencoder, max_samples, device)
        self._decode = Replayed(partial(_decode, autoencoder), device)
        self._quantize: Replayed | None = None
        if isinstance(autoencoder, Quantizing):
            self._quantize = Replayed(partial(_quantize, autoencoder), device)

    def step(self, samples: Sequence[Sample], run: Run) -> None:
        if self._quantize is not None:
            self._snap(self._quantize, [each for each in samples if _value(each).is_floating_point()], run)
            samples = [sample for sample in samples if sample.error is None]
        if not samples:
            return
        values = torch.stack([_value(sample) for sample in samples])
        _finish(samples, run, lambda rows: self._decode(values[rows]), self.fixed_rows)
        if self._quantize is not None:
            for sample, codes in zip(samples, fetch(values)[0], strict=True):
                sample.codes = codes
        for sample in samples:
            if sample.spec.mask is not None and sample.source is not None and sample.error is None:
                sample.value = torch.where(sample.spec.mask, _value(sample), sample.source.cpu())

    def decode_latents(self, latents: Tensor, run: Run) -> Tensor | None:
        """Return signals (B, C, *size) of latents (B, d, *grid), for previews; None when a row fails."""
        samples = [Sample(SampleSpec(), value=each) for each in latents]
        self.step(samples, run)
        if any(sample.error for sample in samples):
            return None
        return torch.stack([_value(sample) for sample in samples])

    def _snap(self, quantize: Replayed, samples: Sequence[Sample], run: Run) -> None:
        """Replace samples' latents by their codes."""
        if not samples:
            return
        latents = torch.stack([_value(sample) for sample in samples])
        results = run(lambda rows: quantize(latents[rows]), len(samples), self.fixed_rows)
        for row, sample in enumerate(samples):
            sample.error = results.failures.get(row)
            if results.values is not None:
                sample.value = results.values[row]


class PsnrStage(_OneCall):
    """Codes or latents of a sample, as they are → its ``psnr_db``: of their decoding, against its source."""

    def step(self, samples: Sequence[Sample], run: Run) -> None:
        autoencoder = self._autoencoder
        values = torch.stack([_value(sample) for sample in samples]).to(self._device)
        sources = torch.stack([sample.source for sample in samples if sample.source is not None])

        def call(rows: list[int]) -> Tensor:
            latents = values[rows]
            if isinstance(autoencoder, Quantizing):
                latents = autoencoder.lookup(latents)
            return (
                (autoencoder.decode(latents) - sources[rows]).square().flatten(1).mean(1, keepdim=True)
            )  # (B, 1)

        kept = [sample.value for sample in samples]
        _finish(samples, run, call, self.fixed_rows)
        for sample, value in zip(samples, kept, strict=True):
            if sample.error is None:
                error = _value(sample).item()
                sample.psnr_db = min(MAX_PSNR_DB, 10 * math.log10(_PEAK_SQUARE / max(error, 1e-30)))
            sample.value = value


@dataclass
class _Search:
    search: CodeSearch | None = None  # from the first call on
    image: Tensor | None = None


class SearchStage:
    """Codes (*grid) of a signal → codes from which it is decoded better, over ``effort`` sweeps.

    Starts from the signal itself: it makes the nearest codes on its way. A few samples a step, each in a call
    of its own, so that its bits stay the same and the others of the engine wait little.
    """

    fixed_rows: Sequence[int] | None = None
    max_samples = 4
    reports_progress = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def start(self, sample: Sample) -> None:
        sample.state = _Search(image=_value(sample)[None])
        sample.value = None

    def num_calls(self, sample: Sample) -> int:
        return sample.spec.effort * CALLS_PER_SWEEP

    def step(self, samples: Sequence[Sample], run: Run) -> None:
        results = run(
            lambda rows: torch.cat([self._improve(samples[row]) for row in rows]), len(samples), None
        )
        for row, sample in enumerate(samples):
            if row in results.failures:
                sample.error = results.failures[row]
            elif results.values is not None:
                sample.value = results.values[row]
                sample.calls_done += 1
                if sample.calls_done == self.num_calls(sample) and not sample.state.search.is_finite.all():
                    sample.error = _not_finite(sample)

    def preview(self, samples: Sequence[Sample]) -> Tensor | None:
        return None

    def release(self, sample: Sample) -> None:
        sample.state = None

    def _improve(self, sample: Sample) -> Tensor:
        """Return the codes (1, h, w) after the next call."""
        state: _Search = sample.state
        if state.search is None:
            assert state.image is not None
            state.search = CodeSearch(self._tokenizer, state.image)
        codes = state.search.nearest if sample.value is None else sample.value[None]
        return state.search.improve(codes, sample.calls_done)


def _value(sample: Sample) -> Tensor:
    assert sample.value is not None
    return sample.value


def _encode(autoencoder: Autoencoder, signals: Tensor) -> Tensor:
    """Return codes (B, *grid), ``_NO_CODE`` where latents aren't finite; latents where there are no codes.

    Of a distribution, mean and standard deviation, one behind the other.
    """
    if isinstance(autoencoder, Probabilistic):
        return torch.cat(autoencoder.posterior(signals), 1)  # (B, 2·d, *grid)
    latents = autoencoder.encode(signals)
    if not isinstance(autoencoder, Quantizing):
        return latents
    codes = autoencoder.quantize(latents).codes
    is_finite = latents.isfinite().flatten(1).all(1).view(-1, *[1] * (codes.ndim - 1))
    return codes.where(is_finite, _NO_CODE)


def _latents(sample: Sample) -> Tensor:
    """Return the latents (d, *grid) of a sample whose value is mean and standard deviation (2·d, *grid)."""
    mean, std = _value(sample).contiguous().chunk(2)
    if not sample.spec.samples_posterior:
        return mean
    return mean + std * draw_noise(tuple(mean.shape), sample.spec.seed, sample.index)


def _quantize(autoencoder: Quantizing, latents: Tensor) -> Tensor:
    return autoencoder.quantize(latents).codes


def _decode(autoencoder: Autoencoder, values: Tensor) -> Tensor:
    """Return the signals (B, C, *size) of codes or latents."""
    return autoencoder.decode(autoencoder.lookup(values) if isinstance(autoencoder, Quantizing) else values)


def _not_finite(sample: Sample) -> NotFinite:
    return NotFinite(f"output {sample.index} became infinite or not a number")


def _finish(
    samples: Sequence[Sample],
    run: Run,
    call: Callable[[list[int]], Tensor],
    fixed_rows: Sequence[int] | None,
) -> None:
    """Make one call for all samples, and leave each its result, on the CPU, or its error.

    What is not finite, or ``_NO_CODE``, fails its sample.
    """
    results = run(call, len(samples), fixed_rows)
    for row, sample in enumerate(samples):
        sample.calls_done += 1
        if row in results.failures:
            sample.error = results.failures[row]
    if results.values is None:
        return
    whole = results.values
    is_good = (whole.isfinite() if whole.is_floating_point() else whole != _NO_CODE).flatten(1).all(1)
    values, are_good = fetch(whole, is_good)
    for sample, value, good in zip(samples, values, are_good.tolist(), strict=True):
        if sample.error is None:
            sample.value = value
            sample.error = None if good else _not_finite(sample)
