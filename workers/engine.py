"""The running batch: images of many requests, each at its own step, advanced together.

One ``step`` gives every running image one call of its sampler, in one batch for each pipeline, then
decodes the images that ended. Images start and end between steps, so no request waits for the end of
another. Encode and decode requests ride along, one batch a step.

No image's bytes depend on the batch it was computed in: its noise comes from (seed, index) alone, and
a row's bits from nothing but the row. The prior gives that on a CPU in bfloat16 at any batch size; the
tokenizer computes in float32, where it does not hold, so it always runs on ``TOKENIZER_ROWS`` rows,
padded. ``tests/workers/test_engine.py`` proves it over random mixes.
"""

import base64
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from models.flow import draw_noise
from models.pipeline import Pipeline
from models.samplers import Call, guide, is_guided, make_calls, take_step
from workers.errors import InternalError, NotFinite, OutOfMemory, ServiceError
from workers.images import Pixels, load_image
from workers.messages import (
    CodesInfo,
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    Progress,
)
from workers.work import Finished, Work

logger = logging.getLogger(__name__)

TOKENIZER_ROWS = 4


@dataclass
class _Job:
    """A generate or decode request on its way; ``images`` and ``codes`` fill up by index."""

    id: str
    request: GenerateRequest | DecodeRequest
    pipeline: Pipeline
    calls: list[Call]
    num_images: int
    num_started: int = 0
    calls_done: int = 0
    images: dict[int, Pixels] = field(default_factory=dict)
    codes: dict[int, Tensor] = field(default_factory=dict)
    error: ServiceError | None = None

    @property
    def has_ended(self) -> bool:
        return self.error is not None or len(self.images) == self.num_images


@dataclass
class _Sample:
    """One image of a generate job between noise and data; x and m as ``samplers.take_step`` has them."""

    job: _Job
    index: int
    x: Tensor
    m: Tensor
    position: int = 0

    @property
    def call(self) -> Call:
        return self.job.calls[self.position]

    @property
    def has_ended(self) -> bool:
        return self.position == len(self.job.calls)


@dataclass(frozen=True)
class _Grid:
    """One grid of codes that waits for its decoding."""

    job: _Job
    index: int
    codes: Tensor


