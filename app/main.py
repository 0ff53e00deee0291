"""The HTTP application."""

import asyncio
import contextlib
import importlib.metadata
import logging
import math
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline

from app.access import CheckKey
from app.admission import AdmitBodies, BodyLimits
from app.batches.feeder import Feeder
from app.batches.records import batch_id_of_job
from app.batches.store import BatchStore
from app.browsers import AllowOrigins, CheckSite, SecureHeaders
from app.errors import InternalErrors, add_error_handlers
from app.files import FileStore
from app.keys import KeyLimits, Keys, is_loopback, load_keys
from app.limits import Rate, TellAllowance
from app.methods import AnswerMethods
from app.metrics import CountRequests, HttpMetrics
from app.openai_batches import NotesStore
from app.openai_stream import CompletedImage, PartialImage
from app.openapi import DESCRIPTION, any_problem, use_openapi
from app.queue import JobQueue
from app.request_ids import IdentifyRequests
from app.root_path import UseRootPath
from app.routes import (
    admin,
    batches,
    decode,
    encode,
    events,
    files,
    generate,
    health,
    jobs,
    metrics,
    openai,
    openai_batches,
    openai_files,
    outputs,
    pipelines,
)
from app.routes.events import JobUpdate
from app.services import Services
from app.settings import AppSettings
from app.webhooks.delivery import Delivery
from app.webhooks.sender import Sender
from workers.blobs import BlobStore
from workers.errors import QueueUnavailable, StorageUnavailable
from workers.moderation import load_moderation
from workers.otel import load_spans
from workers.pipeline_folders import SCAN_EVERY_S, PipelineFolders
from workers.results import open_results
from workers.settings import SettingsError

if TYPE_CHECKING:
    from workers.spans import Spans

logger = logging.getLogger(__name__)

_SWEEP_EVERY_S = 60
_SWEEP_MARGIN_S = 300  # outputs are stored a little before their job ends, sources before it is submitted
_TAGS = [
    {"name": "work", "description": "Requests that become jobs."},
    {"name": "jobs", "description": "Jobs, their progress and their outputs."},
    {"name": "files", "description": "Files that are sent once and named by their id."},
    {"name": "batches", "description": "Many requests at once, beside interactive ones."},
    {"name": "pipelines", "description": "What there is to ask for."},
    {
        "name": "openai",
        "x-displayName": "OpenAI",
        "description": "OpenAI's Images API, for its unmodified clients.",
    },
    {"name": "administration", "description": "For keys with the scope admin, where there are keys."},
    {"name": "health", "description": "For load balancers and orchestrators."},
]


