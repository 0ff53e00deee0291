"""A worker's memory over many requests of all kinds. Takes minutes: only with ``SOAK=5000`` or so.

oneDNN keeps up to 1024 compiled kernels, one for each layer and number of rows that it has met: 100 MB that
come slowly and are no leak. Here it keeps fewer, so that a leak would show.
"""

import asyncio
import base64
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import redis

from app.queue import JobQueue
from tests.workers.conftest import wait_until
from workers.catalog import Catalog
from workers.images import encode_image
from workers.messages import DecodeRequest, EncodeRequest, GenerateRequest, JobStatus, Request
from workers.protocol import WORKERS

NUM_REQUESTS = int(os.environ.get("SOAK", "0"))
NUM_CLIENTS = 32
MIB = 2**20


def any_request(dice: random.Random, fingerprint: str) -> Request:
    kind = dice.random()
    if kind < 0.7:
        return GenerateRequest(
            class_label=dice.choice([None, 0, 1, 2]),
            num_images=dice.choice([1, 1, 2, 5]),
            num_steps=dice.randint(1, 8),
            sampler=dice.choice(["euler", "heun", "dpmpp_2m"]),
            cache_interval=dice.choice([None, 2, 4]),
            format=dice.choice(["png", "webp", "jpeg"]),
            preview=dice.random() < 0.3,
            return_codes=dice.random() < 0.3,
        )
    if kind < 0.85:
        pixels = np.random.default_rng(dice.randrange(99)).integers(0, 256, (20, 30, 1), np.uint8)
        return EncodeRequest(image=base64.b64encode(encode_image(pixels, "png")).decode())
    return DecodeRequest(
        codes=[[[dice.randrange(32) for _ in range(6)] for _ in range(6)]], tokenizer=fingerprint
    )


@pytest.mark.timeout(900)
@pytest.mark.skipif(not NUM_REQUESTS, reason="takes minutes; SOAK is not set")
def test_a_workers_memory_does_not_grow(redis_url: str, tiny_weights: Path, tmp_path: Path) -> None:
    catalog = Catalog.load(tiny_weights)
    fingerprint = catalog["tiny"].config.tokenizer_fingerprint
    dice = random.Random(0)
    resident_mib: list[float] = []

    async def use(pid: int) -> None:
        queue = JobQueue(redis_url, max_length=1000, result_ttl_s=5)
        requests = iter(range(NUM_REQUESTS))

        async def one_client() -> None:
            for number in requests:
                job = await queue.submit(catalog.resolve(any_request(dice, fingerprint)))
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
    worker = subprocess.Popen([sys.executable, "-P", "-m", "app.cli", "worker"], env=os.environ | environment)
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
