"""Running an engine to the end of its work, and telling results apart."""

import hashlib
import random
from pathlib import Path

import numpy as np

from models.media.base import Array
from workers.catalog import Catalog
from workers.compute import Finished, Work
from workers.engine.engine import Engine
from workers.messages import BlobReference, DecodeRequest, EncodeRequest, GenerateRequest


class Jobs:
    """Makes work of a catalog's requests."""

    def __init__(self, weights: Path) -> None:
        self.catalog = Catalog.load(weights)

    def generate(self, job_id: str = "x", **asked: object) -> Work:
        return Work(job_id, self.catalog.resolve(GenerateRequest(**asked)))

    def edit(self, source: Array, mask: Array | None = None, job_id: str = "x", **asked: object) -> Work:
        """Draw a picture (H, W, C) anew, where its mask (H, W, 1) is white."""
        pixels = (source,) if mask is None else (source, mask)
        stored = [BlobReference(sha256="0" * 64, media_type="image/png")] * len(pixels)
        request = GenerateRequest(source="AAAA", mask=None if mask is None else "AAAA", **asked)
        return Work(job_id, self.catalog.resolve(request, stored), pixels)

    def encode(self, *pixels: Array, job_id: str = "x", **asked: object) -> Work:
        stored = [BlobReference(sha256="0" * 64, media_type="image/png")] * len(pixels)
        request = EncodeRequest(source="AAAA", **asked)
        return Work(job_id, self.catalog.resolve(request, stored), pixels)

    def decode(self, codes: list, job_id: str = "x", pipeline: str | None = None) -> Work:
        spec = self.catalog.spec(pipeline)
        assert spec.codes is not None
        request = DecodeRequest(codes=codes, tokenizer=spec.codes.fingerprint, pipeline=pipeline)
        return Work(job_id, self.catalog.resolve(request))


def noise_image(seed: int, height_px: int, width_px: int, channels: int) -> Array:
    """Return random pixels (H, W, C) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height_px, width_px, channels), dtype=np.uint8)


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
    """Of a job that succeeded: every bit of its signals, and its codes."""
    assert finished.error is None, finished.error
    content = hashlib.sha256()
    for sample in finished.samples:
        assert sample.error is None, sample.error
        if sample.signal is not None:
            content.update(sample.signal.tobytes())
    if finished.codes:
        content.update(finished.codes.model_dump_json().encode())
    return content.hexdigest()
