"""The engine, driven with pictures and codes instead of jobs from a queue."""

from collections.abc import Sequence

import numpy as np

from models.media.base import Array
from workers.compute import Engine, Finished, SampleOutput, Work
from workers.errors import ServiceError
from workers.messages import MAX_SAMPLES_PER_JOB, Resolved


def run_request(engine: Engine, request: Resolved, sources: Sequence[Array] = ()) -> Finished:
    """Return what the engine makes of one request; nothing else runs in it."""
    engine.admit([Work("bulk", request, tuple(sources))])
    finished: list[Finished] = []
    while not finished:
        finished += engine.step()
    return finished[0]


def samples_of(finished: Finished, num_samples: int) -> Sequence[SampleOutput | ServiceError]:
    """Return what came of each sample, also where all of them failed."""
    if finished.error is not None:
        return [finished.error] * num_samples
    return [each.error or each for each in finished.samples]


def encode_pixels(
    engine: Engine, pipeline: str, pixels: Sequence[Array], *, effort: int = 0, return_psnr: bool = False
) -> list[tuple[Array, float | None] | ServiceError]:
    """Return codes and PSNR in dB of each picture (H, W, C), as /encode would; or why there are none."""
    results: list[tuple[Array, float | None] | ServiceError] = []
    for start in range(0, len(pixels), MAX_SAMPLES_PER_JOB):
        part = pixels[start : start + MAX_SAMPLES_PER_JOB]
        request = Resolved(
            operation="encode",
            pipeline=pipeline,
            priority="batch",
            num_samples=len(part),
            effort=effort,
            return_codes=True,
            return_psnr=return_psnr,
        )
        for sample in samples_of(run_request(engine, request, part), len(part)):
            if isinstance(sample, ServiceError):
                results.append(sample)
            else:
                results.append((np.array(sample.codes), sample.psnr_db))
    return results
