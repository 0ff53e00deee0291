"""What follows the computing of a job, off the compute thread: encode, store, complete, tell."""

import base64
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from queue import Empty, SimpleQueue
from typing import Literal, Protocol, TypeVar

import redis

from workers.errors import InternalError, ServiceError
from workers.images import MEDIA_TYPES, Pixels, encode_image, encode_preview, with_background
from workers.messages import (
    Codes,
    DecodeRequest,
    DecodeResult,
    EncodeResult,
    GenerateRequest,
    GenerateResult,
    ImageFormat,
    ImageReference,
    PreviewImage,
    Progress,
    Result,
)
from workers.metrics import CODES, IMAGES, STEPS
from workers.rq_worker import Claim, Outcome, RQWorker
from workers.work import Finished, Preview

logger = logging.getLogger(__name__)

NUM_ENCODERS = 2
MAX_BACKOFF_S = 1.0
MAX_REFUSALS = 20  # errors that the server answers, such as that its memory is full
Answer = TypeVar("Answer")


class Store(Protocol):
    """Where images are kept."""

    def put(self, job_id: str, index: int, data: bytes, format: ImageFormat) -> ImageReference: ...


@dataclass(frozen=True)
class Computed:
    """What the engine made of a job."""

    claim: Claim
    finished: Finished


@dataclass(frozen=True)
class Failed:
    claim: Claim
    error: ServiceError


@dataclass(frozen=True)
class HandBack:
    """A job that someone else shall compute: at once, or alone."""

    claim: Claim
    how: Literal["back", "alone"]


@dataclass(frozen=True)
class Report:
    """How far the running jobs are."""

    progress: tuple[tuple[Claim, Progress], ...]


@dataclass(frozen=True)
class Shown:
    """A picture of a job on its way."""

    claim: Claim
    preview: Preview


Item = Computed | Failed | HandBack | Report | Shown


class Outbox:
    """A thread that sends what the compute thread puts in, in batches, one pipeline each.

    While the queue server is away, what was computed is kept and sent when it is back.
    """

    def __init__(self, link: RQWorker, store: Store, on_ended: Callable[[Claim], None]) -> None:
        self._link = link
        self._store = store
        self._on_ended = on_ended
        self._items: SimpleQueue[Item | None] = SimpleQueue()
        self._pool = ThreadPoolExecutor(NUM_ENCODERS, thread_name_prefix="encoder")
        self._gives_up_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item: Item) -> None:
        """Send something, soon."""
        self._items.put(item)

    def close(self, timeout_s: float) -> None:
        """Send all that is left, for at most this long."""
        self._gives_up_at = time.monotonic() + timeout_s
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

    def _send(self, batch: Sequence[Item]) -> None:
        ended = [item for item in batch if isinstance(item, Computed | Failed)]
        if ended:
            run = map if len(ended) == 1 else self._pool.map  # a lone job needs no other thread
            outcomes = list(run(self._outcome, ended))
            were_ours = self._persist(lambda: self._link.finish(outcomes))
            for outcome, was_ours in zip_longest(outcomes, were_ours or ()):
                self._on_ended(outcome.claim)
                _log(outcome, was_ours)
                if was_ours:
                    self._count(outcome)
        for how in ("back", "alone"):
            claims = [item.claim for item in batch if isinstance(item, HandBack) and item.how == how]
            if claims:
                self._persist(lambda claims=claims, how=how: self._link.hand_back(claims, how))  # type: ignore[misc]
                for claim in claims:
                    self._on_ended(claim)
                    logger.info("job_id=%s handed back: %s", claim.job_id, how)
        reports = [item for item in batch if isinstance(item, Report)]
        if reports:
            try:
                self._link.tell_progress(reports[-1].progress)
            except redis.RedisError:
                logger.warning("the queue server did not take a progress report")
        latest = {item.claim.job_id: item for item in batch if isinstance(item, Shown)}
        for each in ended:
            latest.pop(each.claim.job_id, None)
        if latest:
            try:
                self._link.tell_previews([(item.claim, _encoded(item.preview)) for item in latest.values()])
            except redis.RedisError:
                logger.warning("the queue server did not take a preview")

    def _count(self, outcome: Outcome) -> None:
        meter, request = self._link.meter, outcome.claim.request
        match outcome.end:
            case GenerateResult(images=images):
                assert isinstance(request, GenerateRequest)
                meter.count(IMAGES, len(images), "generate")
                meter.count(STEPS, len(images) * (request.num_steps or 0))
            case DecodeResult(images=images):
                assert isinstance(request, DecodeRequest)
                meter.count(IMAGES, len(images), "decode")
                meter.count(CODES, _num_codes(request.codes), "decode")
            case EncodeResult(codes=codes):
                meter.count(CODES, _num_codes(codes), "encode")

    def _outcome(self, item: Computed | Failed) -> Outcome:
        if isinstance(item, Failed):
            return Outcome(item.claim, item.error)
        try:
            return Outcome(item.claim, self._result(item))
        except ServiceError as error:
            return Outcome(item.claim, error)
        except Exception:  # the job boundary
            logger.exception("job_id=%s could not be encoded or stored", item.claim.job_id)
            return Outcome(item.claim, InternalError("The result could not be stored."))

    def _result(self, item: Computed) -> Result:
        request, job_id, finished = item.claim.request, item.claim.job_id, item.finished
        pipeline = finished.pipeline
        if isinstance(request, GenerateRequest):
            assert request.seed is not None
            images = [with_background(pixels, request.background) for pixels in finished.images]
            return GenerateResult(
                pipeline=pipeline,
                seed=request.seed,
                images=self._store_images(job_id, images, request.format),
                codes=finished.codes,
                warnings=list(finished.warnings),
            )
        if isinstance(request, DecodeRequest):
            stored = self._store_images(job_id, finished.images, request.format)
            return DecodeResult(pipeline=pipeline, images=stored)
        assert finished.codes is not None
        return EncodeResult(pipeline=pipeline, **dict(finished.codes))

    def _store_images(
        self, job_id: str, images: Sequence[Pixels], format: ImageFormat
    ) -> list[ImageReference]:
        return [
            self._store.put(job_id, index, encode_image(pixels, format), format)
            for index, pixels in enumerate(images)
        ]

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


def _encoded(preview: Preview) -> PreviewImage:
    return PreviewImage(
        index=preview.index,
        step=preview.step,
        media_type=MEDIA_TYPES["webp"],
        image=base64.b64encode(encode_preview(preview.pixels)).decode(),
    )


def _num_codes(codes: Sequence[Codes]) -> int:
    return sum(len(row) for grid in codes for row in grid)


def _log(outcome: Outcome, was_ours: bool | None) -> None:
    claim, end = outcome.claim, outcome.end
    what = end.code if isinstance(end, ServiceError) else "succeeded"
    if was_ours is None:
        what = f"{what}, but that was not sent"
    elif not was_ours:
        what = f"{what}, but it was no longer ours"
    logger.info("job_id=%s try=%d %s", claim.job_id, claim.num_tries, what)
