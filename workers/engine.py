"""The running batch: images of many requests, each at its own step, advanced together.

One ``step`` gives every running image one call of its sampler, in one batch for each pipeline, then
decodes the images that ended. Images start and end between steps, so no request waits for the end of
another. Decode requests ride along, one batch a step, and so does what ``workers/encoding.py`` does.

On a CPU the rows of a batch are shared out among lanes (``workers/lanes.py``).

No image's bytes depend on the batch it was computed in: its noise comes from (seed, index) alone, and
a row's bits from nothing but the row. The prior gives that on a CPU in bfloat16 at any batch size; the
tokenizer computes in float32, where it does not hold, so it always runs on ``TOKENIZER_ROWS`` rows,
padded; a search for codes, on the trials of one image. ``tests/workers/test_engine.py`` proves it over
random mixes.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from models.flow import draw_noise
from models.pipeline import Pipeline
from models.samplers import make_calls
from models.step_cache import StepCache
from workers.denoising import Asked, Job, Sample, advance
from workers.encoding import Encoding, codes_info
from workers.images import Pixels
from workers.lanes import Lanes
from workers.memory import num_that_fit
from workers.messages import DecodeRequest, EncodeRequest, GenerateRequest, Progress
from workers.row_batches import TOKENIZER_ROWS, RowBatches
from workers.work import Finished, Preview, Work

logger = logging.getLogger(__name__)

ROWS_PER_SAMPLE = 2  # of the prior, where guidance is applied
PREVIEW_EVERY_S = 0.5
PREVIEW_SHARE = 0.1  # of the engine's time, at most


@dataclass(frozen=True)
class _Grid:
    """One grid of codes that waits for its decoding."""

    job: Job
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
        self._is_batch_padded = is_batch_padded
        self._num_slots = dict.fromkeys(pipelines, max_batch_size)
        devices = {pipeline.device for pipeline in pipelines.values()}
        lanes = {device: Lanes.for_device(device) for device in devices}
        self._batches = {
            name: RowBatches(ROWS_PER_SAMPLE * max_batch_size, lanes[pipeline.device])
            for name, pipeline in pipelines.items()
        }
        self._jobs: dict[str, Job] = {}
        self._starting: deque[Job] = deque()
        self._running: list[Sample] = []
        self._decoding: deque[_Grid] = deque()
        self._encoding = Encoding(pipelines, self._batches, max_batch_size)
        self._previews: dict[str, Preview] = {}
        self._previews_due_s = 0.0

    @property
    def free_slots(self) -> int:
        """How many images could start now."""
        waiting = sum(job.num_images - job.num_started for job in self._starting)
        taken = len(self._running) + waiting + len(self._decoding) + len(self._encoding)
        return max(0, min(self._max_batch_size, sum(self._num_slots.values())) - taken)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._jobs or self._encoding)

    def warm_up(self) -> None:
        """Measure how many images of each pipeline fit in memory, and compute what requests will ask for.

        So the first request is as quick as the next.
        """
        for name, pipeline in self._pipelines.items():
            num_slots = num_that_fit(partial(_call_prior, pipeline), pipeline.device, self._max_batch_size)
            self._num_slots[name] = num_slots
            logger.info("pipeline=%s up to %d images at once", name, num_slots)
            defaults = pipeline.config.defaults
            request = GenerateRequest(
                pipeline=name,
                class_label=0 if pipeline.config.class_names else None,
                prompt=pipeline.config.example_prompt,
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
                self._encoding.admit(item.job_id, request)
                continue
            pipeline = self._pipelines[request.pipeline or ""]
            if isinstance(request, DecodeRequest):
                job = Job(item.job_id, request, pipeline, [], len(request.codes))
                for index, codes in enumerate(request.codes):
                    self._decoding.append(_Grid(job, index, torch.tensor(codes)))
            else:
                assert request.sampler is not None
                assert request.num_steps is not None
                sampling = replace(
                    pipeline.config.defaults, sampler=request.sampler, num_steps=request.num_steps
                )
                asked = Asked.of(request, pipeline)
                job = Job(item.job_id, request, pipeline, make_calls(sampling), request.num_images, asked)
                self._starting.append(job)
            self._jobs[job.id] = job

    def drop(self, job_ids: Collection[str]) -> None:
        """Forget jobs; of these nothing comes."""
        for job_id in job_ids:
            self._jobs.pop(job_id, None)
            self._previews.pop(job_id, None)
        self._starting = deque(job for job in self._starting if job.id not in job_ids)
        self._running = [sample for sample in self._running if sample.job.id not in job_ids]
        self._decoding = deque(grid for grid in self._decoding if grid.job.id not in job_ids)
        self._encoding.drop(job_ids)

    def progress(self) -> Mapping[str, Progress]:
        """How far the jobs are that have steps."""
        generating = {
            job.id: Progress(step=job.calls_done, total=len(job.calls) * job.num_images)
            for job in self._jobs.values()
            if job.calls
        }
        return generating | self._encoding.progress()

    def previews(self) -> Mapping[str, Preview]:
        """Return the pictures made since the last call, of running jobs that asked for them."""
        previews, self._previews = self._previews, {}
        return previews

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Do a little of everything that runs, and return the jobs that have ended."""
        self._start_samples()
        previewed = self._choose_previews()
        for name, pipeline in self._pipelines.items():
            samples = [sample for sample in self._running if sample.job.pipeline is pipeline]
            if samples:
                fixed_rows = ROWS_PER_SAMPLE * self._num_slots[name] if self._is_batch_padded else None
                advance(pipeline, samples, self._batches[name], fixed_rows)
        self._make_previews(previewed)
        self._finish_samples()
        for name in self._pipelines:
            self._decode(name)
        finished = self._encoding.step()
        ended = [job for job in self._jobs.values() if job.has_ended]
        self.drop({job.id for job in ended})
        return finished + [_finish(job) for job in ended]

    def _start_samples(self) -> None:
        """Fill free slots, one image of each waiting job in turn, so that small jobs pass large ones."""
        num_running = Counter(sample.request.pipeline for sample in self._running)
        of_full_pipelines = []
        while self._starting and len(self._running) < self._max_batch_size:
            job = self._starting.popleft()
            name = job.request.pipeline or ""
            if num_running[name] >= self._num_slots[name]:
                of_full_pipelines.append(job)
                continue
            num_running[name] += 1
            assert isinstance(job.request, GenerateRequest)
            assert job.request.seed is not None
            prior = job.pipeline.config.prior
            x = draw_noise((prior.latent_channels, *prior.grid), job.request.seed, job.num_started)
            x = x.to(job.pipeline.device)
            sample = Sample(job, job.request, job.num_started, x, torch.zeros_like(x))
            interval = job.request.cache_interval or 1
            if interval > 1:
                sample.cache, sample.null_cache = StepCache(interval), StepCache(interval)
            self._running.append(sample)
            job.num_started += 1
            if job.num_started < job.num_images:
                self._starting.append(job)
        self._starting.extendleft(reversed(of_full_pipelines))

    def _choose_previews(self) -> list[Sample]:
        """Choose samples to be shown after this step: of jobs in need of it, the image shown least."""
        now = time.monotonic()
        if now < self._previews_due_s:
            return []
        chosen: dict[str, Sample] = {}
        for sample in self._running:
            job = sample.job
            is_due = sample.request.preview and job.preview_due_s <= now
            if is_due and sample.position + 1 < len(job.calls):
                other = chosen.get(job.id)
                if other is None or sample.num_previews < other.num_previews:
                    chosen[job.id] = sample
        samples = sorted(chosen.values(), key=lambda sample: sample.job.preview_due_s)[:TOKENIZER_ROWS]
        for sample in samples:
            sample.wants_prediction = True
            sample.num_previews += 1
            sample.job.preview_due_s = now + PREVIEW_EVERY_S
        return samples

    def _make_previews(self, samples: list[Sample]) -> None:
        """Decode what the samples are on the way to. Nothing here changes or fails a job."""
        began_s = time.monotonic()
        for name, pipeline in self._pipelines.items():
            shown = [sample for sample in samples if sample.job.pipeline is pipeline and not sample.job.error]
            if shown:
                latents = torch.cat([sample.prediction for sample in shown if sample.prediction is not None])
                decode = partial(_decode_nearest, pipeline, latents)
                images, failures = self._batches[name].compute(decode, len(shown), TOKENIZER_ROWS)
                if images is None or failures:
                    logger.warning("pipeline=%s no previews this time", name)
                    continue
                for sample, pixels in zip(shown, to_pixels(images), strict=True):
                    self._previews[sample.job.id] = Preview(sample.index, sample.position, pixels)
        if samples:
            now = time.monotonic()
            self._previews_due_s = now + (now - began_s) * (1 / PREVIEW_SHARE - 1)

    def _finish_samples(self) -> None:
        """Snap the samples that have ended to codes, for decoding."""
        ended = [sample for sample in self._running if sample.has_ended]
        self._running = [sample for sample in self._running if not sample.has_ended]
        for sample in ended:
            if sample.job.error is None:
                codes = sample.job.pipeline.tokenizer.quantize(sample.x[None]).codes[0]
                self._decoding.append(_Grid(sample.job, sample.index, codes))

    def _decode(self, name: str) -> None:
        """Turn at most a batch of a pipeline's grids into pixels."""
        pipeline = self._pipelines[name]
        of_pipeline = (grid for grid in self._decoding if grid.job.pipeline is pipeline)
        grids = list(islice(of_pipeline, self._max_batch_size))
        if not grids:
            return
        codes = torch.stack([grid.codes for grid in grids]).to(pipeline.device)
        decoded, failures = self._batches[name].compute(
            lambda rows: pipeline.tokenizer.decode_codes(codes[rows]), len(grids), TOKENIZER_ROWS
        )
        pixels = [] if decoded is None else to_pixels(decoded)
        done = set(map(id, grids))
        self._decoding = deque(grid for grid in self._decoding if id(grid) not in done)
        for row, grid in enumerate(grids):
            if row in failures:
                grid.job.fail(failures[row])
            else:
                grid.job.images[grid.index] = pixels[row]
                grid.job.codes[grid.index] = grid.codes


