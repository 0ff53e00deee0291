"""What a pipeline computes before its first request, so that this is as quick as the next."""

from collections.abc import Iterator, Sequence

import torch

from models.pipeline import Pipeline
from models.stage import Run, Sample, SampleSpec, Stage, run_directly
from workers.messages import Resolved


def first_request(pipeline: Pipeline) -> Resolved:
    """Return a request like those that will come, of few steps."""
    spec = pipeline.spec
    return Resolved(
        operation="generate",
        pipeline=spec.name,
        num_samples=1,
        seed=0,
        options={"num_steps": 4} if "num_steps" in spec.defaults.requestable else {},
        labels=dict.fromkeys(spec.labels, 0),
        prompt=spec.example_prompt,
    )


def walk(path: Sequence[Stage], samples: Sequence[Sample], run: Run) -> Iterator[None]:
    """Take samples along a path, a call at a time; one that fails stays where it is.

    Raises: what a stage raises.
    """
    for stage in path:
        walking = [sample for sample in samples if sample.error is None]
        with torch.inference_mode():
            for sample in walking:
                sample.calls_done = 0
                stage.start(sample)
        try:
            while pending := [
                each for each in walking if each.error is None and each.calls_done < stage.num_calls(each)
            ]:
                with torch.inference_mode():
                    stage.step(pending, run)
                yield
        finally:
            for sample in walking:
                stage.release(sample)


@torch.inference_mode()
def start_and_step(pipeline: Pipeline, num_samples: int) -> None:
    """Do what so many guided samples take: start them, and make a call for all."""
    stage = pipeline.make_stages(num_samples).sample
    assert stage is not None
    null = pipeline.conditions()
    labels = dict.fromkeys(pipeline.spec.labels, 0)
    spec = SampleSpec(
        0, pipeline.spec.defaults, pipeline.conditions(labels, pipeline.spec.example_prompt), null
    )
    samples = [Sample(spec, index) for index in range(num_samples)]
    for sample in samples:
        stage.start(sample)
        sample.calls_done = stage.num_calls(sample) // 2  # where guidance is applied, as a rule
    stage.step(samples, run_directly)
