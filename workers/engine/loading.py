"""From settings to an engine with its pipelines loaded, for workers and for the command line."""

from collections.abc import Iterable

import torch

from models.options import Precision
from models.pipeline import Pipeline
from workers.catalog import Catalog
from workers.engine.allocator import keep_freed_memory
from workers.engine.engine import Engine
from workers.engine.seed_promise import SeedPromise
from workers.settings import SettingsError, WorkerSettings


def load_engine(settings: WorkerSettings, catalog: Catalog, names: Iterable[str] | None = None) -> Engine:
    """Return an engine for the pipelines ``names`` of ``catalog``, or for all of them.

    Raises: SettingsError when there is no such device; ConfigError when a pipeline can't be loaded.
    """
    keep_freed_memory()
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    device, precision = _chosen_device(settings), chosen_precision(settings)
    choose_kernels(torch.device(device), precision)
    pipelines = {
        name: Pipeline.load(catalog[name].folder, device, precision=precision)
        for name in names or catalog.names
    }
    promise = SeedPromise(settings.seed_promise, settings.verdicts_dir)
    return Engine(pipelines, settings.max_batch_size, promise=promise, ageing_s=settings.ageing_s)


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
