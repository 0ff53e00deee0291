"""Serve requests in this process, without a server or a queue, to the same bytes as the service."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from app.cli.answers import Answer, Asked, Made, read_file
from app.cli.requests import request_of
from app.cli.terminal import CommandError, say
from app.latents import latents_of_file
from app.sources import SourceFile, fit_files
from models.media.base import medium_of
from workers.arrays import NPY_MEDIA_TYPE
from workers.catalog import Catalog
from workers.compute import Finished, Work
from workers.errors import ServiceError
from workers.files import encode_output, latents_file
from workers.messages import (
    BlobReference,
    DecodeRequest,
    JobError,
    Operation,
    Output,
    Request,
    Resolved,
    Result,
)
from workers.settings import WorkerSettings

if TYPE_CHECKING:
    from workers.engine.engine import Engine


class Local:
    """The pipelines, each loaded when it is first needed.

    Its methods raise ConfigError when there is no pipeline.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._engines: dict[str, Engine] = {}

    @cached_property
    def _catalog(self) -> Catalog:  # once a request is one
        return Catalog.load(self._settings.weights_dir, self._settings.pipelines)

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
            spec = self._catalog.pipeline_for(request)
            medium = medium_of(spec.medium.medium)
            if isinstance(request, DecodeRequest):
                sources, media_type = list(latents_of_file(files[0], spec)), NPY_MEDIA_TYPE
            else:
                self._catalog.check(request)
                sources, media_type = fit_files(files, spec), medium.formats[medium.lossless_format]
            references = [
                BlobReference(sha256=hashlib.sha256(source.tobytes()).hexdigest(), media_type=media_type)
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
            if engine.needs_check and same[0].request.operation == "generate":
                say(
                    "computing full batches: the seed promise is unchecked here."
                    " Faster after `smalti check-seeds`"
                )
            engine.admit(same)
            while not all(work.job_id in finished for work in same):
                finished |= {each.job_id: each for each in engine.step()}
        return [finished[work.job_id] for work in waiting]

    def answers(
        self, operation: Operation, requests: Sequence[Asked], *, return_errors: bool = False
    ) -> Sequence[Answer | Exception]:
        """Return the answers to requests; see ``Place``. Raises: ServiceError; CommandError; ConfigError."""
        answers: list[Answer | Exception | None] = [None] * len(requests)
        works: dict[int, Work] = {}
        for number, asked in enumerate(requests):
            try:
                files = _files_of(asked, operation)
                fields = dict(asked.fields)
                if operation == "generate":  # a request says that it has files
                    fields |= {file.role: base64.b64encode(data).decode() for file, data in files}
                elif operation == "decode" and files:
                    fields["latents"] = {"file": str(asked.path)[:64]}
                works[number] = self.prepare(request_of(operation, fields), [file for file, _ in files])
            except (ServiceError, CommandError) as error:
                if not return_errors:
                    raise
                answers[number] = error
        for (number, work), finished in zip(works.items(), self.run(list(works.values())), strict=True):
            if finished.error is not None and not return_errors:
                raise finished.error
            answers[number] = finished.error or self._answer(work.request, finished)
        return [answer for answer in answers if answer is not None]

    def _answer(self, request: Resolved, finished: Finished) -> Answer:
        samples = list(enumerate(finished.samples))
        result = Result(
            operation=request.operation,
            pipeline=finished.pipeline,
            seed=request.seed,
            outputs=[
                Output(
                    sample=number,
                    medium=sample.medium,
                    psnr_db=sample.psnr_db,
                    error=sample.error and JobError(code=sample.error.code, message=str(sample.error)),
                )
                for number, sample in samples
            ],
            codes=finished.codes,
            latents=finished.latents,
            warnings=list(finished.warnings),
        )

        def reader(index: int) -> Callable[[], bytes] | None:
            if finished.samples[index].signal is None:
                return None
            return lambda: encode_output(request, finished, index, tells_provenance=self.tells_provenance)

        made = [
            Made(reader(number), str(sample.error) if sample.error else None) for number, sample in samples
        ]
        latents = None if finished.latents is None else partial(latents_file, finished)
        return Answer(result.model_dump(mode="json"), made, request.options, latents)

    def _engine(self, name: str) -> "Engine":
        from workers.engine.loading import load_engine  # brings torch, for which no mistake should wait

        if name not in self._engines:
            self._engines[name] = load_engine(self._settings, self._catalog, [name])
        return self._engines[name]


def _files_of(asked: Asked, operation: Operation) -> list[tuple[SourceFile, bytes]]:
    """Return the files of a request, with their bytes. Raises: CommandError."""
    files: list[tuple[SourceFile, bytes]] = []
    if asked.path is not None:
        data = read_file(asked.path)
        file = SourceFile(str(asked.path), data)
        files.append((replace(file, role="signal") if operation == "encode" else file, data))
    if asked.mask is not None:
        data = read_file(asked.mask)
        files.append((SourceFile(str(asked.mask), data, role="mask"), data))
    return files


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