class Engine:
    """Computes jobs of all pipelines, at most ``max_batch_size`` images at once. One thread uses it.

    ``is_batch_padded`` always gives the prior the same number of rows. On a CPU it costs time for
    nothing; on a GPU it makes an image's bytes independent of its batch, where they otherwise agree
    only closely.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        max_batch_size: int = 32,
        *,
        is_batch_padded: bool = False,
    ) -> None:
        self._pipelines = pipelines
        self._max_batch_size = max_batch_size
        self._prior_rows = 2 * max_batch_size if is_batch_padded else None
        self._max_rows = 2 * max_batch_size  # guided samples have two; halved when memory runs out
        self._jobs: dict[str, _Job] = {}
        self._starting: deque[_Job] = deque()
        self._running: list[_Sample] = []
        self._decoding: deque[_Grid] = deque()
        self._encoding: deque[tuple[str, EncodeRequest]] = deque()

    @property
    def free_slots(self) -> int:
        """How many images could start now."""
        waiting = sum(job.num_images - job.num_started for job in self._starting)
        taken = len(self._running) + waiting + len(self._decoding) + len(self._encoding)
        return max(0, self._max_batch_size - taken)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._jobs or self._encoding)

    def warm_up(self) -> None:
        """Compute once what requests will ask for, so that the first one is as quick as the next."""
        for name, pipeline in self._pipelines.items():
            defaults = pipeline.config.defaults
            request = GenerateRequest(
                pipeline=name,
                class_label=0,
                seed=0,
                num_steps=2,
                guidance_scale=defaults.guidance_scale,
                sampler=defaults.sampler,
            )
            self.admit([Work("warm-up", request)])
            while not self.is_idle:
                self.step()

    def admit(self, work: Sequence[Work]) -> None:
        """Take jobs in, also more than there are free slots.

        Requests must be resolved (``Catalog.resolve``): pipeline, seed, steps and so on explicit.
        """
        for item in work:
            request = item.request
            if isinstance(request, EncodeRequest):
                self._encoding.append((item.job_id, request))
                continue
            pipeline = self._pipelines[request.pipeline or ""]
            if isinstance(request, DecodeRequest):
                job = _Job(item.job_id, request, pipeline, [], len(request.codes))
                for index, codes in enumerate(request.codes):
                    self._decoding.append(_Grid(job, index, torch.tensor(codes)))
            else:
                assert request.sampler is not None
                assert request.num_steps is not None
                calls = make_calls(request.sampler, request.num_steps)
                job = _Job(item.job_id, request, pipeline, calls, request.num_images)
                self._starting.append(job)
            self._jobs[job.id] = job

    def drop(self, job_ids: Collection[str]) -> None:
        """Forget jobs; of these nothing comes."""
        for job_id in job_ids:
            self._jobs.pop(job_id, None)
        self._starting = deque(job for job in self._starting if job.id not in job_ids)
        self._running = [sample for sample in self._running if sample.job.id not in job_ids]
        self._decoding = deque(grid for grid in self._decoding if grid.job.id not in job_ids)
        self._encoding = deque(item for item in self._encoding if item[0] not in job_ids)

    def progress(self) -> Mapping[str, Progress]:
        """How far the jobs are that have steps."""
        return {
            job.id: Progress(step=job.calls_done, total=len(job.calls) * job.num_images)
            for job in self._jobs.values()
            if job.calls
        }

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Do a little of everything that runs, and return the jobs that have ended."""
        self._start_samples()
        for pipeline in self._pipelines.values():
            self._advance([sample for sample in self._running if sample.job.pipeline is pipeline])
        self._finish_samples()
        for pipeline in self._pipelines.values():
            self._decode([grid for grid in self._decoding if grid.job.pipeline is pipeline], pipeline)
        finished = self._encode()
        ended = [job for job in self._jobs.values() if job.has_ended]
        self.drop({job.id for job in ended})
        return finished + [_finish(job) for job in ended]

    def _start_samples(self) -> None:
        """Fill free slots, one image of each waiting job in turn, so that small jobs pass large ones."""
        while self._starting and len(self._running) < self._max_batch_size:
            job = self._starting.popleft()
            assert isinstance(job.request, GenerateRequest)
            assert job.request.seed is not None
            prior = job.pipeline.config.prior
            x = draw_noise((prior.latent_channels, *prior.grid), job.request.seed, job.num_started)
            x = x.to(job.pipeline.device)
            self._running.append(_Sample(job, job.num_started, x, torch.zeros_like(x)))
            job.num_started += 1
            if job.num_started < job.num_images:
                self._starting.append(job)

    def _advance(self, samples: list[_Sample]) -> None:
        """Make one call of the prior for every sample, and the update that follows it."""
        if not samples:
            return
        pipeline = samples[0].job.pipeline
        null_label = pipeline.prior.null_label
        interval = pipeline.config.defaults.guidance_interval
        labels = [_class_label(sample, null_label) for sample in samples]
        guided = [
            i
            for i, sample in enumerate(samples)
            if labels[i] != null_label and is_guided(sample.call.t, _guidance_scale(sample), interval)
        ]
        order = [*range(len(samples)), *guided]
        x = torch.stack([samples[i].x for i in order])
        t = x.new_tensor([samples[i].call.t for i in order])
        y = torch.tensor(labels + [null_label] * len(guided), device=x.device)
        velocities, failures = self._in_batches(
            lambda rows: pipeline.prior(x[rows], t[rows], y[rows]), len(order), self._prior_rows
        )
        velocities = velocities.float()
        v = velocities[: len(samples)]
        if guided:
            scales = v.new_tensor([_guidance_scale(samples[i]) for i in guided])
            v[guided] = guide(v[guided], velocities[len(samples) :], scales)
        m = torch.stack([sample.m for sample in samples])
        coefficients = x.new_tensor([sample.call.coefficients for sample in samples])
        next_x, next_m = take_step(x[: len(samples)], v, m, coefficients)
        is_finite = next_x.flatten(1).isfinite().all(1).tolist()
        for i, sample in enumerate(samples):
            sample.x, sample.m = next_x[i], next_m[i]
            sample.position += 1
            sample.job.calls_done += 1
            if not is_finite[i]:
                self._fail(sample.job, NotFinite(f"image {sample.index} became infinite or not a number"))
        for row, error in failures.items():
            self._fail(samples[order[row]].job, error)

    def _finish_samples(self) -> None:
        """Snap the samples that have ended to codes, for decoding."""
        ended = [sample for sample in self._running if sample.has_ended or sample.job.error]
        self._running = [sample for sample in self._running if not (sample.has_ended or sample.job.error)]
        for sample in ended:
            if sample.job.error is None:
                codes = sample.job.pipeline.tokenizer.quantize(sample.x[None]).codes[0]
                self._decoding.append(_Grid(sample.job, sample.index, codes))

    def _decode(self, grids: list[_Grid], pipeline: Pipeline) -> None:
        """Turn at most a batch of grids into pixels."""
        grids = grids[: self._max_batch_size]
        if not grids:
            return
        codes = torch.stack([grid.codes for grid in grids]).to(pipeline.device)
        decoded, failures = self._in_batches(
            lambda rows: pipeline.tokenizer.decode_codes(codes[rows]), len(grids), TOKENIZER_ROWS
        )
        pixels = to_pixels(decoded)
        done = set(map(id, grids))
        self._decoding = deque(grid for grid in self._decoding if id(grid) not in done)
        for row, grid in enumerate(grids):
            if row in failures:
                self._fail(grid.job, failures[row])
            else:
                grid.job.images[grid.index] = pixels[row]
                grid.job.codes[grid.index] = grid.codes

    def _encode(self) -> list[Finished]:
        """Turn at most a batch of images of one pipeline into codes."""
        if not self._encoding:
            return []
        name = self._encoding[0][1].pipeline or ""
        pipeline = self._pipelines[name]
        of_pipeline = (item for item in self._encoding if item[1].pipeline == name)
        chosen = list(islice(of_pipeline, self._max_batch_size))
        config = pipeline.config.tokenizer
        finished, job_ids, images = [], [], []
        for job_id, request in chosen:
            try:
                data = base64.b64decode(request.image)
                images.append(load_image(data, config.image_size_px, config.image_channels))
                job_ids.append(job_id)
            except ServiceError as error:
                finished.append(Finished(job_id, name, error=error))
        self.drop({job_id for job_id, _ in chosen})
        if not images:
            return finished
        pixels = torch.from_numpy(np.stack(images)).to(pipeline.device).movedim(-1, 1)
        batch = pixels.float() / 127.5 - 1
        codes, failures = self._in_batches(
            lambda rows: pipeline.tokenizer.quantize(pipeline.tokenizer.encode(batch[rows])).codes,
            len(images),
            TOKENIZER_ROWS,
        )
        for row, job_id in enumerate(job_ids):
            if row in failures:
                finished.append(Finished(job_id, name, error=failures[row]))
            else:
                finished.append(Finished(job_id, name, codes=_codes_info(pipeline, [codes[row].long()])))
        return finished

    def _in_batches(
        self, compute: Callable[[list[int]], Tensor], num_rows: int, fixed_rows: int | None
    ) -> tuple[Tensor, dict[int, ServiceError]]:
        """Return ``compute``'s results for rows 0, 1, …, and the errors of rows that failed alone.

        ``compute`` gets row numbers: ``fixed_rows`` at once, the last batch padded by repeating a row;
        or, without, as many as memory takes. When it fails, halves are tried, down to one row: so
        memory that runs out costs speed, and one bad row costs nobody else. Failed rows hold zeros.
        """
        results: dict[int, Tensor] = {}
        failures: dict[int, ServiceError] = {}
        pending = deque([list(range(num_rows))])
        while pending:
            part = pending.popleft()
            limit = fixed_rows or self._max_rows
            if len(part) > limit:
                pending.extendleft([part[limit:], part[:limit]])
                continue
            padding = [part[-1]] * (fixed_rows - len(part)) if fixed_rows else []
            try:
                results.update(zip(part, compute(part + padding), strict=False))
            except Exception as error:  # the job boundary: whatever it is, it ends no more than a job
                is_memory = _is_out_of_memory(error)
                if len(part) == 1:
                    logger.exception("a row failed alone")
                    failures[part[0]] = (
                        OutOfMemory("this worker has not enough memory for the request, even alone")
                        if is_memory
                        else InternalError("the model failed on this request")
                    )
                    continue
                half = -(-len(part) // 2)
                if is_memory:
                    self._max_rows = max(1, min(self._max_rows, half))
                    logger.warning("out of memory: batches have at most %d rows from now on", self._max_rows)
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
                pending.extendleft([part[half:], part[:half]])
        blank = torch.zeros_like(next(iter(results.values()))) if results else torch.zeros(())
        return torch.stack([results.get(row, blank) for row in range(num_rows)]), failures

    def _fail(self, job: _Job, error: ServiceError) -> None:
        if job.error is None:
            job.error = error


def to_pixels(images: Tensor) -> list[Pixels]:
    """Return images (B, C, H, W) in [-1, 1] as arrays (H, W, C) of uint8."""
    bytes_ = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return list(bytes_.movedim(1, -1).cpu().contiguous().numpy())


def _finish(job: _Job) -> Finished:
    name = job.pipeline.config.name
    if job.error is not None:
        return Finished(job.id, name, error=job.error)
    images = tuple(job.images[i] for i in range(job.num_images))
    codes = None
    if isinstance(job.request, GenerateRequest) and job.request.return_codes:
        codes = _codes_info(job.pipeline, [job.codes[i] for i in range(job.num_images)])
    return Finished(job.id, name, images, codes)


def _codes_info(pipeline: Pipeline, codes: list[Tensor]) -> CodesInfo:
    config = pipeline.config
    return CodesInfo(
        codes=[grid.tolist() for grid in codes],
        grid=config.tokenizer.grid,
        codebook_size=config.tokenizer.codebook_size,
        tokenizer=config.tokenizer_fingerprint,
    )


def _class_label(sample: _Sample, null_label: int) -> int:
    label = getattr(sample.job.request, "class_label", None)
    return label if isinstance(label, int) else null_label


def _guidance_scale(sample: _Sample) -> float:
    scale = getattr(sample.job.request, "guidance_scale", None)
    return 1.0 if scale is None else scale


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)
