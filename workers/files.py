"""Outputs as files: what workers store and the command line writes, to the same bytes."""

from models.media.base import medium_of
from models.media.provenance import Provenance, SourceType
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


def _provenance(request: Resolved, finished: Finished, index: int) -> Provenance:
    if request.operation == "decode":
        return Provenance("compositeWithTrainedAlgorithmicMedia", finished.pipeline, finished.tokenizer)
    source_type: SourceType = (
        "compositeWithTrainedAlgorithmicMedia" if request.is_edit else "trainedAlgorithmicMedia"
    )
    return Provenance(source_type, finished.pipeline, finished.tokenizer, request.seed, sample=index)
