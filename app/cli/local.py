"""Serve requests in this process, without a server or a queue, to the same bytes as the service."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.cli.terminal import say
from app.sources import SourceFile, fit
from models.media.base import medium_of
from workers.catalog import Catalog
from workers.compute import Finished, Work
from workers.messages import BlobReference, Request, Resolved
from workers.settings import WorkerSettings

if TYPE_CHECKING:
    from workers.engine.engine import Engine


class Local:
    """The pipelines, each loaded when it is first needed.

    Raises: ConfigError when there is no pipeline.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._catalog = Catalog.load(settings.weights_dir, settings.pipelines)
        self._engines: dict[str, Engine] = {}

    @property
    def tells_provenance(self) -> bool:
        """Whether outputs say of themselves what made them."""
        return self._settings.provenance == "on"

    def prepare(self, request: Request, files: Sequence[SourceFile] = ()) -> Work:
        """Return the request with every choice made, and its files read and fitted.

        Raises: ServiceError when it can't be served.
        """
        sources, references = [], []
        if files:
            spec = self._catalog.pipeline_for(request).medium
            medium = medium_of(spec.medium)
            sources = [fit(file, spec) for file in files]
            references = [
                BlobReference(
                    sha256=hashlib.sha256(source.tobytes()).hexdigest(),
                    media_type=medium.formats[medium.lossless_format],
                )
                for source in sources
            ]
        return Work("local", self._catalog.resolve(request, references), tuple(sources))

    def run(self, works: Sequence[Work]) -> list[Finished]:
        """Compute all of it in shared batches, and return what came of each, in order.

        Raises: ConfigError when a pipeline can't be loaded.
        """
        finished: dict[str, Finished] = {}
        waiting = [Work(str(number), work.request, work.sources) for number, work in enumerate(works)]
        for name in dict.fromkeys(work.request.pipeline for work in waiting):
            engine = self._engine(name)
            same = [work for work in waiting if work.request.pipeline == name]
            if engine.needs_check and same[0].request.seed is not None:
                say(
                    "computing full batches: the seed promise is unchecked here."
                    " Faster after `smalti check-seeds`"
                )
            engine.admit(same)
            while not all(work.job_id in finished for work in same):
                finished |= {each.job_id: each for each in engine.step()}
        return [finished[work.job_id] for work in waiting]

    def _engine(self, name: str) -> "Engine":
        from workers.engine.loading import load_engine  # brings torch, for which no mistake should wait

        if name not in self._engines:
            self._engines[name] = load_engine(self._settings, self._catalog, [name])
        return self._engines[name]


def compute(
    request: Request, settings: WorkerSettings, files: Sequence[SourceFile] = ()
) -> tuple[Resolved, Finished]:
    """Return the request with every choice made, and what came of it.

    Raises: ServiceError when it can't be served; ConfigError when the pipeline can't be loaded.
    """
    local = Local(settings)
    work = local.prepare(request, files)
    (finished,) = local.run([work])
    if finished.error is not None:
        raise finished.error
    return work.request, finished
