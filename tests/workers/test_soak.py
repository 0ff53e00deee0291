"""A worker's memory over many requests of all kinds. Takes minutes: marked ``hours`` (``make test-all``).

oneDNN keeps up to 1024 compiled kernels, one for each layer and number of rows that it has met: 100 MB that
come slowly and are no leak. Here it keeps fewer, so that a leak would show.
"""

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import redis

from app.queue import JobQueue
from models.media.image import encode_image
from tests.waiting import wait_until
from workers.blobs import BlobStore
from workers.catalog import Catalog
from workers.messages import DecodeRequest, EncodeRequest, GenerateRequest, JobStatus, Resolved
from workers.queue.records import WORKERS

NUM_REQUESTS = 5000
NUM_CLIENTS = 32
MIB = 2**20


def any_request(dice: random.Random, catalog: Catalog, blobs: BlobStore) -> Resolved:
    kind = dice.random()
    if kind < 0.7:
        request = GenerateRequest(
            class_label=dice.choice([None, 0, 1, 2]),
            num_outputs=dice.choice([1, 1, 2, 5]),
            num_steps=dice.randint(1, 8),
            sampler=dice.choice(["euler", "heun", "dpmpp_2m"]),
            format=dice.choice(["png", "webp", "jpeg"]),
            preview=dice.random() < 0.3,
            return_codes=dice.random() < 0.3,
            seed=dice.randrange(2**32),
        )
        return catalog.resolve(request)
    if kind < 0.85:
        pixels = np.random.default_rng(dice.randrange(99)).integers(0, 256, (12, 12, 1), np.uint8)
        source = blobs.put(encode_image(pixels, "png"), "image/png")
        return catalog.resolve(EncodeRequest(), [source])
    codes = [[[dice.randrange(32) for _ in range(6)] for _ in range(6)]]
    return catalog.resolve(DecodeRequest(codes=codes, tokenizer=catalog.spec("tiny").codes.fingerprint))


@pytest.mark.timeout(1800)
@pytest.mark.hours
def test_a_workers_memory_does_not_grow(redis_url: str, tiny_weights: Path, tmp_path: Path) -> None:
    catalog = Catalog.load(tiny_weights)
    blobs = BlobStore(tmp_path / "blobs")
    dice = random.Random(0)
    resident_mib: list[float] = []

    async def use(pid: int) -> None:
        queue = JobQueue(redis_url, max_length=1000, result_ttl_s=5)
        requests = iter(range(NUM_REQUESTS))

        async def one_client() -> None:
            for number in requests:
                job = await queue.submit(any_request(dice, catalog, blobs))
                if number % 20 == 0:
                    await queue.cancel(job.id)
                ended = await queue.wait(job.id, 60)
                assert ended.status in (JobStatus.SUCCEEDED, JobStatus.CANCELLED), ended
                if number % (NUM_REQUESTS // 20) == 0:
                    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                    resident_mib.append(pages * os.sysconf("SC_PAGESIZE") / MIB)

        await asyncio.gather(*(one_client() for _ in range(NUM_CLIENTS)))
        await queue.close()

    environment = {
        "REDIS_URL": redis_url,
        "SMALTI_WEIGHTS_DIR": str(tiny_weights),
        "SMALTI_DATA_DIR": str(tmp_path),
        "SMALTI_NUM_THREADS": "1",
        "SMALTI_LOG_LEVEL": "WARNING",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    }
    command = [sys.executable, "-P", "-m", "app.cli.main", "worker"]
    worker = subprocess.Popen(command, env=os.environ | environment)
    try:
        with redis.Redis.from_url(redis_url) as client:
            wait_until(lambda: client.smembers(WORKERS), 60)
        asyncio.run(use(worker.pid))
    finally:
        worker.terminate()
        worker.wait(60)
    print("resident MiB:", [round(each, 1) for each in resident_mib])  # noqa: T201
    settled, last = resident_mib[len(resident_mib) // 2], resident_mib[-1]
    assert last - settled < 0.02 * settled, "it grew over the second half"
