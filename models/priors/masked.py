"""A masked prior: codes in any order, many at each step, given those that are there already.

One network and one loss; two ways to decide which draws of a step are kept.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.conditioning import Conditions, drop_conditions
from models.networks.code_transformer import CodeTransformer
from models.networks.uvit import UVit
from models.options import MaskedOptions
from models.priors.code_draws import draw_codes, generator_of
from models.priors.code_prior import CodePrior
from models.priors.known_codes import new_codes, num_edit_steps
from models.replay import Replayed
from models.stage import NotFinite, Rows, Run, Sample, padded
from models.transfers import fetch, send

# --- learning --------------------------------------------------------------------------------------------


def draw_masked_shares(num_samples: int, generator: torch.Generator) -> Tensor:
    """Return the shares of codes to mask (B,) in (0, 1]: uniform, and spread evenly over a batch.

    As Sahoo et al. 2024 (arXiv:2406.07524) draw times, so that batches differ less.
    """
    start = torch.rand(1, generator=generator, device=generator.device)
    steps = torch.arange(num_samples, device=generator.device) / num_samples
    return 1 - (start + steps) % 1


def masked_loss(
    predict: Callable[[Tensor, Conditions], Tensor],
    codes: Tensor,
    conditions: Conditions,
    null: Conditions,
    generator: torch.Generator,
    *,
    no_code: int,
    condition_dropout: float,
    likelihood_weight: float = 1.0,
) -> Tensor:
    """Return a bound on the negative log-likelihood of codes (B, *grid), in nats a code.

    Of each sample a share of t codes is masked, and the cross-entropy of these weighs 1/t: the continuous
    time loss of absorbing-state diffusion with α_t = 1 − t (Sahoo et al. 2024, arXiv:2406.07524, equation
    11). With a ``likelihood_weight`` below 1 it weighs 1/t^weight: at 0, every masked code weighs the same,
    as in MaskGIT (Chang et al. 2022, arXiv:2202.04200), which is no bound but spends more on samples of
    which little is known yet.

    conditions: B rows; ``condition_dropout`` of them are left out in favour of ``null``, one row.
    """
    t = draw_masked_shares(len(codes), generator)
    chances = torch.rand(codes.shape, generator=generator, device=generator.device)
    t, chances = t.to(codes.device).view(-1, *[1] * (codes.ndim - 1)), chances.to(codes.device)
    is_masked = chances < t
    kept = drop_conditions(conditions, null, condition_dropout, generator)
    logits = predict(codes.masked_fill(is_masked, no_code), kept).float()  # (B, codebook, *grid)
    errors = F.cross_entropy(logits, codes, reduction="none")  # (B, *grid)
    return (errors * is_masked / t**likelihood_weight).mean()


# --- sampling --------------------------------------------------------------------------------------------


def num_masked_after(step: int, num_steps: int, num_codes: int) -> int:
    """Return how many codes are masked after ``step`` (from 0), on MaskGIT's cosine schedule.

    Every step fills in at least one code, as long as there are steps for it.
    """
    if step + 1 >= num_steps:
        return 0
    share = math.cos(math.pi / 2 * (step + 1) / num_steps)
    return min(int(share * num_codes), max(0, num_codes - step - 1))


def keep_surest(
    log_shares: Tensor, is_masked: Tensor, num_masked: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """Return which draws to keep (N,), so that ``num_masked`` codes stay masked: the surest.

    log_shares: (N,), of the draws. temperature: of the Gumbel noise on how sure they are.
    """
    uniforms = torch.rand(len(log_shares), generator=generator, dtype=torch.float64)
    noise = -torch.log(-torch.log(uniforms.clamp(min=1e-12)))
    sureness = (log_shares.double() + temperature * noise).masked_fill(~is_masked, -math.inf)
    num_kept = max(0, int(is_masked.sum()) - num_masked)
    is_kept = torch.zeros_like(is_masked)
    is_kept[sureness.topk(num_kept).indices] = True
    return is_kept


def keep_at_random(is_masked: Tensor, step: int, num_steps: int, generator: torch.Generator) -> Tensor:
    """Return which draws to keep (N,): each of the masked with a chance of (t − s)/t.

    t and s: shares of codes that are masked before and after the step, 1 at first and 0 at last.
    """
    chance = 1 / (num_steps - step)
    return is_masked & (torch.rand(len(is_masked), generator=generator, dtype=torch.float64) < chance)


_PLAN_SIZE = 5  # slot, place in the conditions, row that guidance leads away from; scale, temperature


@dataclass(frozen=True)
class _Course:
    """Where a running sample is kept, and what its draws come from.

    num_new: how many codes it fills in, in ``num_steps``.
    """

    slot: int
    options: MaskedOptions
    is_guided: bool
    generator: torch.Generator
    num_new: int
    num_steps: int


class MaskedStage:
    """Nothing → codes (*grid): one call of the network for each sample, each at a step of its own.

    A call draws all masked codes; which of them are kept is decided after it, so it may be made again. Of a
    sample with a source, the value is the source's codes: those that its mask leaves are kept from the start,
    and of the others a share of 1 − ``strength``, drawn by the sample's generator.
    """

    reports_progress = True

    def __init__(self, network: CodeTransformer | UVit, num_slots: int) -> None:
        self.fixed_rows: Sequence[int] | None = None
        self.max_samples = num_slots
        self._network = network
        self._num_slots = num_slots
        self._free = list(reversed(range(num_slots)))
        config, device = network.config, network.null_conditions().labels.device
        self._grid: tuple[int, ...] = config.grid
        self._codes = torch.full((num_slots, config.num_codes), network.no_code, device=device)
        self._likeliest = torch.zeros_like(self._codes)  # as the last call had it
        self._uniforms = torch.zeros(num_slots, config.num_codes, dtype=torch.float64, device=device)
        self._conditions = network.null_conditions(2 * num_slots).clone()  # a sample's own, then its nulls
        self._replay = Replayed(self._advance, device)

    def start(self, sample: Sample) -> None:
        """Give the sample a slot, with the codes masked that are to be drawn."""
        spec = sample.spec
        options = spec.options
        assert isinstance(options, MaskedOptions)
        assert spec.conditions is not None
        assert spec.null is not None
        slot = self._free.pop()
        generator = generator_of(spec.seed, sample.index)
        num_new, num_steps = self._codes.shape[1], options.num_steps
        self._codes[slot] = self._network.no_code
        if sample.source is not None:
            is_new = new_codes(self._grid, spec.mask, options.strength, generator).flatten()
            assert sample.value is not None
            known = sample.value.flatten().cpu().masked_fill(is_new, self._network.no_code)
            self._codes[slot] = send(known, self._codes.device)
            sample.value = None
            num_new = int(is_new.sum())
            num_steps = num_edit_steps(options, num_new, len(is_new))
        self._conditions.write(slot, spec.conditions)
        self._conditions.write(self._num_slots + slot, spec.null)
        is_guided = options.guidance_scale != 1 and not spec.conditions.equals(spec.null)
        sample.state = _Course(slot, options, is_guided, generator, num_new, num_steps)
        self._draw_uniforms(sample.state)

    def num_calls(self, sample: Sample) -> int:
        course: _Course = sample.state
        return course.num_steps

    def release(self, sample: Sample) -> None:
        """Free the sample's slot."""
        if sample.state is not None:
            self._free.append(sample.state.slot)
            sample.state = None

    def preview(self, samples: Sequence[Sample]) -> Tensor:
        """Return codes (B, *grid): those that are kept so far, and the likeliest for the rest."""
        slots = [sample.state.slot for sample in samples]
        codes = self._codes[slots]
        return codes.where(codes != self._network.no_code, self._likeliest[slots]).unflatten(1, self._grid)

    def step(self, samples: Sequence[Sample], run: Run) -> None:
        """Draw the masked codes of each sample, and keep some."""
        sizes = [1 + sample.state.is_guided for sample in samples]
        results = run(
            lambda items: self._call([samples[i] for i in items]), len(samples), self.fixed_rows, sizes
        )
        self._keep(samples, results)

    @torch.inference_mode()
    def pretend(self, sample: Sample, calls_done: int) -> None:
        """Let a started sample be as if it had had so many calls, by random codes."""
        course: _Course = sample.state
        share = calls_done / course.num_steps
        num_codes = self._codes.shape[1]
        codes = torch.randint(self._network.no_code, (num_codes,), generator=course.generator)
        is_masked = torch.rand(num_codes, generator=course.generator) >= share
        self._codes[course.slot] = send(
            codes.masked_fill(is_masked, self._network.no_code), self._codes.device
        )

    def _draw_uniforms(self, course: _Course) -> None:
        uniforms = torch.rand(self._codes.shape[1], generator=course.generator, dtype=torch.float64)
        self._uniforms[course.slot] = send(uniforms, self._uniforms.device)

    def _call(self, samples: Sequence[Sample]) -> Tensor:
        """Return draws of all codes of samples (B, 3, N): see ``_advance``."""
        plan = self._plan(samples)
        if self.fixed_rows is None:
            return self._advance(send(plan, self._codes.device))[: len(samples)]
        return self._replay(plan)[: len(samples)]

    def _plan(self, samples: Sequence[Sample]) -> Tensor:
        """Return what a call is to do (rows, ``_PLAN_SIZE``) int32; floats as integers of the same bits.

        The samples' own rows come first, then those of their nulls, then padding, which repeats the last.
        """
        own: list[list[int]] = []
        nulls: list[list[int]] = []
        for row, sample in enumerate(samples):
            course: _Course = sample.state
            away_from = len(samples) + len(nulls) if course.is_guided else row
            own.append([course.slot, course.slot, away_from])
            if course.is_guided:
                nulls.append([course.slot, self._num_slots + course.slot, away_from])
        places = own + nulls
        places += (padded(len(places), self.fixed_rows) - len(places)) * places[-1:]
        options = [sample.state.options for sample in samples]
        numbers = [[each.guidance_scale, each.temperature] for each in options]
        numbers += (len(places) - len(own)) * [[1.0, 1.0]]
        whole = torch.tensor(places, dtype=torch.int32)
        return torch.cat([whole, torch.tensor(numbers, dtype=torch.float32).view(torch.int32)], dim=1)

    def _advance(self, plan: Tensor) -> Tensor:
        """Return of a plan's rows the codes drawn, the logarithms of their shares, and the likeliest codes.

        (rows, 3, N) float32, which holds every code exactly.
        """
        slots, places, away_from = plan[:, :3].long().unbind(1)
        scales, temperatures = (each.view(-1, 1, 1) for each in plan[:, 3:].view(torch.float32).unbind(1))
        codes = self._codes[slots].unflatten(1, self._grid)
        logits = self._network(codes, self._conditions[places]).float()  # (rows, codebook, *grid)
        logits = logits.flatten(2).transpose(1, 2)  # (rows, N, codebook)
        nulls = logits[away_from]
        logits = nulls + scales * (logits - nulls)
        likeliest = logits.argmax(-1)  # (rows, N)
        is_greedy = temperatures == 0
        log_shares = (logits / torch.where(is_greedy, 1, temperatures)).log_softmax(-1)
        drawn = draw_codes(log_shares.softmax(-1), self._uniforms[slots])
        drawn = torch.where(is_greedy[:, :, 0], likeliest, drawn)
        return torch.stack([drawn, log_shares.gather(-1, drawn[..., None])[..., 0], likeliest], dim=1)

    def _keep(self, samples: Sequence[Sample], results: Rows) -> None:
        """Keep some draws of a call, and end the samples that had their last."""
        for row, error in results.failures.items():
            samples[row].error = error
        if results.values is None:
            return
        slots = [sample.state.slot for sample in samples]
        values, codes = fetch(results.values, self._codes[slots])
        kept = []
        for sample, (drawn, log_shares, _), before in zip(samples, values, codes, strict=True):
            kept.append(before.where(~self._is_kept(sample, before, log_shares), drawn.long()))
            sample.calls_done += 1
            if sample.error is None and not log_shares.isfinite().all():
                sample.error = NotFinite(f"output {sample.index} became infinite or not a number")
            elif sample.error is None and sample.calls_done == sample.state.num_steps:
                sample.value = kept[-1].view(self._grid).to(self._codes.device)
            self._draw_uniforms(sample.state)
        self._codes[slots] = send(torch.stack(kept), self._codes.device)
        self._likeliest[slots] = results.values[:, 2].long()

    def _is_kept(self, sample: Sample, before: Tensor, log_shares: Tensor) -> Tensor:
        """Return which draws of a sample are kept (N,) in its next step."""
        course: _Course = sample.state
        options, step = course.options, sample.calls_done
        is_masked = before == self._network.no_code
        if options.sampler == "ancestral":
            return keep_at_random(is_masked, step, course.num_steps, course.generator)
        num_masked = num_masked_after(step, course.num_steps, course.num_new)
        temperature = options.choice_temperature * (1 - (step + 1) / course.num_steps)
        return keep_surest(log_shares, is_masked, num_masked, temperature, course.generator)


class MaskedPrior(CodePrior):
    """A masked prior as a pipeline has it: the network, and the stage that samples with it."""

    is_causal = False

    def make_stage(self, num_slots: int) -> MaskedStage:
        """Return the stage that samples, for at most ``num_slots`` samples at a time."""
        return MaskedStage(self.network, num_slots)
