"""Lists on the service, page after page: jobs, files and batches, the newest first."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import urlencode

from pydantic import AliasChoices, Field, TypeAdapter

from smalti.calls import Call
from smalti.connection import Connection, read
from smalti.models import Model

Item = TypeVar("Item", bound=Model)

_PAGE_LENGTH = 100


class _Page(Model, Generic[Item]):
    items: list[Item] = Field(validation_alias=AliasChoices("jobs", "files", "batches"))
    next: str | None = None


async def listed(
    connection: Connection,
    path: Literal["jobs", "files", "batches"],
    kind: type[Item],
    filters: Mapping[str, Any] | None = None,
) -> AsyncGenerator[Item]:
    """Yield what is listed at a path; a page is asked for when it is needed.

    Raises: ConnectionFailed; RequestFailed; AnswerUnreadable.
    """
    page_of = TypeAdapter(_Page[kind])  # type: ignore[valid-type]
    asked = {name: value for name, value in (filters or {}).items() if value is not None}
    asked["limit"] = _PAGE_LENGTH
    while True:
        page = read(await connection.request(Call("GET", f"{path}?{urlencode(asked)}")), page_of)
        for item in page.items:
            yield item
        if page.next is None:
            return
        asked["cursor"] = page.next
