"""A worker from its settings: its pipelines loaded and warm, then at work until a signal."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import redis

from models.options import ConfigError
from workers.blobs import BlobStore, source_reader
from workers.catalog import CatalogEntry
from workers.in_flight import InFlight
from workers.loader import Compute, Loader
from workers.moderation import load_moderation
from workers.otel import load_spans
from workers.pipeline_folders import PipelineFolders, without_paths
from workers.queue.consumer import Consumer, read_orders
from workers.queue.probe import connect_once
from workers.queue.records import loading_key
from workers.results import open_results
from workers.settings import WorkerSettings
from workers.worker import Worker, WorkerConfig, stop_on_signals

if TYPE_CHECKING:
    from models.pipeline import Pipeline
    from workers.engine.loading import Shelf

logger = logging.getLogger(__name__)


@dataclass
class _Started:
    """What came of the pipelines at the start: those that were loaded, and why others could not be."""

    pipelines: dict[str, "Pipeline"] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def run_worker(settings: WorkerSettings) -> None:
    """Load the pipelines, warm the engine, and work until SIGTERM or SIGINT.

    Raises: ConfigError when there is no pipeline to serve, or one that was named can't be loaded;
    SettingsError when moderation hook or tracing can't be had; StorageUnavailable when results can't be
    written.
    """
    worker = new_worker(settings)
    stop_on_signals(worker)
    worker.run()


def new_worker(settings: WorkerSettings) -> Worker:
    """Return a worker whose pipelines are loaded and warm. Raises: as ``run_worker``."""
    from workers.engine.loading import Shelf

    assert settings.redis_url is not None
    folders = PipelineFolders.load(settings.weights_dir, settings.pipelines)
    folders.refresh()
    catalog = folders.catalog
    moderation = load_moderation(settings.moderation, settings.moderation_timeout_s)
    spans = load_spans(settings.tracing, "smalti-worker")
    results = open_results(settings)
    results.check()
    shelf = Shelf(settings)
    started = _load(shelf, _to_load(settings.redis_url, catalog.entries), settings)
    engine = shelf.start(started.pipelines)
    engine.warm_up()
    worker = Worker(
        settings.redis_url,
        engine,
        results,
        WorkerConfig(
            lease_s=settings.lease_s,
            max_tries=settings.max_tries,
            grace_s=settings.drain_grace_s,
            ageing_s=settings.ageing_s,
            tells_provenance=settings.provenance == "on",
            device=shelf.device,
            moderation=moderation,
            spans=spans,
        ),
        read_sources=source_reader(catalog, BlobStore(settings.blobs_dir)),
        pipelines=catalog.names,
    )
    loaded = {name: (catalog[name], pipeline.num_bytes) for name, pipeline in started.pipelines.items()}

    def make_loader(consumer: Consumer, in_flight: InFlight, compute: Compute) -> Loader:
        return Loader(
            consumer,
            in_flight,
            shelf,
            folders,
            compute,
            max_bytes=settings.max_loaded_bytes,
            loaded=loaded,
            failed=started.failed,
        )

    worker.load_with(make_loader)
    return worker


def _to_load(redis_url: str, entries: Sequence[CatalogEntry]) -> list[CatalogEntry]:
    """Return what to load at the start: pinned pipelines first, none that was unloaded or killed a worker."""
    orders: Mapping[str, tuple[str, int]] = {}
    killed: set[str] = set()
    try:
        with connect_once(redis_url) as client:
            orders = read_orders(client)
            killed = {
                entry.spec.name
                for entry in entries
                if client.exists(loading_key(entry.spec.name, entry.stamp))
            }
    except redis.RedisError as error:
        logger.warning("can't see what administrators asked for: %s", type(error).__name__)
    what = {name: order for name, (order, _) in orders.items()}
    wanted = [
        entry for entry in entries if what.get(entry.spec.name) != "unload" and entry.spec.name not in killed
    ]
    return sorted(wanted, key=lambda entry: what.get(entry.spec.name) != "load")


def _load(shelf: "Shelf", entries: Sequence[CatalogEntry], settings: WorkerSettings) -> _Started:
    """Load pipelines while they fit. Raises: ConfigError when a named one, or every one, can't be loaded."""
    started, held = _Started(), 0
    for entry in entries:
        num_bytes = shelf.estimated_bytes(entry)
        if settings.max_loaded_bytes is not None:
            fits = held + num_bytes <= settings.max_loaded_bytes
        else:
            free = shelf.free_bytes()
            fits = free is None or num_bytes <= free or not started.pipelines
        if not fits:
            logger.info(
                "pipeline=%s is not loaded, as memory is full; a job for it changes that", entry.spec.name
            )
            continue
        try:
            pipeline = shelf.read(entry)
        except ConfigError as error:
            if settings.pipelines or len(entries) == 1:
                raise
            logger.error("pipeline=%s could not be loaded: %s", entry.spec.name, error)
            started.failed[entry.spec.name] = without_paths(str(error), entry.folder)
            continue
        started.pipelines[entry.spec.name] = pipeline
        held += pipeline.num_bytes
    if started.failed and not started.pipelines:
        raise ConfigError("no pipeline could be loaded: " + "; ".join(started.failed.values()))
    return started
