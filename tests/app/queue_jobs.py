"""Jobs for tests of the queue, and a way to run them."""

import asyncio
from typing import Any

from app.queue import JobQueue
from workers.messages import (
    BlobReference,
    CodesInfo,
    Output,
    Resolved,
    Result,
)

REQUEST = Resolved(
    operation="generate",
    pipeline="tiny",
    num_samples=1,
    seed=7,
    options={"num_steps": 4, "guidance_scale": 1.0, "sampler": "euler"},
    labels={"class": 3},
    format="png",
)


RESULT = Result(
    operation="generate",
    pipeline="tiny",
    seed=7,
    outputs=[Output(sample=0, medium="image", url="/jobs/0/outputs/0", media_type="image/png", num_bytes=9)],
    codes=CodesInfo(grid=(2, 2), codebook_size=256, tokenizer="0" * 16),
)


BLOBS = [BlobReference(sha256=digit * 64, media_type="image/png") for digit in "ab"]


ENCODE = Resolved(operation="encode", pipeline="tiny", num_samples=2, sources=tuple(BLOBS), effort=1)


DECODE = Resolved(
    operation="decode", pipeline="tiny", num_samples=3, codes=[[[1, 2], [3, 4]]] * 3, format="webp"
)


def run(redis_url: str, use: Any, **limits: int) -> Any:
    """Run ``use(queue)``, closing the queue after it."""

    async def main() -> Any:
        queue = JobQueue(redis_url, **{"max_length": 10, "result_ttl_s": 60, **limits})
        try:
            return await use(queue)
        finally:
            await queue.close()

    return asyncio.run(main())
