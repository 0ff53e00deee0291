"""What training code wraps weights in: which of several sets of weights is meant."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.importers.base import ImportFailed

# Authors sample with the moving averages where their checkpoint keeps them beside the weights.
_WRAPPERS = {
    "ema": ("ema", "ema_state_dict", "model_ema"),
    "model": ("state_dict", "model", "model_state_dict"),
}
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_LDM_EMA = "model_ema."  # of latent-diffusion, within a state_dict; there the names have no dots
_LDM_COUNTERS = ("decay", "num_updates")


@dataclass(frozen=True)
class Unwrapped:
    """Weights by the publisher's names; ``wrapper``: the name they stood under, or empty."""

    tensors: dict[str, Tensor]
    wrapper: str
    notes: tuple[str, ...]


def unwrap(loaded: Any, weights: str | None) -> Unwrapped:
    """Return the weights in what a file held.

    weights: "ema" (moving averages) or "model"; None takes "ema" where it stands beside "model", and leaves
    those under "model_ema." in there, for the importer.

    Raises: ImportFailed when there are none, or not those that were asked for.
    """
    if weights not in (None, *_WRAPPERS):
        raise ImportFailed(f"weights must be {' or '.join(_WRAPPERS)}, got {weights!r}")
    if not isinstance(loaded, Mapping):
        raise ImportFailed(
            "it holds no tensors by name: a whole module was saved, it seems; save its state_dict() instead"
        )
    found = {
        kind: name
        for kind, names in _WRAPPERS.items()
        for name in reversed(names)
        if isinstance(loaded.get(name), Mapping) and _tensors(loaded[name])
    }
    if not found:
        tensors, wrapper = _tensors(loaded), ""
    else:
        kind = weights or next(iter(found))
        if kind == "ema" and kind not in found:
            kind = "model"  # whose names may tell of others
        if kind not in found:
            raise ImportFailed(f"weights: there are only those under {', '.join(found.values())}")
        wrapper = found[kind]
        tensors = _tensors(loaded[wrapper])
    if not tensors:
        raise ImportFailed(f"it holds no tensors by name, but {_listed(loaded)}")
    notes = []
    if len(found) > 1:
        notes.append(f"of {' and '.join(found.values())}, {wrapper} was taken (--set weights=ema|model)")
    if any(name.startswith(_LDM_EMA) for name in tensors):
        if weights is not None:  # else the importer decides, as the authors of its format evaluate
            takes_averages = weights == "ema" and "ema" not in found
            averaged = _ldm_averages(tensors) if takes_averages else {}
            tensors = {
                name: averaged.get(name, tensor)
                for name, tensor in tensors.items()
                if not name.startswith(_LDM_EMA)
            }
            notes.append(
                f"the moving averages under {_LDM_EMA} were {'taken' if takes_averages else 'left out'}"
            )
    elif weights == "ema" and "ema" not in found:
        raise ImportFailed("weights: there are no moving averages in it; leave the setting out")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return Unwrapped(tensors, wrapper, tuple(notes))


def _tensors(loaded: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)
    }


def _ldm_averages(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the moving averages by the names of the tensors that they follow.

    ``LitEma`` of latent-diffusion names them as it finds them below the module that it follows, which may be
    all of it or what stands under ``model.``, and takes the dots out.

    Raises: ImportFailed where one belongs to no tensor, or to several.
    """
    averages = {
        name.removeprefix(_LDM_EMA): tensor for name, tensor in tensors.items() if name.startswith(_LDM_EMA)
    }
    for counter in _LDM_COUNTERS:
        averages.pop(counter, None)
    followed: dict[str, str] = {}
    for name in tensors:
        if name.startswith(_LDM_EMA):
            continue
        for flat in {name.replace(".", ""), name.removeprefix("model.").replace(".", "")}:
            if flat in averages and followed.setdefault(flat, name) != name:
                raise ImportFailed(f"{_LDM_EMA}{flat[:100]} may be of {followed[flat][:100]} or {name[:100]}")
    if lost := averages.keys() - followed.keys():
        raise ImportFailed(f"{len(lost)} under {_LDM_EMA} belong to no tensor, such as {min(lost)[:100]}")
    return {followed[flat]: tensor for flat, tensor in averages.items()}


def _listed(loaded: Mapping[Any, Any]) -> str:
    names = [str(name)[:40] for name in list(loaded)[:5]]
    return f"{', '.join(names)}{', …' if len(loaded) > 5 else ''}" if names else "nothing"
