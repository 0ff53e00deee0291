"""What the routes work with, made once for an application."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request as HttpRequest

from app.batches.store import BatchStore
from app.decoding import Decoders
from app.files import FileStore
from app.keys import KeyLimits
from app.queue import JobQueue
from app.settings import AppSettings
from workers.blobs import BlobStore
from workers.catalog import Catalog
from workers.results import ResultStore

_NUM_LONG_READS = 2


@dataclass(frozen=True)
class Services:
    """long_reads: to be held while a thread goes through a whole batch for one request.

    Such threads would otherwise be all there are, and all other requests would wait for them.
    """

    settings: AppSettings
    catalog: Catalog  # which changes as its folder does
    queue: JobQueue
    results: ResultStore
    blobs: BlobStore
    files: FileStore
    batches: BatchStore
    is_ending: asyncio.Event = field(default_factory=asyncio.Event)
    has_new_batch: asyncio.Event = field(default_factory=asyncio.Event)  # which this process has got
    decoders: Decoders = field(default_factory=Decoders)
    limits: KeyLimits = field(default_factory=KeyLimits)
    long_reads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_NUM_LONG_READS))


async def services_of(request: HttpRequest) -> Services:  # async, or FastAPI asks another thread
    """Return the services of the application that got this request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesNeeded = Annotated[Services, Depends(services_of)]
