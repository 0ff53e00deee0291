"""The pipelines: what there is, where it is loaded, and orders to load it."""

from http import HTTPStatus
from typing import Literal

from fastapi import APIRouter

from app.examples import PIPELINES
from app.openapi import Responses, problems
from app.queue_checks import PipelineStates
from app.services import Services, ServicesNeeded
from workers.errors import QueueUnavailable
from workers.messages import PipelineInfo

router = APIRouter(tags=["pipelines"])
for_administrators = APIRouter(tags=["administration"])

_ANSWERS: Responses = {
    202: {"content": {"application/json": {"example": PIPELINES[0].model_dump(mode="json")}}},
    **problems("unknown_pipeline", "unauthorized", "forbidden", "queue_unavailable"),
}


@router.get(
    "/pipelines",
    operation_id="list_pipelines",
    summary="List the pipelines",
    responses={
        200: {
            "content": {"application/json": {"example": [each.model_dump(mode="json") for each in PIPELINES]}}
        }
    },
)
async def list_pipelines(services: ServicesNeeded) -> list[PipelineInfo]:
    """List the pipelines, with what each takes and makes, and where it is loaded; the first is the default.

    What the workers say (`seed_verdicts`, `loads`, `is_pinned`) is left out while the queue does not answer.
    """
    try:
        states = await services.queue.checks.pipeline_states()
    except QueueUnavailable:
        states = PipelineStates()
    return [_with_states(info, states) for info in services.catalog.info()]


@for_administrators.post(
    "/pipelines/{name}/load",
    operation_id="load_pipeline",
    summary="Keep a pipeline in memory",
    status_code=HTTPStatus.ACCEPTED,
    responses=_ANSWERS,
)
async def load_pipeline(name: str, services: ServicesNeeded) -> PipelineInfo:
    """Have every worker that serves a pipeline load it, and keep it, whatever else is asked for.

    Workers do so one after the other of their loads; `loads` here and in GET /pipelines tells how far each
    is. It stays so until the pipeline is unloaded, whatever is started again. One that could not be loaded
    is tried again.
    """
    return await _order(name, "load", services)


@for_administrators.post(
    "/pipelines/{name}/unload",
    operation_id="unload_pipeline",
    summary="Let go of a pipeline",
    status_code=HTTPStatus.ACCEPTED,
    responses=_ANSWERS,
)
async def unload_pipeline(name: str, services: ServicesNeeded) -> PipelineInfo:
    """Have every worker let go of a pipeline once the jobs that it runs have ended.

    It is still served: the next job for it loads it again.
    """
    return await _order(name, "unload", services)


async def _order(name: str, what: Literal["load", "unload"], services: Services) -> PipelineInfo:
    services.catalog[name]  # or there is no such pipeline
    await services.queue.control.order(name, what)
    states = await services.queue.checks.pipeline_states()
    return _with_states(next(info for info in services.catalog.info() if info.name == name), states)


def _with_states(info: PipelineInfo, states: PipelineStates) -> PipelineInfo:
    return info.model_copy(
        update={
            "seed_verdicts": tuple(states.verdicts.get(info.name, ())),
            "loads": tuple(states.loads.get(info.name, ())),
            "is_pinned": info.name in states.pinned,
        }
    )
