"""Codes in answers: filled in from the result store, and taken out of an answer that comes back."""

import asyncio
from typing import TYPE_CHECKING, Any

from workers.messages import DecodeRequest, JobView

if TYPE_CHECKING:
    from app.services import Services


async def with_codes(job: JobView, services: "Services") -> JobView:
    """Return the job with its codes, which lie in the result store.

    Raises: JobNotFound when they have expired.
    """
    if job.result is None or job.result.codes is None or job.result.codes.codes is not None:
        return job
    codes = await asyncio.to_thread(services.results.read_codes, job.id)
    filled = job.result.codes.model_copy(update={"codes": codes})
    return job.model_copy(update={"result": job.result.model_copy(update={"codes": filled})})


def codes_of_answer(body: Any) -> Any:
    """Return the body for /decode of an answer to /encode: the whole job, or its result; others as they are.

    Fields of a request beside them, such as `format`, stay.

    Raises: ValueError for a job without a result.
    """
    if not isinstance(body, dict) or "operation" not in body:
        return body
    result = body.get("result") if "status" in body else body
    if not isinstance(result, dict):
        raise ValueError(f"is a job without a result: it is {str(body['status'])[:20]}")
    beside = {name: value for name, value in body.items() if name in DecodeRequest.model_fields}
    return {**beside, "codes": result.get("codes")}
