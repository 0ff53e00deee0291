"""GET /pipelines."""

from fastapi import APIRouter

from app.openapi import PIPELINES
from app.services import ServicesNeeded
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
    """List the pipelines, with what each takes and makes; the first is the default."""
    return services.catalog.info()
