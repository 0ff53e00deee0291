"""From settings to an engine with its pipelines loaded, for workers and for the command line."""

from collections.abc import Iterable

import torch

from models.pipeline import Pipeline
from workers.catalog import Catalog
from workers.engine.allocator import keep_freed_memory
from workers.engine.engine import Engine
from workers.engine.seed_promise import SeedPromise
from workers.settings import WorkerSettings


def load_engine(settings: WorkerSettings, catalog: Catalog, names: Iterable[str] | None = None) -> Engine:
    """Return an engine for the pipelines ``names`` of ``catalog``, or for all of them.

    Raises: ConfigError when one can't be loaded.
    """
    keep_freed_memory()
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    device = _best_device() if settings.device == "auto" else settings.device
    pipelines = {name: Pipeline.load(catalog[name].folder, device) for name in names or catalog.names}
    promise = SeedPromise(settings.seed_promise, settings.verdicts_dir)
    return Engine(pipelines, settings.max_batch_size, promise=promise)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
