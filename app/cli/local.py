"""Serve one request in this process, without a server or a queue, to the same bytes as the service."""

import hashlib
from collections.abc import Sequence

from app.cli.terminal import say
from app.sources import SourceFile, fit
from models.media.base import medium_of
from workers.catalog import Catalog
from workers.compute import Finished, Work
from workers.messages import BlobReference, Request, Resolved
from workers.settings import WorkerSettings


def compute(
    request: Request, settings: WorkerSettings, files: Sequence[SourceFile] = ()
) -> tuple[Resolved, Finished]:
    """Return the request with every choice made, and what came of it.

    Raises: ServiceError when it can't be served; ConfigError when the pipeline can't be loaded.
    """
    catalog = Catalog.load(settings.weights_dir, settings.pipelines)
    sources, references = [], []
    if files:
        spec = catalog.pipeline_for(request).medium
        medium = medium_of(spec.medium)
        sources = [fit(file, spec) for file in files]
        references = [
            BlobReference(
                sha256=hashlib.sha256(source.tobytes()).hexdigest(),
                media_type=medium.formats[medium.lossless_format],
            )
            for source in sources
        ]
    resolved = catalog.resolve(request, references)
    from workers.engine.loading import load_engine  # brings torch, for which no mistake should wait

    engine = load_engine(settings, catalog, [resolved.pipeline])
    if engine.needs_check and resolved.seed is not None:
        say("computing full batches: the seed promise is unchecked here. Faster after `smalti check-seeds`")
    engine.admit([Work("local", resolved, tuple(sources))])
    finished: Sequence[Finished] = ()
    while not finished:
        finished = engine.step()
    if finished[0].error is not None:
        raise finished[0].error
    return resolved, finished[0]
