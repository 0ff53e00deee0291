"""Serve one request in this process, without a server or a queue, to the same bytes as the service."""

from collections.abc import Sequence

import torch

from models.checkpoint import CheckpointError
from models.config import ConfigError
from models.pipeline import Pipeline
from workers.catalog import AnyRequest, Catalog
from workers.engine import Engine
from workers.settings import WorkerSettings
from workers.work import Finished, Work


def compute(request: AnyRequest, settings: WorkerSettings) -> tuple[AnyRequest, Finished]:
    """Return the request with every choice made, and what came of it.

    Raises: ServiceError when it can't be served; ConfigError when the pipeline can't be loaded.
    """
    catalog = Catalog.load(settings.weights_dir, settings.pipelines)
    resolved = catalog.resolve(request)
    assert resolved.pipeline is not None
    try:
        pipeline = Pipeline.load(catalog[resolved.pipeline].folder, device=_device(settings.device))
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    engine = Engine({resolved.pipeline: pipeline}, max_batch_size=settings.max_batch_size)
    engine.admit([Work(job_id="local", request=resolved)])
    finished: Sequence[Finished] = ()
    while not finished:
        finished = engine.step()
    if finished[0].error is not None:
        raise finished[0].error
    return resolved, finished[0]


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
