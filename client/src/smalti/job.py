"""A job on the service, for both clients."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from smalti.following import follow
from smalti.models import Event, JobInfo, Result
from smalti.running import iterate, run
from smalti.service import Service


class Job:
    """A job on the service. info: as it was last seen."""

    def __init__(self, service: Service, info: JobInfo, timeout_s: float) -> None:
        self._service = service
        self._timeout_s = timeout_s
        self.info = info

    @property
    def id(self) -> str:
        """What ``client.job`` finds it by."""
        return self.info.id

    def refresh(self) -> JobInfo:
        """Look it up again."""
        self.info = run(self._service.look_up(self.id))
        return self.info

    def wait(
        self,
        timeout_s: float | None = None,
        *,
        progress: bool = False,
        cancel_on_timeout: bool = False,
        fetch: bool = True,
    ) -> Result:
        """Return its result once it has ended, with the bytes of its outputs unless ``fetch`` is False.

        timeout_s: the client's own when left out. Raises: JobFailed; JobCancelled; WaitTimeout.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        self.info = run(
            self._service.wait(self.info, timeout_s, progress=progress, cancel_on_timeout=cancel_on_timeout)
        )
        return run(self._service.result_of(self.info, fetch=fetch))

    def events(self, timeout_s: float | None = None) -> Iterator[Event]:
        """Yield what happens to it, until it has ended or the time is over: status, progress, previews."""
        for event in iterate(follow(self._service.connection, self.id, timeout_s)):
            self.info = event.job or self.info
            yield event

    def cancel(self) -> JobInfo:
        """Cancel it; a job that has ended stays as it is."""
        self.info = run(self._service.cancel(self.id))
        return self.info

    def retry(self) -> "Job":
        """Have a failed job done again, as a new one. Raises: RequestFailed for one that has not failed."""
        return Job(self._service, run(self._service.retry(self.id)), self._timeout_s)

    def __repr__(self) -> str:
        return f"Job({self.id!r}, {self.info.status!r})"


class AsyncJob:
    """A job on the service. info: as it was last seen."""

    def __init__(self, service: Service, info: JobInfo, timeout_s: float) -> None:
        self._service = service
        self._timeout_s = timeout_s
        self.info = info

    @property
    def id(self) -> str:
        """What ``client.job`` finds it by."""
        return self.info.id

    async def refresh(self) -> JobInfo:
        """Look it up again."""
        self.info = await self._service.look_up(self.id)
        return self.info

    async def wait(
        self,
        timeout_s: float | None = None,
        *,
        progress: bool = False,
        cancel_on_timeout: bool = False,
        fetch: bool = True,
    ) -> Result:
        """Return its result once it has ended, with the bytes of its outputs unless ``fetch`` is False.

        timeout_s: the client's own when left out. Raises: JobFailed; JobCancelled; WaitTimeout.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        self.info = await self._service.wait(
            self.info, timeout_s, progress=progress, cancel_on_timeout=cancel_on_timeout
        )
        return await self._service.result_of(self.info, fetch=fetch)

    async def events(self, timeout_s: float | None = None) -> AsyncGenerator[Event]:
        """Yield what happens to it, until it has ended or the time is over: status, progress, previews."""
        async with aclosing(follow(self._service.connection, self.id, timeout_s)) as events:
            async for event in events:
                self.info = event.job or self.info
                yield event

    async def cancel(self) -> JobInfo:
        """Cancel it; a job that has ended stays as it is."""
        self.info = await self._service.cancel(self.id)
        return self.info

    async def retry(self) -> "AsyncJob":
        """Have a failed job done again, as a new one. Raises: RequestFailed for one that has not failed."""
        return AsyncJob(self._service, await self._service.retry(self.id), self._timeout_s)

    def __repr__(self) -> str:
        return f"AsyncJob({self.id!r}, {self.info.status!r})"
