"""Is this process alive, and is the service ready?"""

import asyncio
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.errors import NotReady
from app.openapi import problems
from app.services import ServicesNeeded

router = APIRouter(prefix="/health", tags=["health"])


class Liveness(BaseModel):
    """This process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "live"}]})

    status: Literal["live"] = "live"


class Readiness(BaseModel):
    """The queue answers, and a worker has its models warm."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "status": "ready",
                    "num_ready_workers": 2,
                    "num_draining_workers": 0,
                    "queue_length": 3,
                    "is_paused": False,
                    "refused_pipelines": {},
                }
            ]
        }
    )

    status: Literal["ready"] = "ready"
    num_ready_workers: int
    num_draining_workers: int = Field(description="Workers that finish what they have and take nothing new.")
    queue_length: int = Field(description="Jobs that wait.")
    is_paused: bool = Field(
        default=False, description="Whether jobs are accepted, but none is begun: see POST /queue/pause."
    )
    refused_pipelines: dict[str, str] = Field(
        default_factory=dict,
        description="Why pipelines are not served: by folder, one whose `pipeline.json` can't be used; by"
        " name, one that no worker could load.",
    )


@router.get("/live", operation_id="is_live", summary="Is this process alive?")
async def is_live() -> Liveness:
    """Answer, whatever the state of the queue and the workers."""
    return Liveness()


@router.get(
    "/ready",
    operation_id="is_ready",
    summary="Is the service ready?",
    responses=problems("not_ready", "queue_unavailable", "storage_unavailable", "storage_full"),
)
async def is_ready(services: ServicesNeeded) -> Readiness:
    """Answer 200 when a job of any pipeline would be worked on now, and 503 with the reason when not.

    While the queue is paused, it is 200 with `is_paused`: jobs are accepted. A pipeline that came while the
    service ran, or that no worker could load, does not make it 503: `refused_pipelines` tells why.

    It tries what a job needs: to write into the queue and the stores, and a ready worker for each pipeline.
    """
    health = await services.queue.checks.check()
    for store in (services.results, services.blobs):
        await asyncio.to_thread(store.check)
    if not health.num_ready_workers:
        if health.num_draining_workers:
            raise NotReady(f"{health.num_draining_workers} workers are draining, and no other is ready")
        raise NotReady("no worker is ready; the first is ready once its models are loaded and warm")
    known = health.pipelines | health.failed.keys()
    missing = [name for name in services.catalog.first_names if name not in known]
    if missing:
        raise NotReady(f"no worker is ready for {', '.join(missing)}")
    return Readiness(
        num_ready_workers=health.num_ready_workers,
        num_draining_workers=health.num_draining_workers,
        queue_length=health.queue_length,
        is_paused=health.is_paused,
        refused_pipelines=dict(sorted({**services.catalog.refused, **health.failed}.items())),
    )
