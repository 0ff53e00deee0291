"""What each API key may ask of the queue: how many jobs in a time, and how many that wait."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALLOWANCE = "smalti.allowance"  # in the scope of a request
_RATE = re.compile(r"([1-9][0-9]{0,6})/(s|min|h|day)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "day": 86400}
RATE_FORM = "a rate is a number of jobs, from 1 to 9999999, in a time: 10/s, 60/min, 500/h, 2000/day"


@dataclass(frozen=True)
class Rate:
    """So many jobs in any window of time."""

    num_jobs: int
    window_s: int

    @classmethod
    def read(cls, text: str) -> "Rate":
        """Return the rate that ``60/min`` is.

        Raises: ValueError.
        """
        found = _RATE.fullmatch(text)
        if found is None:
            raise ValueError(f"{RATE_FORM}; got {text[:40]!r}")
        return cls(int(found[1]), _SECONDS[found[2]])

    def __str__(self) -> str:
        return f"{self.num_jobs} jobs in {self.window_s} s"


@dataclass
class Allowance:
    """What the key of a request may ask for; the queue fills in what is left of its rate.

    max_waiting: of the key's jobs. num_left: jobs that it may submit at once. full_in_s: until it may submit
    as many as its rate says. wait_s: until it may submit one.
    """

    rate: Rate | None = None
    max_waiting: int | None = None
    num_left: int | None = None
    full_in_s: float = 0
    wait_s: float = 0

    @property
    def arguments(self) -> tuple[int | str, int | str, int | str]:
        """What the script that submits has to know."""
        waiting = "" if self.max_waiting is None else self.max_waiting
        return (waiting, self.rate.num_jobs, self.rate.window_s) if self.rate else (waiting, "", "")

    def read(self, told: Sequence[str]) -> None:
        """Take in what that script has told of the rate."""
        if told:
            num_left, self.full_in_s, self.wait_s = map(float, told)
            self.num_left = int(num_left)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What an answer tells of it (draft-ietf-httpapi-ratelimit-headers-10)."""
        if self.rate is None or self.num_left is None:
            return []
        policy = f'"jobs";q={self.rate.num_jobs};w={self.rate.window_s}'
        state = f'"jobs";r={max(0, self.num_left)};t={math.ceil(self.full_in_s)}'
        return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", state.encode())]


class TellAllowance:
    """Middleware that tells, with answers about new jobs, what is left of the key's rate."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_allowance(message: Message) -> None:
            allowance = scope.get(_ALLOWANCE)
            if message["type"] == "http.response.start" and allowance is not None:
                message["headers"] = [*message.get("headers", ()), *allowance.headers]
            await send(message)

        await self._app(scope, receive, send_with_allowance)


def keep_allowance(scope: Scope, allowance: Allowance) -> None:
    """Have the answer to a request tell what is left."""
    scope[_ALLOWANCE] = allowance
