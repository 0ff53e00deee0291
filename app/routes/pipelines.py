"""GET /pipelines."""

from fastapi import APIRouter

from app.examples import PIPELINES
from app.services import ServicesNeeded
from workers.errors import QueueUnavailable
from workers.messages import PipelineInfo

router = APIRouter(tags=["pipelines"])


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
    """List the pipelines, with what each takes and makes; the first is the default.

    What the workers found of the seed promise is left out while the queue does not answer.
    """
    try:
        verdicts = await services.queue.checks.seed_verdicts()
    except QueueUnavailable:
        verdicts = {}
    return [
        info.model_copy(update={"seed_verdicts": tuple(verdicts.get(info.name, ()))})
        for info in services.catalog.info()
    ]
