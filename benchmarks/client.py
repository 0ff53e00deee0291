"""Send requests to a server and tell when each was sent and answered. A process of its own, and a light one.

Reads a plan from standard input, one JSON object:

    address, path, headers    where to, and with what headers; every body is JSON
    status                    of every answer; 200 if left out
    bodies                    the requests, in order
    arrivals_s                when each is sent, in seconds from the start; or, instead,
    num_connections           how many are always on their way: the next is sent when one is answered
    seconds                   with num_connections: start no request after this long

Prints a JSON list of [sent_s, answered_s] in the order of the bodies. With arrivals, sent_s is when the
request was due, so that a client that falls behind is no excuse for the server.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 180.0


class Connection:
    """One connection that is kept open; HTTP/1.1 with nothing that this benchmark does not need."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        address = urlsplit(plan["address"])
        self._host, self._port = address.hostname, address.port
        headers = {"Host": address.netloc, "Content-Type": "application/json", **plan["headers"]}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head = f"POST {plan['path']} HTTP/1.1\r\n{lines}Content-Length: "
        self._status = str(plan.get("status", 200))
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: Mapping[str, Any]) -> None:
        """Send a request and read its answer.

        Raises: RuntimeError when the status is another than wanted.
        """
        if self._streams is None or self._streams[0].at_eof():  # servers close what is idle for long
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        data = json.dumps(body)
        writer.write(f"{self._head}{len(data)}\r\n\r\n{data}".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].partition("\r")[0])
        answer = await reader.readexactly(length)
        if head.split(maxsplit=2)[1] != self._status:
            raise RuntimeError(f"{head.splitlines()[0]}: {answer[:500].decode(errors='replace')}")


async def send_all(plan: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Carry out a plan."""
    async with asyncio.timeout(plan.get("seconds", max(plan.get("arrivals_s", [0]))) + TIMEOUT_S):
        if "arrivals_s" in plan:
            return await _send_at_arrivals(plan)
        return await _send_one_after_another(plan)


async def _send_one_after_another(plan: Mapping[str, Any]) -> list[tuple[float, float]]:
    began_at = time.perf_counter()
    bodies = iter(plan["bodies"])
    times = []

    async def keep_sending() -> None:
        connection = Connection(plan)
        for body in bodies:  # shared by all connections
            sent_s = time.perf_counter() - began_at
            if sent_s > plan["seconds"]:
                return
            await connection.ask(body)
            times.append((sent_s, time.perf_counter() - began_at))

    await asyncio.gather(*(keep_sending() for _ in range(plan["num_connections"])))
    return sorted(times)


async def _send_at_arrivals(plan: Mapping[str, Any]) -> list[tuple[float, float]]:
    began_at = time.perf_counter()
    idle: list[Connection] = []

    async def send(body: Mapping[str, Any], due_s: float) -> tuple[float, float]:
        await asyncio.sleep(due_s - (time.perf_counter() - began_at))
        connection = idle.pop() if idle else Connection(plan)
        await connection.ask(body)
        idle.append(connection)
        return due_s, time.perf_counter() - began_at

    each = (send(body, due_s) for body, due_s in zip(plan["bodies"], plan["arrivals_s"], strict=True))
    return list(await asyncio.gather(*each))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(send_all(json.load(sys.stdin)))))
