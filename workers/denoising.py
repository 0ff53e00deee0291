"""Images on their way from noise to data, and the call of the prior that takes them a step further."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from models.conditioning import Conditions, stack_conditions
from models.flow import denoised
from models.pipeline import Pipeline
from models.prior import DiT
from models.samplers import Call, guide, is_guided, take_step
from models.step_cache import StepCache
from workers.errors import NotFinite, ServiceError
from workers.images import Pixels
from workers.messages import DecodeRequest, GenerateRequest
from workers.row_batches import RowBatches


@dataclass(frozen=True)
class Asked:
    """What a generate request asks for, and what guidance leads away from: a row each."""

    conditions: Conditions
    null: Conditions
    can_be_guided: bool  # the two rows differ
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, request: GenerateRequest, pipeline: Pipeline) -> "Asked":
        """Encode what a resolved request asks for."""
        labels = {"class_label": request.class_label, "style": request.style, "group": request.group}
        numbers = {name: label for name, label in labels.items() if isinstance(label, int)}
        conditions = pipeline.conditions(prompt=request.prompt, **numbers)
        null = pipeline.conditions(prompt=request.negative_prompt)
        return cls(conditions, null, not conditions.equals(null), _warnings(request, pipeline))


def _warnings(request: GenerateRequest, pipeline: Pipeline) -> tuple[str, ...]:
    encoder = pipeline.prompt_encoder
    if encoder is None:
        return ()
    prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    limit = encoder.config.max_tokens
    warnings = [
        f"{field}: longer than {limit} tokens, so its end was left out"
        for field, prompt in prompts.items()
        if prompt is not None and encoder.encode(prompt).is_cut
    ]
    if request.negative_prompt is not None and request.guidance_scale == 1.0:
        warnings.append("negative_prompt: without effect, as guidance_scale is 1")
    return tuple(warnings)


@dataclass
class Job:
    """A generate or decode request on its way; ``images`` and ``codes`` fill up by index."""

    id: str
    request: GenerateRequest | DecodeRequest
    pipeline: Pipeline
    calls: list[Call]
    num_images: int
    asked: Asked | None = None  # by a generate request
    num_started: int = 0
    calls_done: int = 0
    preview_due_s: float = 0.0  # on time.monotonic
    images: dict[int, Pixels] = field(default_factory=dict)
    codes: dict[int, Tensor] = field(default_factory=dict)
    error: ServiceError | None = None

    @property
    def has_ended(self) -> bool:
        return self.error is not None or len(self.images) == self.num_images

    def fail(self, error: ServiceError) -> None:
        """Note the first error."""
        if self.error is None:
            self.error = error


@dataclass(eq=False)
class Sample:
    """One image of a generate job between noise and data; x and m as ``samplers.take_step`` has them.

    When ``wants_prediction``, the next call leaves there what data it points to.
    """

    job: Job
    request: GenerateRequest
    index: int
    x: Tensor
    m: Tensor
    cache: StepCache | None = None
    null_cache: StepCache | None = None  # of the unconditional row
    position: int = 0
    wants_prediction: bool = False
    prediction: Tensor | None = None
    num_previews: int = 0

    @property
    def call(self) -> Call:
        return self.job.calls[self.position]

    @property
    def has_ended(self) -> bool:
        return self.position == len(self.job.calls) or self.job.error is not None

    @property
    def asked(self) -> Asked:
        assert self.job.asked is not None
        return self.job.asked

    @property
    def guidance_scale(self) -> float:
        return 1.0 if self.request.guidance_scale is None else self.request.guidance_scale

    @property
    def is_guided(self) -> bool:
        """Whether the next call needs the unconditional row, too."""
        interval = self.job.pipeline.config.defaults.guidance_interval
        return self.asked.can_be_guided and is_guided(self.call.t, self.guidance_scale, interval)


def advance(
    pipeline: Pipeline, samples: list[Sample], batches: RowBatches, fixed_rows: int | None = None
) -> None:
    """Make one call of ``pipeline``'s prior for each of its samples, and the update that follows it."""
    guided = [i for i, sample in enumerate(samples) if sample.is_guided]
    order = [*range(len(samples)), *guided]
    x = torch.stack([samples[i].x for i in order])
    t = x.new_tensor([samples[i].call.t for i in order])
    nulls = [samples[i].asked.null for i in guided]
    y = stack_conditions([sample.asked.conditions for sample in samples] + nulls)
    caches = [sample.cache for sample in samples] + [samples[i].null_cache for i in guided]
    if any(caches):
        rows = _Rows(pipeline.prior, x, t, y, caches, [samples[i].position for i in order])
        velocities, failures = rows.compute(batches, fixed_rows)
    else:
        velocities, failures = batches.compute(
            lambda rows: pipeline.prior(x[rows], t[rows], y[rows]), len(order), fixed_rows
        )
    for row, error in failures.items():
        samples[order[row]].job.fail(error)
    if velocities is None:
        return
    velocities = velocities.float()
    v = velocities[: len(samples)]
    if guided:
        scales = v.new_tensor([samples[i].guidance_scale for i in guided])
        v[guided] = guide(v[guided], velocities[len(samples) :], scales)
    for i, sample in enumerate(samples):
        if sample.wants_prediction:
            sample.prediction = denoised(x[i : i + 1], v[i : i + 1], t[i : i + 1])
            sample.wants_prediction = False
    m = torch.stack([sample.m for sample in samples])
    coefficients = x.new_tensor([sample.call.coefficients for sample in samples])
    next_x, next_m = take_step(x[: len(samples)], v, m, coefficients)
    is_finite = next_x.flatten(1).isfinite().all(1).tolist()
    for i, sample in enumerate(samples):
        sample.x, sample.m = next_x[i], next_m[i]
        sample.position += 1
        sample.job.calls_done += 1
        if not is_finite[i]:
            sample.job.fail(NotFinite(f"image {sample.index} became infinite or not a number"))


