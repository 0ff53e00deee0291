"""How long a folder of codes will take, from what was measured here."""

import time
from dataclasses import dataclass

from bulk.decoding import Prefetch
from bulk.encode import EncodeConfig, encode_pictures, wanted_items
from bulk.manifest import Manifest
from bulk.sources import Sources
from workers.compute import Engine

MEASURED_S = 20.0

_NUMBERS_OF_MACHINES = (1, 4, 16, 64)


@dataclass(frozen=True)
class Estimate:
    """num_measured: pictures that were encoded to measure, in ``measured_s``. num_left: pictures to do."""

    num_measured: int
    measured_s: float
    num_left: int

    @property
    def pictures_per_s(self) -> float:
        return self.num_measured / self.measured_s

    def hours(self, num_machines: int) -> float:
        """Return how long so many machines like this one take together."""
        return self.num_left / self.pictures_per_s / num_machines / 3600

    def by_machines(self, also: int = 1) -> dict[int, float]:
        """Return hours by the number of machines."""
        return {number: self.hours(number) for number in sorted({*_NUMBERS_OF_MACHINES, also})}

    def __str__(self) -> str:
        """Return lines for people, with what is assumed."""
        hours = ", ".join(f"{took:.3g} h on {number}" for number, took in self.by_machines().items())
        return (
            f"{self.pictures_per_s:.1f} pictures a second on this machine, measured on {self.num_measured} in"
            f" {self.measured_s:.1f} s\n"
            f"{self.num_left} pictures to do: {hours} machines like it, by --shard\n"
            "assumed: the others are like those measured, nothing else runs on the machines, and the sources"
            " are read as quickly by all of them at once"
        )


def estimate(
    sources: Sources,
    manifest: Manifest,
    present: frozenset[int],
    engine: Engine,
    config: EncodeConfig,
    *,
    limit_s: float = MEASURED_S,
) -> Estimate:
    """Encode the first pictures that are missing, for so long, and keep nothing of them.

    The start of the processes that decode counts, so a short one says too little rather than too much.

    Raises: BulkError when the sources changed meanwhile.
    """
    missing = frozenset(shard for shard in range(manifest.num_shards) if shard not in present)
    num_left = sum(map(manifest.num_items_of, missing))
    if not missing:
        return Estimate(0, limit_s, 0)
    num_measured = 0
    began_s = time.perf_counter()
    with Prefetch(
        wanted_items(sources, manifest, missing),
        manifest.medium,
        chunk_size=config.chunk_items(manifest),
        shard_size=manifest.shard_size,
        num_processes=config.num_processes,
        num_crops=manifest.transform.crops,
    ) as prefetch:
        for chunk in prefetch:
            encode_pictures(chunk.pictures, manifest, engine)
            num_measured += len(chunk.pictures)
            if time.perf_counter() - began_s >= limit_s:
                break
        measured_s = time.perf_counter() - began_s
    return Estimate(num_measured, measured_s, num_left)