def create_app(settings: AppSettings, spans: "Spans | None" = None) -> FastAPI:
    """Return the application; it reaches for the queue when it starts, not before.

    Raises: ConfigError when there is no pipeline to serve; SettingsError when there is no queue server, no
    key where others can reach it, or no such moderation hook. spans: instead of those of the settings.
    """
    if settings.redis_url is None:
        raise SettingsError(
            "REDIS_URL is not set: name the queue server, or use `smalti up`, which has its own"
        )
    redis_url, keys = settings.redis_url, _keys(settings)
    moderation = load_moderation(settings.moderation, settings.moderation_timeout_s)
    folders = PipelineFolders.load(settings.weights_dir, settings.pipelines)
    catalog = folders.catalog

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        queue = JobQueue(
            redis_url,
            max_length=settings.max_queue_length,
            result_ttl_s=settings.result_ttl_s,
            moderation=moderation,
        )
        results, blobs = open_results(settings), BlobStore(settings.blobs_dir)
        uploads = FileStore(settings.files_dir, settings.max_file_bytes_per_key)
        kept_batches = BatchStore(
            settings.batches_dir, settings.batch_ttl_s, max_bytes_per_key=settings.max_batch_bytes_per_key
        )
        services = Services(
            settings, catalog, queue, results, blobs, uploads, kept_batches, limits=_limits(settings, keys)
        )
        app.state.services = services
        tasks = [asyncio.create_task(_sweep_forever(services)), asyncio.create_task(Feeder(services).run())]
        tasks.append(asyncio.create_task(_follow_forever(folders)))
        if settings.webhook_secret is not None:
            sender = Sender(settings.webhook_secret.get_secret_value(), settings.webhook_hosts)
            delivery = Delivery(services, keys, sender, settings.webhook_retries_s)
            tasks.append(asyncio.create_task(delivery.run()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            services.decoders.close()
            await queue.close()

    app = FastAPIOffline(  # /docs with the scripts that come with the package, instead of a CDN's
        redoc_url=None,
        title="Smalti",
        version=importlib.metadata.version("smalti"),
        description=DESCRIPTION,
        openapi_tags=_TAGS,
        responses=any_problem(),
        swagger_ui_parameters={"validatorUrl": None},  # which is a public server's by default
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.http_metrics = HttpMetrics()
    add_error_handlers(app)
    spans = spans or load_spans(settings.tracing, "smalti-api")
    _add_door(app, settings, keys, app.state.http_metrics, spans)
    work = (generate, encode, decode, jobs, outputs, events, files, batches, pipelines)
    for routes in (*work, admin, health, metrics, openai, openai_files, openai_batches):
        app.include_router(routes.router)
    app.include_router(pipelines.for_administrators)
    app.add_api_route("/", _home, include_in_schema=False)
    use_openapi(app, has_keys=bool(keys), models=(JobUpdate, PartialImage, CompletedImage))
    return app


def _keys(settings: AppSettings) -> Keys:
    """Return the keys that requests need; none where they need none.

    Raises: SettingsError.
    """
    keys = load_keys(settings.api_keys, settings.api_keys_file)
    is_alone = settings.require_keys == "auto" and is_loopback(settings.host)
    if keys or is_alone or settings.require_keys == "off":
        return keys
    raise SettingsError(
        f"there are no API keys, and others can reach {settings.host}: make one with `smalti new-key NAME"
        " --file FILE` and set SMALTI_API_KEYS_FILE=FILE; or set SMALTI_REQUIRE_KEYS=off where something"
        " else decides who gets here"
    )


def _limits(settings: AppSettings, keys: Keys) -> KeyLimits:
    """Return what each key may ask for; a key that is alone may have the whole queue."""
    rate = Rate.read(settings.rate_limit) if settings.rate_limit else None
    if len(keys) < 2 or settings.max_queue_share == 1:
        return KeyLimits(rate)
    return KeyLimits(rate, max(1, math.floor(settings.max_queue_share * settings.max_queue_length)))


def _add_door(
    app: FastAPI, settings: AppSettings, keys: Keys, metrics: HttpMetrics, spans: "Spans | None"
) -> None:
    """Add what every request goes through; the last that is added is the first that sees it."""
    limits = BodyLimits(settings.max_in_flight_bytes, settings.body_timeout_s, settings.min_body_bytes_per_s)
    app.add_middleware(AdmitBodies, metrics=metrics, limits=limits)
    app.add_middleware(InternalErrors)
    app.add_middleware(AnswerMethods)
    if keys:
        app.add_middleware(TellAllowance)
        app.add_middleware(CheckKey, keys=keys, metrics=metrics)
    hosts = (settings.host.lower(), *settings.allowed_hosts)
    app.add_middleware(CheckSite, metrics=metrics, allowed_hosts=hosts, origins=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(AllowOrigins, origins=settings.cors_origins)
    app.add_middleware(SecureHeaders, has_foreign_pages=bool(settings.cors_origins))
    app.add_middleware(UseRootPath, root_path=settings.root_path)
    app.add_middleware(CountRequests, metrics=metrics)
    app.add_middleware(IdentifyRequests, spans=spans)


async def _home() -> RedirectResponse:
    return RedirectResponse("/docs")


async def _follow_forever(folders: PipelineFolders) -> None:
    while True:
        try:
            await asyncio.to_thread(folders.refresh)
        except Exception:  # as it must go on
            logger.exception("the weights folder could not be looked at")
        await asyncio.sleep(SCAN_EVERY_S)


async def _sweep_forever(services: Services) -> None:
    while True:
        try:
            await sweep(services)
        except OSError as error:
            logger.warning("the data folder could not be swept: %s", error.strerror)
        except StorageUnavailable as error:
            logger.warning("the data folder could not be swept: %s", error)
        except QueueUnavailable:
            pass  # which is logged already
        await asyncio.sleep(_SWEEP_EVERY_S)


async def sweep(services: Services, margin_s: float = _SWEEP_MARGIN_S) -> None:
    """Remove what has expired: batches, files of jobs, uploads; and sources that no job refers to any more.

    Raises: OSError, which a TimeoutError is, too; QueueUnavailable; StorageUnavailable.
    """
    loop = asyncio.get_running_loop()

    def is_referenced(sha256s: Sequence[str]) -> Sequence[bool]:
        return asyncio.run_coroutine_threadsafe(services.queue.referenced_blobs(sha256s), loop).result(10)

    store, settings = services.batches, services.settings
    num_batches = await asyncio.to_thread(store.sweep)
    kept = await asyncio.to_thread(store.ids)
    notes = NotesStore(settings.openai_batches_dir)
    await asyncio.to_thread(notes.sweep, kept, margin_s)
    num_jobs = await asyncio.to_thread(
        services.results.sweep,
        settings.result_ttl_s + margin_s,
        lambda job_id: batch_id_of_job(job_id) in kept,
    )
    num_blobs = await asyncio.to_thread(services.blobs.sweep, is_referenced, margin_s)
    owners = await asyncio.to_thread(store.owners_of_unread)  # before the files of those that are read
    named = await asyncio.to_thread(store.files_in_use)
    num_files = await asyncio.to_thread(services.files.sweep, settings.file_ttl_s, named.__contains__, owners)
    if num_batches or num_jobs or num_blobs or num_files:
        logger.info(
            "swept %d expired batches, the results of %d expired jobs, %d sources and %d uploads",
            num_batches,
            num_jobs,
            num_blobs,
            num_files,
        )
