"""What follows the computing of a job, off the compute thread: encode, store, complete, tell."""

import base64
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar, get_args

import numpy as np
import redis

from models.media.base import medium_of
from workers.compute import Finished, Preview
from workers.errors import InternalError, ServiceError
from workers.files import encode_output, latents_file
from workers.messages import (
    CodesInfo,
    JobError,
    LatentsInfo,
    Output,
    PreviewImage,
    Progress,
    Resolved,
    Result,
    SampleCodes,
)
from workers.metrics import CODES, IMAGES, STEPS
from workers.moderation import Moderation
from workers.queue.consumer import Claim, Consumer, Destination, Outcome
from workers.results import ResultStore
from workers.traces import working_for

if TYPE_CHECKING:
    from workers.spans import Spans

logger = logging.getLogger(__name__)

NUM_ENCODERS = 2
MAX_BACKOFF_S = 1.0
MAX_REFUSALS = 20  # errors that the server answers, such as that its memory is full
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Computed:
    """What the engine made of a job."""

    claim: Claim
    finished: Finished
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Failed:
    """A job that failed. progress, batch_size: as in ``Finished``."""

    claim: Claim
    error: ServiceError
    progress: Progress | None = None
    batch_size: float | None = None
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Released:
    """A job that goes back to the queue."""

    claim: Claim
    to: Destination


@dataclass(frozen=True)
class ProgressMade:
    """How far the running jobs are."""

    progress: tuple[tuple[Claim, Progress], ...]


@dataclass(frozen=True)
class PreviewReady:
    """What a running job is on the way to."""

    claim: Claim
    preview: Preview


Item = Computed | Failed | Released | ProgressMade | PreviewReady


