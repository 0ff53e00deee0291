"""An autoregressive prior: codes one after another, rows first, each drawn given those before it."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.conditioning import Conditions, drop_conditions
from models.options import AutoregressiveOptions
from models.priors.code_draws import DrawSettings, draw_next, generator_of
from models.priors.code_prior import CodePrior
from models.replay import Replayed
from models.stage import NotFinite, Rows, Run, Sample, padded
from models.transfers import fetch, send

_PLAN_SIZE = 4  # row of the cache, row that guidance leads away from, position, guidance scale


def autoregressive_loss(
    predict: Callable[[Tensor, Conditions], Tensor],
    codes: Tensor,
    conditions: Conditions,
    null: Conditions,
    generator: torch.Generator,
    *,
    condition_dropout: float,
) -> Tensor:
    """Return the mean cross-entropy, in nats a code, of codes (B, *grid) given those before each.

    conditions: B rows; ``condition_dropout`` of them are left out in favour of ``null``, one row.
    """
    kept = drop_conditions(conditions, null, condition_dropout, generator)
    return F.cross_entropy(predict(codes, kept).float(), codes)


class _Shaped(Protocol):
    """The codes that a network is made for."""

    @property
    def grid(self) -> tuple[int, ...]: ...
    @property
    def num_codes(self) -> int: ...
    @property
    def codebook_size(self) -> int: ...
    @property
    def common_code(self) -> int: ...


class _Cache(Protocol):
    """What a network knows of running rows; see ``CodeCache``."""

    num_prompt: int
    keys: Tensor
    values: Tensor

    @property
    def bytes_per_row(self) -> int: ...
    def begin(self, row: int, prefix: Any, /) -> None: ...


class _Network(Protocol):
    """What a stage needs of a network; what a prefix is, is between it and its cache."""

    cosines: Tensor

    @property
    def config(self) -> _Shaped: ...
    @property
    def no_code(self) -> int: ...
    def make_cache(self, num_rows: int) -> _Cache: ...
    def prefix(self, conditions: Conditions) -> Any: ...
    def decode(self, codes: Tensor, positions: Tensor, rows: Tensor, cache: Any, /) -> Tensor: ...


@dataclass(frozen=True)
class _Course:
    """Where a running sample is kept. is_guided: whether it has a row of its nulls, too."""

    slot: int
    options: AutoregressiveOptions
    is_guided: bool


class AutoregressiveStage:
    """Nothing → codes (*grid): one code of each sample a call, each sample at a position of its own.

    Running samples live in slots: a row of the cache of keys and values, another one for their nulls where
    they are guided, their codes so far, and the numbers that decide its draws, which come from a generator of
    (seed, index). A call writes keys and values at the position of each sample and reads those before, so it
    may be made again; positions move on after it.
    """

    reports_progress = True

    def __init__(self, network: _Network, num_slots: int) -> None:
        self.fixed_rows: Sequence[int] | None = None
        self.max_samples = num_slots
        self._network = network
        self._num_slots = num_slots
        self._free = list(range(num_slots))  # a heap: neighbours in the cache share a call's attention
        config, device = network.config, network.cosines.device
        self._grid, self._num_codes = config.grid, config.num_codes
        self._cache = network.make_cache(2 * num_slots)
        self._codes = torch.full((num_slots, self._num_codes), network.no_code, device=device)
        self._uniforms = torch.zeros(num_slots, self._num_codes, 2, dtype=torch.float64).to(device)
        self._replay = Replayed(self._advance, device)
        self._last_prefix: tuple[Conditions, Any] | None = None

    @property
    def bytes_per_sample(self) -> int:
        """The most memory that it keeps for a sample: keys and values, also those of its nulls."""
        return 2 * self._cache.bytes_per_row

    def start(self, sample: Sample) -> None:
        """Give the sample a slot, with its conditions and the numbers that its draws are made by."""
        spec = sample.spec
        options = spec.options
        assert isinstance(options, AutoregressiveOptions)
        assert spec.conditions is not None
        assert spec.null is not None
        slot = heapq.heappop(self._free)
        is_guided = options.guidance_scale != 1 and not spec.conditions.equals(spec.null)
        sample.state = _Course(slot, options, is_guided)
        self._cache.begin(slot, self._prefix(spec.conditions))
        if is_guided:
            self._cache.begin(self._num_slots + slot, self._prefix(spec.null))
        self._codes[slot] = self._network.no_code
        shape = self._uniforms.shape[1:]
        uniforms = torch.rand(shape, generator=generator_of(spec.seed, sample.index), dtype=torch.float64)
        self._uniforms[slot] = send(uniforms, self._uniforms.device)

    def num_calls(self, sample: Sample) -> int:
        return self._num_codes

    def release(self, sample: Sample) -> None:
        """Free the sample's slot."""
        if sample.state is not None:
            heapq.heappush(self._free, sample.state.slot)
            sample.state = None

    def preview(self, samples: Sequence[Sample]) -> Tensor:
        """Return codes (B, *grid): those drawn so far, and the most frequent one for the rest."""
        codes = self._codes[[sample.state.slot for sample in samples]]
        codes = codes.where(codes != self._network.no_code, self._network.config.common_code)
        return codes.unflatten(1, self._grid)

    def step(self, samples: Sequence[Sample], run: Run) -> None:
        """Draw the next code of each sample."""
        samples = sorted(samples, key=lambda sample: sample.state.slot)
        sizes = [1 + sample.state.is_guided for sample in samples]
        results = run(
            lambda items: self._call([samples[i] for i in items]), len(samples), self.fixed_rows, sizes
        )
        self._draw(samples, results)

    @torch.inference_mode()
    def pretend(self, sample: Sample, calls_done: int) -> None:
        """Let a started sample be as if it had had so many calls, by random codes, keys and values."""
        slot, generator = sample.state.slot, generator_of(sample.spec.seed, sample.index)
        sample.calls_done = calls_done
        size = self._network.config.codebook_size
        codes = torch.randint(size, (calls_done,), generator=generator)
        self._codes[slot, :calls_done] = send(codes, self._codes.device)
        start = self._cache.num_prompt
        for table in (self._cache.keys, self._cache.values):
            past = table[:, slot, :, start : start + calls_done]
            past.copy_(torch.randn(past.shape, generator=generator))

    def _prefix(self, conditions: Conditions) -> Any:
        """Return the prefix of one row; of several samples that ask for the same, it is made once."""
        if self._last_prefix is None or not self._last_prefix[0].equals(conditions):
            self._last_prefix = conditions, self._network.prefix(conditions)
        return self._last_prefix[1]

    def _call(self, samples: Sequence[Sample]) -> Tensor:
        """Return the guided logits (B, codebook) of samples' next codes."""
        plan = self._plan(samples)
        if self.fixed_rows is None:
            return self._advance(send(plan, self._codes.device))[: len(samples)]
        return self._replay(plan)[: len(samples)]

    def _plan(self, samples: Sequence[Sample]) -> Tensor:
        """Return what a call is to do (rows, ``_PLAN_SIZE``) int32; the scale as an integer of the same bits.

        The samples' own rows come first, then those of their nulls, then padding, which repeats the last.
        """
        own: list[list[int]] = []
        nulls: list[list[int]] = []
        for row, sample in enumerate(samples):
            course: _Course = sample.state
            position = sample.calls_done
            away_from = len(samples) + len(nulls) if course.is_guided else row
            own.append([course.slot, away_from, position])
            if course.is_guided:
                nulls.append([self._num_slots + course.slot, away_from, position])
        places = own + nulls
        places += (padded(len(places), self.fixed_rows) - len(places)) * places[-1:]
        scales = [sample.state.options.guidance_scale for sample in samples]
        scales += (len(places) - len(own)) * [1.0]
        whole = torch.tensor(places, dtype=torch.int32)
        return torch.cat([whole, torch.tensor(scales)[:, None].view(torch.int32)], dim=1)

    def _advance(self, plan: Tensor) -> Tensor:
        """Return the guided logits (rows, codebook) float32 of a plan's rows."""
        rows, away_from, positions = plan[:, :3].long().unbind(1)
        scales = plan[:, 3:].view(torch.float32)  # (rows, 1)
        before = self._codes[rows % self._num_slots, (positions - 1).clamp(min=0)]
        before = torch.where(positions > 0, before, self._network.no_code)
        logits = self._network.decode(before, positions, rows, self._cache).float()  # (rows, codebook)
        nulls = logits[away_from]
        return nulls + scales * (logits - nulls)

    def _draw(self, samples: Sequence[Sample], results: Rows) -> None:
        """Draw from what a call gave, and end the samples that had their last."""
        for row, error in results.failures.items():
            samples[row].error = error
        if results.values is None:
            return
        device = self._codes.device
        slots = send(torch.tensor([sample.state.slot for sample in samples]), device)
        positions = send(torch.tensor([sample.calls_done for sample in samples]), device)
        settings = DrawSettings.of([sample.state.options for sample in samples], device)
        are_finite = results.values.isfinite().all(1)
        logits = torch.where(are_finite[:, None], results.values, 0)
        drawn = draw_next(logits, settings, self._uniforms[slots, positions], self._codes[slots], positions)
        self._codes[slots, positions] = torch.where(are_finite, drawn, self._network.no_code)
        ended = []
        for sample in samples:
            sample.calls_done += 1
            if sample.calls_done == self._num_codes and sample.error is None:
                ended.append(sample)
        if not ended:
            return
        codes = self._codes[[sample.state.slot for sample in ended]]
        are_whole = fetch((codes != self._network.no_code).all(1))[0].tolist()
        for sample, row, is_whole in zip(ended, codes, are_whole, strict=True):
            sample.value = row.view(self._grid)
            if not is_whole:
                sample.error = NotFinite(f"output {sample.index} became infinite or not a number")


class AutoregressivePrior(CodePrior):
    """An autoregressive prior as a pipeline has it: the network, and the stage that samples with it."""

    is_causal = True

    def make_stage(self, num_slots: int) -> AutoregressiveStage:
        """Return the stage that samples, for at most ``num_slots`` samples at a time."""
        return AutoregressiveStage(self.network, num_slots)
