"""Serve one request in this process, without a server or a queue, to the same bytes as the service."""

from collections.abc import Sequence

from workers.catalog import AnyRequest, Catalog
from workers.loading import load_engine
from workers.settings import WorkerSettings
from workers.work import Finished, Work


def compute(request: AnyRequest, settings: WorkerSettings) -> tuple[AnyRequest, Finished]:
    """Return the request with every choice made, and what came of it.

    Raises: ServiceError when it can't be served; ConfigError when the pipeline can't be loaded.
    """
    catalog = Catalog.load(settings.weights_dir, settings.pipelines)
    resolved = catalog.resolve(request)
    assert resolved.pipeline is not None
    engine = load_engine(settings, catalog, [resolved.pipeline])
    engine.admit([Work(job_id="local", request=resolved)])
    finished: Sequence[Finished] = ()
    while not finished:
        finished = engine.step()
    if finished[0].error is not None:
        raise finished[0].error
    return resolved, finished[0]