class Outbox:
    """A thread that sends what the compute thread puts in, in batches, one pipeline each.

    While the queue server is away, what was computed is kept and sent when it is back.
    """

    def __init__(
        self,
        consumer: Consumer,
        results: ResultStore,
        on_ended: Callable[[Claim], None],
        *,
        tells_provenance: bool,
        moderation: Moderation | None = None,
        spans: "Spans | None" = None,
    ) -> None:
        self._consumer = consumer
        self._results = results
        self._on_ended = on_ended
        self._tells_provenance = tells_provenance
        self._moderation = moderation if moderation is not None and moderation.checks_outputs else None
        self._spans = spans
        self._items: SimpleQueue[Item | None] = SimpleQueue()
        self._pool = ThreadPoolExecutor(NUM_ENCODERS, thread_name_prefix="encoder")
        self._gives_up_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item: Item) -> None:
        """Send something, soon; of what the moderation hook looks at, no preview, and the rest after that."""
        if self._moderation is None:
            self._items.put(item)
        elif isinstance(item, Computed):
            self._moderate(self._moderation, item)
        elif not isinstance(item, PreviewReady):
            self._items.put(item)

    def close(self, timeout_s: float) -> None:
        """Send all that is left, for at most this long."""
        self._gives_up_at = time.monotonic() + timeout_s
        if self._moderation is not None:
            self._moderation.close(timeout_s)
        self._items.put(None)
        self._thread.join(timeout_s + MAX_BACKOFF_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch: list[Item] = []
            while True:
                try:
                    item = self._items.get(block=not batch)
                except Empty:
                    break
                if item is None:
                    is_open = False
                    break
                batch.append(item)
            try:
                self._send(batch)
            except Exception:  # the thread must live; the jobs' leases go on, so log loudly
                logger.critical("could not send %d items", len(batch), exc_info=True)

    def _moderate(self, moderation: Moderation, item: Computed) -> None:
        claim = item.claim

        def put(checked: Finished) -> None:
            self._items.put(replace(item, finished=checked))

        with working_for(claim.trace):
            moderation.check_outputs_later(claim.request, claim.owner, item.finished, put)

    def _send(self, batch: Sequence[Item]) -> None:
        ended = [item for item in batch if isinstance(item, Computed | Failed)]
        if ended:
            self._finish(ended)
        for to in get_args(Destination):
            self._release([item.claim for item in batch if isinstance(item, Released) and item.to == to], to)
        progress = [item.progress for item in batch if isinstance(item, ProgressMade)]
        if progress:
            try:
                self._consumer.publish_progress(progress[-1])
            except redis.RedisError:
                logger.warning("the queue server did not take a progress report")
        latest = {item.claim.job_id: item for item in batch if isinstance(item, PreviewReady)}
        for each in ended:
            latest.pop(each.claim.job_id, None)
        if latest:
            self._show(latest.values())

    def _finish(self, ended: Sequence[Computed | Failed]) -> None:
        run = map if len(ended) == 1 else self._pool.map  # a lone job needs no other thread
        outcomes = list(run(self._outcome, ended))
        were_ours = self._persist(lambda: self._consumer.finish(outcomes))
        for item, outcome, was_ours in zip_longest(ended, outcomes, were_ours or ()):
            self._on_ended(outcome.claim)
            _log(outcome, was_ours)
            if self._spans is not None:
                how = outcome.end.code if isinstance(outcome.end, ServiceError) else "succeeded"
                self._spans.record_job(outcome.claim, item.at, how)
            if was_ours and isinstance(item, Computed) and isinstance(outcome.end, Result):
                self._count(outcome.claim.request, item.finished)

    def _release(self, claims: Sequence[Claim], to: Destination) -> None:
        if not claims:
            return
        self._persist(lambda: self._consumer.release(claims, to))
        for claim in claims:
            self._on_ended(claim)
            with working_for(claim.trace):
                logger.info("job_id=%s released to %s", claim.job_id, to)

    def _show(self, items: Iterable[PreviewReady]) -> None:
        encoded = ((item.claim, _encode_preview(item.preview)) for item in items)
        try:
            self._consumer.publish_previews([(claim, preview) for claim, preview in encoded if preview])
        except redis.RedisError:
            logger.warning("the queue server did not take a preview")

    def _count(self, request: Resolved, finished: Finished) -> None:
        meter, operation = self._consumer.meter, request.operation
        num_outputs = sum(sample.signal is not None for sample in finished.samples)
        if num_outputs:
            meter.count(IMAGES, num_outputs, operation)
        if operation == "generate":
            meter.count(STEPS, num_outputs * request.options.get("num_steps", 0))
        if operation == "encode":
            meter.count(CODES, _num_codes(finished.codes.codes if finished.codes else None), operation)
        if operation == "decode":
            meter.count(CODES, _num_codes(request.codes), operation)

    def _outcome(self, item: Computed | Failed) -> Outcome:
        if isinstance(item, Failed):
            return Outcome(item.claim, item.error, item.progress, item.batch_size)
        with working_for(item.claim.trace):
            return self._computed(item)

    def _computed(self, item: Computed) -> Outcome:
        finished = item.finished
        end: Result | ServiceError
        try:
            end = self._result(item.claim, finished)
        except ServiceError as error:
            end = error
        except Exception:  # the job boundary
            logger.exception("job_id=%s could not be encoded or stored", item.claim.job_id)
            end = InternalError("The result could not be stored.")
        return Outcome(item.claim, end, finished.progress, finished.batch_size)

    def _result(self, claim: Claim, finished: Finished) -> Result:
        """Store the outputs and codes of a job, and return what refers to them.

        Raises: the first sample's error when all have failed.
        """
        errors = [sample.error for sample in finished.samples if sample.error is not None]
        if errors and len(errors) == len(finished.samples):
            raise errors[0]
        outputs = [self._output(claim, finished, index) for index in range(len(finished.samples))]
        codes = None
        if finished.codes is not None:
            codes = self._store_codes(claim.job_id, finished.codes)
        latents = None
        if finished.latents is not None:
            latents = self._store_latents(claim.job_id, finished)
        return Result(
            operation=claim.request.operation,
            pipeline=finished.pipeline,
            seed=claim.request.seed,
            outputs=outputs,
            codes=codes,
            latents=latents,
            warnings=list(finished.warnings),
        )

    def _output(self, claim: Claim, finished: Finished, index: int) -> Output:
        sample = finished.samples[index]
        if sample.error is not None:
            error = JobError(code=sample.error.code, message=str(sample.error))
            return Output(sample=index, medium=sample.medium, error=error)
        if sample.signal is None:
            return Output(sample=index, medium=sample.medium, psnr_db=sample.psnr_db)
        request = claim.request
        data = encode_output(request, finished, index, tells_provenance=self._tells_provenance)
        stored = self._results.put(claim.job_id, index, data, request.format)
        info = medium_of(sample.medium).info(stored.data)
        return Output(
            sample=index,
            medium=sample.medium,
            url=f"/jobs/{claim.job_id}/outputs/{index}",
            num_bytes=len(stored.data),
            sha256=stored.sha256,
            **asdict(info),
        )

    def _store_codes(self, job_id: str, codes: CodesInfo) -> CodesInfo:
        """Store the codes, which are too large for Redis, and return what is known of them."""
        if codes.codes is not None:
            self._results.put_codes(job_id, codes.codes)
        return codes.model_copy(update={"codes": None})

    def _store_latents(self, job_id: str, finished: Finished) -> LatentsInfo:
        """Store the latents of all samples as one file, NaN for those that failed; return where it is."""
        info = finished.latents
        assert info is not None
        self._results.put_latents(job_id, latents_file(finished), info.tokenizer)
        return info.model_copy(update={"url": f"/jobs/{job_id}/latents"})

    def _persist(self, send: Callable[[], Answer]) -> Answer | None:
        """Send until the server takes it; None when it refuses for long, or the time to do so is over.

        What is not sent is computed again: its lease runs out.
        """
        wait_s = 0.02
        num_refusals = 0
        while True:
            try:
                return send()
            except redis.RedisError as error:
                num_refusals += isinstance(error, redis.ResponseError)
                is_late = self._gives_up_at is not None and time.monotonic() > self._gives_up_at
                if is_late or num_refusals > MAX_REFUSALS:
                    logger.error("could not be sent: %s", error)
                    return None
                logger.warning("the queue server is away (%s); results are kept", type(error).__name__)
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, MAX_BACKOFF_S)


def _encode_preview(preview: Preview) -> PreviewImage | None:
    encoded = medium_of(preview.medium).preview(preview.array)
    if encoded is None:
        return None
    data, media_type = encoded
    image = base64.b64encode(data).decode()
    return PreviewImage(index=preview.index, step=preview.step, media_type=media_type, image=image)


def _num_codes(codes: Sequence[SampleCodes | None] | None) -> int:
    return sum(np.size(each) for each in codes or () if each is not None)


def _log(outcome: Outcome, was_ours: bool | None) -> None:
    claim, end = outcome.claim, outcome.end
    what = end.code if isinstance(end, ServiceError) else "succeeded"
    if was_ours is None:
        what = f"{what}, but that was not sent"
    elif not was_ours:
        what = f"{what}, but it was no longer ours"
    with working_for(claim.trace):
        logger.info("job_id=%s try=%d %s", claim.job_id, claim.num_tries, what)
