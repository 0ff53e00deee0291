"""Encode any number of pictures: as one job, or as many as it takes, to one result."""

import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any

from smalti.errors import AnswerUnreadable, RequestFailed, SmaltiError
from smalti.models import Codes, JobInfo, Output, Result
from smalti.progress import Bar
from smalti.service import Service
from smalti.sources import Files, parts_of

_MAX_UNDER_WAY = 4  # jobs, so that workers always have one


async def encode_all(
    service: Service,
    fields: Mapping[str, Any],
    timeout_s: float,
    *,
    progress: bool,
    cancel_on_timeout: bool,
) -> Result:
    """Return the codes of all sources in their order.

    Raises: as ``Service.work``; AnswerUnreadable where the tokenizer changes on the way.
    """
    parts = parts_of(fields["source"])
    first = next(parts)
    second = next(parts, None)
    if second is None:
        given = {**fields, "source": first}
        return await service.work(
            "encode", given, timeout_s, progress=progress, cancel_on_timeout=cancel_on_timeout
        )
    with Bar("encode", is_on=progress, total=_total(fields["source"])) as bar:
        many = _Many(service, fields, timeout_s, cancel_on_timeout, bar)
        return await many.encode(chain([first, second], parts))


class _Many:
    """Jobs of one call, a few at a time, and what came of them so far."""

    def __init__(
        self, service: Service, fields: Mapping[str, Any], timeout_s: float, cancels: bool, bar: Bar
    ) -> None:
        self._service = service
        self._fields = dict(fields)
        self._key = self._fields.pop("idempotency_key", None) or uuid.uuid4().hex
        self._ends_at = time.monotonic() + timeout_s
        self._cancels = cancels
        self._bar = bar
        self._results: list[Result] = []
        self._num_sent = 0

    async def encode(self, parts: Iterable[Files]) -> Result:
        """Return the results of all parts as one; where one fails, those under way are cancelled."""
        jobs: deque[JobInfo] = deque()
        try:
            for number, part in enumerate(parts):
                # A key for each, the same when the same call is made again.
                key = uuid.uuid5(uuid.NAMESPACE_OID, f"{self._key}/{number}").hex
                jobs.append(await self._submit(part, key))
                if len(jobs) == _MAX_UNDER_WAY:
                    await self._take(jobs.popleft())
            while jobs:
                await self._take(jobs.popleft())
        except BaseException:
            for job in jobs:
                with suppress(SmaltiError):  # what went wrong first is what is told
                    await self._service.cancel(job.id)
            raise
        return joined(self._results)

    async def _submit(self, part: Files, key: str) -> JobInfo:
        start = self._num_sent
        self._num_sent += len(part)
        try:
            return await self._service.submit("encode", {**self._fields, "source": part}, key)
        except RequestFailed as error:
            error.add_note(f"source[0] of this job is number {start} of the list")
            raise

    async def _take(self, job: JobInfo) -> None:
        left_s = max(0.0, self._ends_at - time.monotonic())
        job = await self._service.wait(job, left_s, progress=False, cancel_on_timeout=self._cancels)
        result = await self._service.result_of(job, fetch=True)  # latents, where there are some
        self._results.append(result)
        self._bar.count(len(result.outputs))


def joined(results: list[Result]) -> Result:
    """Return results of encode as one: samples are counted through.

    Raises: AnswerUnreadable where they are of different tokenizers.
    """
    first, *others = results
    if first.latents is not None:
        return _joined_latents(results)
    all_codes = [_codes_of(result) for result in results]
    outputs = _outputs_of(results)
    merged: dict[str, Any] = {"codes": [each for codes in all_codes for each in codes.codes or []]}
    if any(codes.lengths is not None for codes in all_codes):
        merged["lengths"] = [each for codes in all_codes for each in codes.lengths or []]
    for result, codes in zip(others, all_codes[1:], strict=True):
        if (result.pipeline, codes.tokenizer) != (first.pipeline, all_codes[0].tokenizer):
            raise AnswerUnreadable(
                f"the service changed on the way: the first codes are of {first.pipeline}"
                f" {all_codes[0].tokenizer}, others of {result.pipeline} {codes.tokenizer}; name the pipeline"
            )
    warnings = _warnings_of(results)
    return first.model_copy(
        update={
            "outputs": outputs,
            "codes": all_codes[0].model_copy(update=merged),
            "warnings": warnings,
        }
    )


def _joined_latents(results: list[Result]) -> Result:
    """Return results of encode as one, with their latents in one file. Raises: MissingPackage; NoBytes."""
    import io

    first = results[0]
    all_latents = [result.latents for result in results if result.latents is not None]
    arrays = [latents.numpy() for latents in all_latents]
    tokenizers = {latents.tokenizer for latents in all_latents}
    if len(arrays) < len(results) or len(tokenizers) > 1:
        raise AnswerUnreadable("the service changed on the way: the latents are of several tokenizers")
    import numpy

    buffer = io.BytesIO()
    numpy.save(buffer, numpy.concatenate(arrays))
    shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
    latents = all_latents[0].model_copy(update={"url": None, "shape": shape})
    latents.take(buffer.getvalue())
    changes = {"outputs": _outputs_of(results), "latents": latents, "warnings": _warnings_of(results)}
    return first.model_copy(update=changes)


def _outputs_of(results: list[Result]) -> list[Output]:
    """Return the outputs of all, counted through."""
    outputs: list[Output] = []
    for result in results:
        start = len(outputs)
        outputs += [each.model_copy(update={"sample": start + each.sample}) for each in result.outputs]
    return outputs


def _warnings_of(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(warning for result in results for warning in result.warnings))


def _codes_of(result: Result) -> Codes:
    if result.codes is None:
        raise AnswerUnreadable("an answer to encode has no codes")
    return result.codes


def _total(source: Any) -> int | None:
    return len(source) if isinstance(source, (list, tuple)) else None
