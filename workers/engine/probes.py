"""The rows that a check of the seed promise compares: calls of every kind, at all times of a path."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from models.noise import draw_noise
from models.options import Options
from models.pipeline import Pipeline
from models.stage import Caching, Pretending, Rows, Sample, SampleSpec, Stage

CACHE_BYTES = 2**30  # of all probes of a prior that keeps keys and values: so there are fewer
MIN_PROBES = 32  # whatever they take
PROMPTS = (None, "a red apple", "two small dogs on a green hill", "rain", "the flag of a far country, waving")


def bounded_probes(num_probes: int, stage: Stage) -> int:
    """Return how many probes there may be of a stage: fewer where each would take much memory."""
    if not isinstance(stage, Caching):
        return num_probes
    return min(num_probes, max(MIN_PROBES, CACHE_BYTES // stage.bytes_per_sample))


def probe_calls(
    pipeline: Pipeline, num_probes: int, fixed_rows: Sequence[int]
) -> list[tuple[Callable[[list[int]], Tensor], int]]:
    """Return calls of a pipeline's network over many rows of all kinds, and how many rows each has."""
    calls: list[tuple[Callable[[list[int]], Tensor], int]] = []
    # The plain kind, which most requests are of, comes last: its numbers serve as soon as they are proven.
    for options in reversed(pipeline.spec.defaults.variants()):
        stage = pipeline.make_stages(num_probes).sample
        assert stage is not None
        stage.fixed_rows = fixed_rows
        samples = [Sample(_probe_spec(pipeline, options, index), index) for index in range(num_probes)]
        captured: list[tuple[Callable[[list[int]], Tensor], int]] = []

        def capture(
            call: Callable[[list[int]], Tensor],
            num_items: int,
            fixed_rows: Sequence[int] | None,
            sizes: Sequence[int] | None = None,
            captured: list[tuple[Callable[[list[int]], Tensor], int]] = captured,
        ) -> Rows:
            captured.append((call, num_items))
            first = call([0])
            return Rows(first.expand(num_items, *first.shape[1:]).clone(), {})

        for sample in samples:
            stage.start(sample)
        num_calls = min(stage.num_calls(sample) for sample in samples)
        for index, sample in enumerate(samples):
            sample.calls_done = index % max(1, num_calls - 2)  # at all times of a path
            if isinstance(stage, Pretending):
                stage.pretend(sample, sample.calls_done)
        for _ in range(min(2, num_calls)):  # in the second, what is to be reused is there
            stage.step(samples, capture)
        calls.append(captured[-1])
    return calls


def _probe_spec(pipeline: Pipeline, options: Options, index: int) -> SampleSpec:
    labels = {
        name: (index * 7 + i) % (len(known) + 1)
        for i, (name, known) in enumerate(pipeline.spec.labels.items())
    }
    conditions = pipeline.conditions(labels, PROMPTS[index % len(PROMPTS)])
    if conditions.source is not None:
        source = draw_noise(pipeline.spec.latents, 0, index)[None].to(pipeline.device)
        conditions = replace(conditions, source=source)
    # Guidance has nothing to lead away from, so that a sample is one row.
    return SampleSpec(seed=index, options=options, conditions=conditions, null=conditions)
