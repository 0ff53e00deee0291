"""A batch on the service, for both clients."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from smalti.batches import Order, cancel_batch, follow_rows, look_up_batch, wait_for_batch
from smalti.models import BatchInfo, BatchRow
from smalti.running import iterate, run
from smalti.service import Service


class Batch:
    """A batch on the service. info: as it was last seen."""

    def __init__(self, service: Service, info: BatchInfo) -> None:
        self._service = service
        self.info = info

    @property
    def id(self) -> str:
        """What ``client.get_batch`` finds it by."""
        return self.info.id

    def refresh(self) -> BatchInfo:
        """Look it up again."""
        self.info = run(look_up_batch(self._service.connection, self.id))
        return self.info

    def wait(self, timeout_s: float | None = None, *, progress: bool = False) -> BatchInfo:
        """Return it once all its rows have ended, however that was. Raises: BatchTimeout."""
        self.info = run(wait_for_batch(self._service.connection, self.info, timeout_s, progress=progress))
        return self.info

    def results(
        self, *, order: Order = "ended", after: int = 0, follow: bool = True, fetch: bool = True
    ) -> Iterator[BatchRow]:
        """Yield its rows as they end, or in the order of the input, until the last one.

        after: go on behind the row with this ``seq`` (with ``order="input"`` this ``line``). follow: wait for
        rows that have not ended. fetch: get the bytes of outputs, too.
        """
        rows = follow_rows(self._service.connection, self.id, order=order, after=after, follow=follow)
        for row in iterate(rows):
            if fetch and row.result is not None:
                run(self._service.fetch(row.result))
            yield row

    def cancel(self) -> BatchInfo:
        """Cancel the rows that have not ended; results that are there stay."""
        self.info = run(cancel_batch(self._service.connection, self.id))
        return self.info

    def __repr__(self) -> str:
        return f"Batch({self.id!r}, {self.info.status!r})"


class AsyncBatch:
    """A batch on the service. info: as it was last seen."""

    def __init__(self, service: Service, info: BatchInfo) -> None:
        self._service = service
        self.info = info

    @property
    def id(self) -> str:
        """What ``client.get_batch`` finds it by."""
        return self.info.id

    async def refresh(self) -> BatchInfo:
        """Look it up again."""
        self.info = await look_up_batch(self._service.connection, self.id)
        return self.info

    async def wait(self, timeout_s: float | None = None, *, progress: bool = False) -> BatchInfo:
        """Return it once all its rows have ended, however that was. Raises: BatchTimeout."""
        self.info = await wait_for_batch(self._service.connection, self.info, timeout_s, progress=progress)
        return self.info

    async def results(
        self, *, order: Order = "ended", after: int = 0, follow: bool = True, fetch: bool = True
    ) -> AsyncGenerator[BatchRow]:
        """Yield its rows as they end, or in the order of the input, until the last one.

        after: go on behind the row with this ``seq`` (with ``order="input"`` this ``line``). follow: wait for
        rows that have not ended. fetch: get the bytes of outputs, too.
        """
        rows = follow_rows(self._service.connection, self.id, order=order, after=after, follow=follow)
        async with aclosing(rows):
            async for row in rows:
                if fetch and row.result is not None:
                    await self._service.fetch(row.result)
                yield row

    async def cancel(self) -> BatchInfo:
        """Cancel the rows that have not ended; results that are there stay."""
        self.info = await cancel_batch(self._service.connection, self.id)
        return self.info

    def __repr__(self) -> str:
        return f"AsyncBatch({self.id!r}, {self.info.status!r})"
