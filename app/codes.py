"""Codes and latents in answers: filled in from the result store, and taken out of what comes back."""

import asyncio
from typing import TYPE_CHECKING, Any

from app.keys import shown_address
from workers.messages import DecodeRequest, JobStatus, JobView, Result

if TYPE_CHECKING:
    from app.services import Services

LONGEST_WAIT_S = 7 * 86400  # of a job until its end, for which the address of its events holds
_RESULT_FIELDS = {**Result.model_fields, **Result.model_computed_fields}


async def with_codes(job: JobView, services: "Services") -> JobView:
    """Return the job as it is shown: with its codes, which lie in the result store, and addresses to get.

    Raises: JobNotFound when they have expired.
    """
    job = with_addresses(job, services)
    if job.result is None or job.result.codes is None:
        return job
    result = await asyncio.to_thread(_filled, job.result, job.id, services)
    return job.model_copy(update={"result": result})


def with_addresses(job: JobView, services: "Services") -> JobView:
    """Return the job with addresses of its events and outputs that can be got as they are."""
    lifetime_s = services.settings.result_ttl_s
    followed_s = lifetime_s if job.status.is_terminal else LONGEST_WAIT_S + lifetime_s
    job = job.model_copy(update={"events_url": _shown(f"/jobs/{job.id}/events", services, followed_s)})
    if job.result is None:
        return job
    return job.model_copy(update={"result": _with_addresses(job.result, services, lifetime_s)})


def shown_result(result: Result, job_id: str, services: "Services", lifetime_s: int) -> Result:
    """Return a result as it is shown: with its codes, and addresses of its outputs for so long.

    Raises: JobNotFound when the codes have expired.
    """
    return _filled(_with_addresses(result, services, lifetime_s), job_id, services)


def _filled(result: Result, job_id: str, services: "Services") -> Result:
    """Return a result with its codes, where it has some. Raises: JobNotFound."""
    if result.codes is None or result.codes.codes is not None:
        return result
    filled = result.codes.model_copy(update={"codes": services.results.read_codes(job_id)})
    return result.model_copy(update={"codes": filled})


def _with_addresses(result: Result, services: "Services", lifetime_s: int) -> Result:
    outputs = [
        output
        if output.url is None
        else output.model_copy(update={"url": _shown(output.url, services, lifetime_s)})
        for output in result.outputs
    ]
    changes: dict[str, Any] = {"outputs": outputs}
    if result.latents is not None and result.latents.url is not None:
        shown = _shown(result.latents.url, services, lifetime_s)
        changes["latents"] = result.latents.model_copy(update={"url": shown})
    return result.model_copy(update=changes)


def _shown(path: str, services: "Services", lifetime_s: int) -> str:
    """Return an address as a client can use it: signed where keys are needed, behind a proxy's prefix."""
    return services.settings.root_path + shown_address(path, lifetime_s)


def codes_of_answer(body: Any) -> Any:
    """Return the body for /decode of an answer with codes or latents: the whole job, or its result.

    Others stay as they are, and so do fields beside those of the answer, such as `format`: a wrong one is
    told as in any request.

    Raises: ValueError for a job without a result, and a result without codes and latents.
    """
    if not isinstance(body, dict) or "operation" not in body:
        return body
    is_job = "status" in body
    result = body.get("result") if is_job else body
    if not isinstance(result, dict):
        status = body.get("status")
        got = status if status in tuple(JobStatus) else "of another kind"
        raise ValueError(f"is a job without a result: it is {got}")
    found = next((name for name in ("codes", "latents") if result.get(name) is not None), None)
    if is_job and (body.get("codes") is not None or body.get("latents") is not None):
        raise ValueError(f"holds the {found or 'codes'} of a job and others beside it: send one of the two")
    if found is None:
        raise ValueError("holds no codes: /encode returns them, and /generate with return_codes")
    own = (JobView.model_fields if is_job else _RESULT_FIELDS).keys() - (
        DecodeRequest.model_fields.keys() - {"codes", "latents"}
    )
    beside = {name: value for name, value in body.items() if name not in own}
    return {**beside, found: result[found]}
