"""From settings to an engine with its pipelines loaded, for workers and for the command line."""

from collections.abc import Iterable, Iterator, Mapping

import torch

from models.allocator import give_back_freed_memory, keep_freed_memory
from models.networks.text_encoder import TENSORS_FILE as TEXT_ENCODER_FILE
from models.options import Precision
from models.pipeline import AUTOENCODER_FILE, PRIOR_FILE, Pipeline
from workers.catalog import Catalog, CatalogEntry
from workers.engine.engine import Engine
from workers.engine.memory import SHARE, free_bytes
from workers.engine.seed_promise import SeedPromise
from workers.settings import SettingsError, WorkerSettings


def load_engine(settings: WorkerSettings, catalog: Catalog, names: Iterable[str] | None = None) -> Engine:
    """Return an engine for the pipelines ``names`` of ``catalog``, or for all of them.

    Raises: SettingsError when there is no such device; ConfigError when a pipeline can't be loaded.
    """
    shelf = Shelf(settings)
    return shelf.start({name: shelf.read(catalog[name]) for name in names or catalog.names})


class Shelf:
    """Pipelines on disk, and those of them in one engine: the ``Models`` of a worker (workers/compute.py).

    Raises: SettingsError when there is no such device.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        keep_freed_memory()
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)
        self._settings = settings
        self.device, self._precision = _chosen_device(settings), chosen_precision(settings)
        choose_kernels(torch.device(self.device), self._precision)
        self._engine: Engine | None = None

    def read(self, entry: CatalogEntry) -> Pipeline:
        """Return a pipeline from its folder; called on any thread. Raises: ConfigError."""
        pipeline = Pipeline.load(entry.folder, self.device, precision=self._precision)
        if pipeline.prior is not None:
            _ = pipeline.prior_fingerprint  # which the seed promise needs, and takes a while
        return pipeline

    def start(self, pipelines: Mapping[str, Pipeline]) -> Engine:
        """Return the engine, with these pipelines."""
        settings = self._settings
        promise = SeedPromise(settings.seed_promise, settings.verdicts_dir)
        self._engine = Engine(pipelines, settings.max_batch_size, promise=promise, ageing_s=settings.ageing_s)
        return self._engine

    def add(self, name: str, pipeline: Pipeline) -> Iterator[None]:
        """Take a pipeline into the engine; see ``Engine.add``."""
        assert self._engine is not None
        return self._engine.add(name, pipeline)

    def remove(self, name: str) -> Iterator[None]:
        """Take a pipeline out of the engine."""
        assert self._engine is not None
        self._engine.remove(name)
        yield

    def estimated_bytes(self, entry: CatalogEntry) -> int:
        """Return about how much memory a pipeline will take: the size of its files."""
        folders = [entry.folder]
        if entry.spec.shares_with:
            folders.append(entry.folder.parent / entry.spec.shares_with)
        names = (AUTOENCODER_FILE, TEXT_ENCODER_FILE)
        files = [entry.folder / PRIOR_FILE, *(folders[-1] / name for name in names)]
        return sum(file.stat().st_size for file in files if file.is_file())

    def free_bytes(self) -> int | None:
        """Return how much memory may be filled; None where nobody knows."""
        give_back_freed_memory()
        free = free_bytes(torch.device(self.device))
        return None if free is None else int(SHARE * free)


def chosen_precision(settings: WorkerSettings) -> Precision:
    """Return in which precision this process's tokenizers compute.

    Raises: SettingsError when there is no such device.
    """
    return settings.tokenizer_precision if _chosen_device(settings).startswith("cuda") else "float32"


def choose_kernels(device: torch.device, precision: Precision) -> None:
    """Choose, for the whole process, which kernels a GPU computes with; nothing on another device."""
    if device.type != "cuda":
        return
    if device.index is not None:
        torch.cuda.set_device(device)
    # Left to itself, attention takes cuDNN's kernel, which costs the host 1.5 ms a call.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Left to itself, cuDNN takes TF32 for what is called float32, and codes differ.
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def _chosen_device(settings: WorkerSettings) -> str:
    return _best_device(settings.worker_number) if settings.device == "auto" else _present(settings.device)


def _best_device(worker_number: int) -> str:
    if torch.cuda.is_available():
        return f"cuda:{worker_number % torch.cuda.device_count()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _present(device: str) -> str:
    """Return a device that is here.

    Raises: SettingsError.
    """
    kind, _, number = device.partition(":")
    match kind:
        case "cuda":
            num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        case "mps":
            num_devices = int(torch.backends.mps.is_available())
        case _:
            num_devices = 1
    if int(number or 0) < num_devices:
        return device
    found = f"only {kind}:0 to {kind}:{num_devices - 1}" if num_devices else f"no {kind} device"
    raise SettingsError(f"SMALTI_DEVICE is {device}, but PyTorch finds {found} here: set it to auto or cpu")
