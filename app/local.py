"""Serve one request in this process, without a server or a queue, to the same bytes as the service."""

from models.pipeline import Pipeline
from workers.catalog import AnyRequest, Catalog
from workers.engine import Engine, Finished, Work
from workers.settings import WorkerSettings


def compute(request: AnyRequest, settings: WorkerSettings) -> tuple[AnyRequest, Finished]:
    """Return the request with every choice made, and what came of it.

    Raises: ServiceError when it can't be served; ConfigError when there is no pipeline.
    """
    catalog = Catalog.load(settings.weights_dir, settings.pipelines)
    resolved = catalog.resolve(request)
    assert resolved.pipeline is not None
    pipeline = Pipeline.load(catalog[resolved.pipeline].folder, device=settings.device)
    engine = Engine({resolved.pipeline: pipeline}, max_batch_size=settings.max_batch_size)
    engine.admit(Work(job_id="local", request=resolved))
    finished: list[Finished] = []
    while not finished:
        finished = engine.step()
    if finished[0].error is not None:
        raise finished[0].error
    return resolved, finished[0]