@torch.inference_mode()
def _call_prior(pipeline: Pipeline, num_samples: int) -> None:
    """Make the call of the prior that so many guided samples need."""
    config = pipeline.config.prior
    num_rows = ROWS_PER_SAMPLE * num_samples
    x = torch.zeros(num_rows, config.latent_channels, *config.grid, device=pipeline.device)
    pipeline.prior(x, x.new_zeros(num_rows), pipeline.prior.null_conditions(num_rows))


def _decode_nearest(pipeline: Pipeline, latents: Tensor, rows: list[int]) -> Tensor:
    """Return images of latents that are snapped to the codebook."""
    return pipeline.tokenizer.decode(pipeline.tokenizer.quantize(latents[rows]).latents)


def to_pixels(images: Tensor) -> list[Pixels]:
    """Return images (B, C, H, W) in [-1, 1] as arrays (H, W, C) of uint8."""
    bytes_ = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return list(bytes_.movedim(1, -1).cpu().contiguous().numpy())


def _finish(job: Job) -> Finished:
    name = job.pipeline.config.name
    if job.error is not None:
        return Finished(job.id, name, error=job.error)
    images = tuple(job.images[i] for i in range(job.num_images))
    codes = None
    if isinstance(job.request, GenerateRequest) and job.request.return_codes:
        codes = codes_info(job.pipeline, [job.codes[i] for i in range(job.num_images)])
    return Finished(job.id, name, images, codes, warnings=job.asked.warnings if job.asked else ())