@dataclass(frozen=True)
class _Rows:
    """The rows of one call of the prior, of which some reuse what an earlier call kept."""

    prior: DiT
    x: Tensor
    t: Tensor
    conditions: Conditions
    caches: list[StepCache | None]
    positions: list[int]

    def compute(
        self, batches: RowBatches, fixed_rows: int | None
    ) -> tuple[Tensor | None, dict[int, ServiceError]]:
        """Return the velocities as ``RowBatches.compute`` does: computing and reusing rows are two calls."""
        kept = {
            row: residual
            for row, cache in enumerate(self.caches)
            if cache is not None and (residual := cache.at(self.positions[row])) is not None
        }
        fresh = [row for row in range(len(self.caches)) if row not in kept]
        velocities = torch.zeros_like(self.x)
        failures: dict[int, ServiceError] = {}
        for part, call in ((fresh, self._call_fresh), (list(kept), partial(self._call_reusing, kept))):
            if part:
                results, failed = batches.compute(partial(_call_some, call, part), len(part), fixed_rows)
                failures.update({part[row]: error for row, error in failed.items()})
                if results is not None:
                    velocities[part] = results.float()
        return velocities, failures

    def _call_fresh(self, rows: list[int]) -> Tensor:
        velocities, residuals = self.prior.forward_cached(self.x[rows], self.t[rows], self.conditions[rows])
        for row, residual in zip(rows, residuals, strict=True):
            cache = self.caches[row]
            if cache is not None:
                cache.keep(residual, self.positions[row])
        return velocities

    def _call_reusing(self, kept: dict[int, Tensor], rows: list[int]) -> Tensor:
        residuals = torch.stack([kept[row] for row in rows])
        return self.prior.forward_cached(self.x[rows], self.t[rows], self.conditions[rows], residuals)[0]


def _call_some(call: Callable[[list[int]], Tensor], part: list[int], chosen: list[int]) -> Tensor:
    return call([part[i] for i in chosen])
