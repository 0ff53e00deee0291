"""Which settings a run may be resumed with: all that can't change its result, and more steps."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from training.checkpoints import State
from training.config_file import TrainingError

logger = logging.getLogger(__name__)


class RunConfig(Protocol):
    """What the settings of every run have."""

    @property
    def folder(self) -> Path: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def decay_fraction(self) -> float: ...
    @property
    def log_every(self) -> int: ...
    @property
    def checkpoint_every_s(self) -> float: ...


# How it is computed, watched and kept, and what a finished pipeline is called and samples by. Which pictures
# max_bad_share leaves out is told by the data's digest.
_FREE = {
    "folder",
    "output",
    "defaults",
    "example_prompt",
    "log_every",
    "samples_every",
    "checkpoint_every_s",
    "max_bad_share",
    "in_eight_bits",
    "in_half_precision",
    "is_compiled",
    "num_threads",
}
_STARTED_FROM = {"start_from", "finetune_decoder"}  # their weights are in the checkpoint


def decay_start(num_steps: int, decay_fraction: float) -> int:
    """Return the step from which on the learning rate falls."""
    return num_steps - max(1, int(decay_fraction * num_steps))


def check_resumable(state: State, config: RunConfig, made_from: Mapping[str, str] | None) -> None:
    """Compare a checkpoint's settings with those it is resumed with.

    made_from: digests, by the settings that name what they are of; paths may differ where these don't. None
    where they aren't known: then paths may differ.

    Raises: TrainingError naming each setting that differs, with both values.
    """
    adapter = TypeAdapter(type(config))
    saved, now = _flat(state["config"]), _flat(adapter.dump_python(config, mode="json"))
    changed = []
    for name in sorted(saved.keys() | now.keys()):
        top, old, new = name.partition(".")[0], saved.get(name), now.get(name)
        if top in _FREE or name == "num_steps" or old == new:
            continue
        if name == "continuous_steps" and new is None:
            continue  # the checkpoint says how many
        if name in _STARTED_FROM and (old is None) == (new is None):
            continue
        if name in state.get("made_from", {}) and (made_from is None or name in made_from):
            continue
        if name not in saved and new == _default(type(config), name):
            continue  # a setting that is newer than the run
        changed.append(f"{name} was {old}, now {new}")
    for name, digest in state.get("made_from", {}).items():
        if (made_from or {}).get(name, digest) != digest:
            changed.append(f"{name}: what is in {now.get(name)} has changed")
    if changed:
        raise TrainingError(
            f"{config.folder} was begun with other settings: {'; '.join(changed)}."
            " Put them back, or start in a new folder"
        )
    _check_num_steps(state["step"], saved, config)


def _check_num_steps(step: int, saved: Mapping[str, Any], config: RunConfig) -> None:
    before, after = saved["num_steps"], config.num_steps
    if after == before:
        return
    if after < step:
        raise TrainingError(f"num_steps: {step} steps are taken already, got {after}: set {step} or more")
    starts = [decay_start(num_steps, config.decay_fraction) for num_steps in (before, after)]
    if step <= min(starts):
        told = "nothing that depends on it has happened yet"
    elif after > before:
        told = (
            f"the learning rate, which fell from step {starts[0]} on, is back at its height until step"
            f" {starts[1]}, so the result is neither that of {before} nor that of {after} steps in one go"
        )
    else:
        told = "the learning rate falls from here on faster than in a run of so many steps in one go"
    logger.warning("num_steps was %d, now %d: %s", before, after, told)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _default(config_class: type[Any], name: str) -> Any:
    """Return the default of a setting, of a table's, too, or ``...`` where it has none."""
    *tables, last = name.split(".")
    for table in tables:
        kinds = {each.name: each.type for each in dataclasses.fields(config_class)}
        config_class = kinds[table]  # type: ignore[assignment]
    default = next((each.default for each in dataclasses.fields(config_class) if each.name == last), ...)
    return ... if default is dataclasses.MISSING else default
