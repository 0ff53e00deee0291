"""Jobs in the engine: their samples, the path that these walk, and what came of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.media.base import Array, Medium, medium_of
from models.networks.text_encoder import EncodedPrompt
from models.pipeline import Pipeline, Stages
from models.stage import NotFinite, Sample, SampleSpec, Stage
from workers import errors
from workers.compute import Finished, SampleOutput, Work
from workers.engine.rows import RowBatches, is_out_of_memory
from workers.messages import CodesInfo, LatentsInfo, Priority, Progress, Resolved

_MAX_PARTS_TOLD = 3  # of a prompt, in a warning
_MAX_CHARS_TOLD = 30


@dataclass(frozen=True)
class Served:
    """A pipeline with its stages, its way to run them, and how many of its samples fit in memory."""

    pipeline: Pipeline
    stages: Stages
    run: RowBatches
    num_slots: int

    @property
    def medium(self) -> Medium:
        return medium_of(self.pipeline.spec.medium.medium)


@dataclass(eq=False)
class Job:
    """A job on its way. Its samples walk ``path`` together with those of other jobs."""

    id: str
    request: Resolved
    served: Served
    path: tuple[Stage, ...]
    samples: list[Sample]
    warnings: tuple[str, ...] = ()
    num_started: int = 0
    num_ended: int = 0
    calls_before: int = 0  # of stages that samples have left
    num_calls: int = 0  # of samples that have come to a stage which tells its progress
    num_counted: int = 0  # how many that are
    num_turns: int = 0  # of its samples, at all stages
    num_together: int = 0  # samples that had a turn with one of its own, itself included, over all turns

    @property
    def priority(self) -> Priority:
        return self.request.priority

    @property
    def has_ended(self) -> bool:
        return self.num_ended == len(self.samples)

    @property
    def progress(self) -> Progress | None:
        """Calls of the model that stages have had which tell them, once all samples have ended."""
        return Progress(step=self.calls_before, total=self.num_calls) if self.num_calls else None

    @property
    def batch_size(self) -> float | None:
        """How many samples shared a call of its own, in the mean."""
        return self.num_together / self.num_turns if self.num_turns else None


@dataclass(eq=False)
class Running:
    """A sample at one of its stages."""

    job: Job
    sample: Sample
    position: int = 0

    @property
    def stage(self) -> Stage:
        return self.job.path[self.position]

    @property
    def priority(self) -> Priority:
        return self.job.priority

    @property
    def num_left(self) -> int:
        """How many stages it is to have, with the one it is at."""
        return len(self.job.path) - self.position

    @property
    def is_under_way(self) -> bool:
        """Whether it has had calls of its stage, and wants more."""
        sample = self.sample
        return sample.error is None and 0 < sample.calls_done < self.stage.num_calls(sample)


def make_job(work: Work, served: Served) -> Job:
    """Return a job that has not started."""
    request = work.request
    path = served.stages.path(
        request.operation,
        effort=request.effort,
        return_psnr=request.return_psnr,
        is_edit=request.is_edit,
    )
    return Job(work.job_id, request, served, path, _samples(work, served), _warnings(request, served))


def _samples(work: Work, served: Served) -> list[Sample]:
    """Return the samples of a job: what each is asked for, and the value that it starts from."""
    request, pipeline = work.request, served.pipeline
    signals = []
    if work.sources and request.operation != "decode":
        source_arrays = work.sources[:1] if request.is_edit else work.sources
        signals = [
            torch.tensor(served.medium.to_signal(array)).to(pipeline.device) for array in source_arrays
        ]
    if request.operation == "generate":
        assert request.seed is not None
        spec = SampleSpec(
            seed=request.seed,
            options=pipeline.spec.defaults.changed(request.options),
            conditions=pipeline.conditions(request.labels, request.prompt),
            null=pipeline.conditions(prompt=request.negative_prompt),
            mask=torch.tensor(work.sources[1] > 0)[..., 0][None] if work.sources[1:] else None,
        )
        source = signals[0] if signals else None
        return [Sample(spec, index, source, source=source) for index in range(request.num_samples)]
    spec = SampleSpec(
        seed=request.seed or 0, effort=request.effort, samples_posterior=request.samples_posterior
    )
    if request.operation == "encode":
        return [Sample(spec, i, signal, source=signal) for i, signal in enumerate(signals)]
    if work.sources:
        latents = [torch.tensor(array, device=pipeline.device) for array in work.sources]
        return [Sample(spec, i, value) for i, value in enumerate(latents)]
    codes = [torch.tensor(grid, device=pipeline.device) for grid in request.codes or ()]
    return [Sample(spec, i, grid) for i, grid in enumerate(codes)]


def _warnings(request: Resolved, served: Served) -> tuple[str, ...]:
    warnings = list(request.warnings)
    encoder = served.pipeline.prompt_encoder
    if encoder is None:
        return tuple(warnings)
    for field, prompt in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if prompt is None:
            continue
        encoded = encoder.encode(prompt)
        if encoded.is_cut:
            limit = encoder.config.max_tokens
            warnings.append(f"{field}: longer than {limit} tokens, so it was truncated")
        if encoded.not_understood:
            warnings.append(f"{field}: {_not_understood(encoded)}: this pipeline knows English")
    if request.negative_prompt is not None and request.options.get("guidance_scale") == 1.0:
        warnings.append("negative_prompt: without effect, as guidance_scale is 1")
    return tuple(warnings)


def _not_understood(encoded: EncodedPrompt) -> str:
    """Say what of a prompt was not understood, shortened."""
    parts = list(dict.fromkeys(encoded.not_understood))
    told = [repr(each if len(each) <= _MAX_CHARS_TOLD else f"{each[:_MAX_CHARS_TOLD]}…") for each in parts]
    more = f" and {len(told) - _MAX_PARTS_TOLD} more" if len(told) > _MAX_PARTS_TOLD else ""
    got = ", ".join(told[:_MAX_PARTS_TOLD]) + more
    return f"{got} was not understood" if encoded.is_understood else f"none of it was understood, got {got}"


def finish(job: Job) -> Finished:
    """Return what came of a job: its samples, or an error when all of them failed."""
    name, request = job.served.pipeline.spec.name, job.request
    medium = job.served.medium.name
    makes_signals = request.operation != "encode"
    spec = job.served.pipeline.spec
    makes_latents = not makes_signals and spec.codes is None
    outputs = []
    for sample in job.samples:
        if sample.error is not None:
            outputs.append(SampleOutput(medium, error=_service_error(sample.error)))
            continue
        codes = sample.codes if makes_signals else None if makes_latents else sample.value
        outputs.append(
            SampleOutput(
                medium,
                signal=_array(sample.value) if makes_signals else None,
                codes=codes.tolist() if request.return_codes and codes is not None else None,
                latents=_array(sample.value) if makes_latents else None,
                psnr_db=sample.psnr_db,
            )
        )
    failed = [output.error for output in outputs if output.error is not None]
    if len(failed) == len(outputs):
        return Finished(job.id, name, error=failed[0], progress=job.progress, batch_size=job.batch_size)
    latents = None
    if makes_latents:
        shape = (len(outputs), *spec.latents)
        latents = LatentsInfo(shape=shape, tokenizer=spec.tokenizer or "")
    return Finished(
        job.id,
        name,
        tuple(outputs),
        _codes_info(job, outputs),
        latents,
        warnings=job.warnings,
        tokenizer=spec.tokenizer,
        progress=job.progress,
        batch_size=job.batch_size,
    )


def _codes_info(job: Job, outputs: Sequence[SampleOutput]) -> CodesInfo | None:
    codes = job.served.pipeline.spec.codes
    if codes is None or not job.request.return_codes:
        return None
    return CodesInfo(
        codes=[output.codes for output in outputs],
        grid=codes.grid,
        num_codebooks=codes.num_codebooks,
        codebook_size=codes.size,
        tokenizer=codes.fingerprint,
        precision=job.served.pipeline.precision,
    )


def _array(value: Tensor | None) -> Array:
    assert value is not None
    array: Array = value.float().cpu().numpy()
    return array


def _service_error(error: Exception) -> errors.ServiceError:
    if isinstance(error, NotFinite):
        return errors.NotFinite(str(error))
    if is_out_of_memory(error):
        return errors.OutOfMemory("this worker has not enough memory for the request, even alone")
    return errors.InternalError("the model failed on this request")
