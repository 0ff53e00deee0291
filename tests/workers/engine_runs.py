"""Running an engine to the end of its work, and telling results apart."""

import hashlib
import random

from workers.engine import Engine
from workers.images import encode_image
from workers.work import Finished, Work


def run(engine: Engine, work: list[Work], admit_chance: float = 1.0, seed: int = 0) -> dict[str, Finished]:
    """Run ``work`` to its end, each job admitted before a step with ``admit_chance``."""
    chance = random.Random(seed)
    waiting, ended = list(work), {}
    while waiting or not engine.is_idle:
        while waiting and chance.random() < admit_chance:
            engine.admit([waiting.pop(0)])
        ended.update({finished.job_id: finished for finished in engine.step()})
    return ended


def digest(finished: Finished) -> str:
    """Of a job that succeeded: its images, as the bytes a client gets, and its codes."""
    assert finished.error is None, finished.error
    content = hashlib.sha256()
    for pixels in finished.images:
        content.update(encode_image(pixels, "png"))
    if finished.codes:
        content.update(finished.codes.model_dump_json().encode())
    return content.hexdigest()
