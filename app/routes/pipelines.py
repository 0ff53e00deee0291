"""GET /pipelines."""

from fastapi import APIRouter

from app.openapi import PIPELINE
from app.services import ServicesNeeded
from workers.messages import PipelineInfo

router = APIRouter(tags=["pipelines"])


@router.get(
    "/pipelines",
    operation_id="list_pipelines",
    summary="List the pipelines",
    responses={200: {"content": {"application/json": {"example": [PIPELINE.model_dump(mode="json")]}}}},
)
async def list_pipelines(services: ServicesNeeded) -> list[PipelineInfo]:
    """List the pipelines, with what each takes and makes; the first is the default."""
    return services.catalog.info()
