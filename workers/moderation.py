"""A hook of the operator's that may refuse requests, and outputs before anything of them is stored.

It refuses by the message that it returns. One that raises, hangs, or returns anything else has refused, too.
"""

import asyncio
import contextvars
import importlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from models.media.base import Array, medium_of
from workers.compute import Finished, SampleOutput
from workers.errors import ModerationFailed, ModerationRefused
from workers.messages import Operation, Resolved
from workers.settings import SettingsError

logger = logging.getLogger(__name__)

MAX_CALLS = 32  # of the hook at a time
MAX_LOST = 64  # calls that hang; beyond, the hook is not called any more until some have ended
NUM_CHECKERS = 8  # jobs whose outputs are checked at a time
MAX_PENDING = 256  # jobs whose outputs wait for that; then the worker computes nothing more
MAX_MESSAGE_CHARS = 500


@dataclass(frozen=True)
class AskedFor:
    """What a client asks for. owner: the name of its API key; "" where there are none. labels: numbers."""

    operation: Operation
    pipeline: str
    owner: str
    prompt: str | None
    negative_prompt: str | None
    labels: Mapping[str, int]
    num_samples: int
    seed: int | None


@dataclass(frozen=True)
class MadeOutput:
    """One output. array: as its medium has it; of an image (height, width, channels) uint8."""

    sample: int
    medium: str
    array: Array

    def encode(self, format: str | None = None) -> bytes:
        """Return it as a file; of the medium's usual format where none is named: PNG for images."""
        medium = medium_of(self.medium)
        return medium.save(self.array, format or next(iter(medium.formats)))


Before = Callable[[AskedFor], str | None]
After = Callable[[AskedFor, MadeOutput], str | None]


class Moderation:
    """Calls the hook in threads of its own, each for a bounded time."""

    def __init__(self, before: Before | None, after: After | None, timeout_s: float) -> None:
        self._before = before
        self._after = after
        self._timeout_s = timeout_s
        self._room_for_calls = asyncio.Semaphore(MAX_CALLS)
        self._room_for_jobs = threading.Semaphore(MAX_PENDING)
        self._checkers = ThreadPoolExecutor(NUM_CHECKERS, thread_name_prefix="moderation")
        self._lost: set[Future[object]] = set()

    @property
    def checks_outputs(self) -> bool:
        return self._after is not None

    async def check_request(self, request: Resolved, owner: str) -> None:
        """Ask the hook about a request.

        Raises: ModerationRefused.
        """
        before = self._before
        if before is None:
            return
        asked = _asked_for(request, owner)
        call: Future[object] | None = None
        try:
            async with asyncio.timeout(self._timeout_s), self._room_for_calls:
                call = self._start(lambda: before(asked))
                told = await asyncio.wrap_future(call)
        except TimeoutError:
            told = self._lose(call)
        except Exception:  # the hook's boundary
            told = _failed()
        refusal = _refusal(told)
        if refusal is not None:
            raise refusal

    def check_outputs_later(
        self, request: Resolved, owner: str, finished: Finished, then: Callable[[Finished], None]
    ) -> None:
        """Ask the hook about the outputs of a job, and hand on what is left of them."""

        def check() -> None:
            try:
                checked = self._check_outputs(_asked_for(request, owner), finished)
            except Exception:  # or the job would never end
                logger.exception("outputs could not be checked: refused")
                refused = [SampleOutput(each.medium, error=ModerationFailed()) for each in finished.samples]
                checked = replace(finished, samples=tuple(refused), codes=None)
            self._room_for_jobs.release()
            then(checked)

        self._room_for_jobs.acquire()
        self._checkers.submit(contextvars.copy_context().run, check)

    def close(self, timeout_s: float) -> None:
        """Wait for outputs that are checked, for at most this long."""
        ended = threading.Thread(target=self._checkers.shutdown, daemon=True)
        ended.start()
        ended.join(timeout_s)
        self._checkers.shutdown(wait=False, cancel_futures=True)

    def _check_outputs(self, asked: AskedFor, finished: Finished) -> Finished:
        """Return a job with an error instead of each output, and its codes, that the hook refuses."""
        samples: list[SampleOutput] = []
        is_lost = False  # a hook that hung is not called again for the same job
        for index, sample in enumerate(finished.samples):
            if sample.signal is None:
                samples.append(sample)
                continue
            output = MadeOutput(index, sample.medium, medium_of(sample.medium).from_signal(sample.signal))
            told, is_lost = (ModerationFailed(), True) if is_lost else self._ask_after(asked, output)
            refusal = _refusal(told)
            samples.append(SampleOutput(sample.medium, error=refusal) if refusal else sample)
        return replace(finished, samples=tuple(samples), codes=_codes_left(finished, samples))

    def _ask_after(self, asked: AskedFor, output: MadeOutput) -> tuple[object, bool]:
        """Return what the hook tells, and whether it hangs."""
        after = self._after
        assert after is not None
        call: Future[object] | None = None
        try:
            call = self._start(lambda: after(asked, output))
            return call.result(self._timeout_s), False
        except TimeoutError:
            return self._lose(call), True
        except Exception:  # the hook's boundary
            return _failed(), False

    def _start(self, call: Callable[[], object]) -> Future[object]:
        """Call the hook in a thread that nobody waits for in the end.

        Raises: RuntimeError while too many hang.
        """
        self._lost = {each for each in self._lost if not each.done()}
        if len(self._lost) >= MAX_LOST:
            raise RuntimeError(f"{len(self._lost)} calls of the hook hang")
        future: Future[object] = Future()
        future.set_running_or_notify_cancel()
        context = contextvars.copy_context()

        def run() -> None:
            try:
                future.set_result(context.run(call))
            except BaseException as error:  # the thread ends here, whatever it was
                future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))

        threading.Thread(target=run, name="moderation-hook", daemon=True).start()
        return future

    def _lose(self, call: Future[object] | None) -> ModerationFailed:
        if call is not None:
            self._lost.add(call)
        logger.error("the moderation hook took longer than %g s: refused", self._timeout_s)
        return ModerationFailed()


