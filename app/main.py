"""The HTTP application."""

import asyncio
import contextlib
import importlib.metadata
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from app.errors import add_error_handlers
from app.metrics import CountRequests, HttpMetrics
from app.openapi import DESCRIPTION, use_openapi
from app.queue import JobQueue
from app.routes import decode, encode, events, generate, health, jobs, metrics, pipelines
from app.services import Services
from app.settings import AppSettings
from workers.artifacts import ArtifactStore
from workers.catalog import Catalog
from workers.settings import SettingsError

logger = logging.getLogger(__name__)

_SWEEP_EVERY_S = 60
_SWEEP_MARGIN_S = 300  # images are stored a little before their job ends
_TAGS = [
    {"name": "work", "description": "Requests that become jobs."},
    {"name": "jobs", "description": "Jobs, their progress and their images."},
    {"name": "pipelines", "description": "What there is to ask for."},
    {"name": "health", "description": "For load balancers and orchestrators."},
]


def create_app(settings: AppSettings) -> FastAPI:
    """Return the application; it reaches for the queue when it starts, not before.

    Raises: ConfigError when there is no pipeline to serve; SettingsError when there is no queue server.
    """
    if settings.redis_url is None:
        raise SettingsError(
            "REDIS_URL is not set: name the queue server, or use `smalti up`, which has its own"
        )
    redis_url = settings.redis_url
    catalog = Catalog.load(settings.weights_dir, settings.pipelines)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        queue = JobQueue(redis_url, max_length=settings.max_queue_length, result_ttl_s=settings.result_ttl_s)
        artifacts = ArtifactStore(settings.artifacts_dir)
        app.state.services = Services(settings, catalog, queue, artifacts)
        sweeping = asyncio.create_task(_sweep(artifacts, settings.result_ttl_s + _SWEEP_MARGIN_S))
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
            await queue.close()

    app = FastAPI(
        title="Smalti",
        version=importlib.metadata.version("smalti"),
        description=DESCRIPTION,
        openapi_tags=_TAGS,
        lifespan=lifespan,
    )
    app.state.http_metrics = HttpMetrics()
    add_error_handlers(app)
    app.add_middleware(CountRequests, metrics=app.state.http_metrics)
    for routes in (generate, encode, decode, jobs, events, pipelines, health, metrics):
        app.include_router(routes.router)
    app.add_api_route("/", _home, include_in_schema=False)
    use_openapi(app)
    return app


async def _home() -> RedirectResponse:
    return RedirectResponse("/docs")


async def _sweep(artifacts: ArtifactStore, older_than_s: float) -> None:
    """Remove the images of expired jobs from time to time."""
    while True:
        try:
            num_removed = await asyncio.to_thread(artifacts.sweep, older_than_s)
        except OSError as error:
            logger.warning("results could not be swept: %s", error.strerror)
        else:
            if num_removed:
                logger.info("swept the images of %d expired jobs", num_removed)
        await asyncio.sleep(_SWEEP_EVERY_S)
