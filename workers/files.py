"""Outputs as files: what workers store and the command line writes, to the same bytes."""

import numpy as np

from models.media.base import medium_of
from models.media.provenance import Provenance, SourceType
from workers.arrays import npy_bytes
from workers.compute import Finished
from workers.messages import Resolved


def encode_output(request: Resolved, finished: Finished, index: int, *, tells_provenance: bool) -> bytes:
    """Return the file of a job's output ``index``, which has a signal.

    tells_provenance: whether the file says that it was generated, and by what.
    """
    sample = finished.samples[index]
    assert sample.signal is not None
    medium = medium_of(sample.medium)
    array = medium.from_signal(sample.signal)
    provenance = _provenance(request, finished, index) if tells_provenance else None
    return medium.save(array, request.format, background=request.background, provenance=provenance)


def latents_file(finished: Finished) -> bytes:
    """Return the NumPy file of a job's latents (sample, d, *grid); NaN for a sample that failed."""
    assert finished.latents is not None
    array = np.full(finished.latents.shape, np.nan, np.float32)
    for index, sample in enumerate(finished.samples):
        if sample.latents is not None:
            array[index] = sample.latents
    return npy_bytes(array)


def _provenance(request: Resolved, finished: Finished, index: int) -> Provenance:
    if request.operation == "decode":
        return Provenance("compositeWithTrainedAlgorithmicMedia", finished.pipeline, finished.tokenizer)
    source_type: SourceType = (
        "compositeWithTrainedAlgorithmicMedia" if request.is_edit else "trainedAlgorithmicMedia"
    )
    return Provenance(source_type, finished.pipeline, finished.tokenizer, request.seed, sample=index)