def load_moderation(name: str, timeout_s: float) -> Moderation | None:
    """Return the hook that is called ``package.module:object``; None for no name. A class is called first.

    Raises: SettingsError.
    """
    if not name:
        return None
    module, _, path = name.partition(":")
    try:
        hook: Any = importlib.import_module(module)
        for part in path.split("."):
            hook = getattr(hook, part)
        hook = hook() if isinstance(hook, type) else hook
    except Exception as error:  # anything may be wrong with the operator's module
        raise SettingsError(
            f"SMALTI_MODERATION: {name} can't be loaded: {type(error).__name__}: {error}. Install it beside"
            " Smalti, or put its folder into PYTHONPATH"
        ) from error
    before, after = getattr(hook, "before", None), getattr(hook, "after", None)
    if not (callable(before) or callable(after)):
        raise SettingsError(f"SMALTI_MODERATION: {name} has neither a method before nor after")
    return Moderation(before if callable(before) else None, after if callable(after) else None, timeout_s)


def _asked_for(request: Resolved, owner: str) -> AskedFor:
    return AskedFor(
        operation=request.operation,
        pipeline=request.pipeline,
        owner=owner,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        labels=request.labels,
        num_samples=request.num_samples,
        seed=request.seed,
    )


def _failed() -> ModerationFailed:
    logger.exception("the moderation hook failed: refused")
    return ModerationFailed()


def _refusal(told: object) -> ModerationRefused | None:
    """Return why the hook refuses; None where it has nothing against it."""
    if told is None or isinstance(told, ModerationFailed):
        return told
    if not isinstance(told, str):
        logger.error("the moderation hook returned %s, not a message or None: refused", type(told).__name__)
        return ModerationFailed()
    return ModerationRefused(" ".join(told.split())[:MAX_MESSAGE_CHARS] or "it is refused")


def _codes_left(finished: Finished, samples: Sequence[SampleOutput]) -> Any:
    """Return the codes without those of samples that have an error: an output can be made from them."""
    codes = finished.codes
    if codes is None or codes.codes is None:
        return codes
    left = [
        None if sample.error is not None else each for sample, each in zip(samples, codes.codes, strict=True)
    ]
    return codes.model_copy(update={"codes": left})
