"""A network between client and service that loses answers, breaks connections and goes away."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit


class FaultyNetwork:
    """Hands bytes on between ``url`` and a service, until it is told to do harm.

    num_to_lose: of so many requests that begin with ``losing`` the answer never arrives, and the connection
    breaks. hides_events: it answers 404 where a job's events are asked for, as a strict proxy may.
    """

    def __init__(self, target: str) -> None:
        self.hand_on_to(target)
        self._open: set[socket.socket] = set()
        self.num_connections = 0
        self.losing = b"POST"
        self.num_to_lose = 0
        self.hides_events = False
        self._listener = self._listen(0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def hand_on_to(self, target: str) -> None:
        """Hand new connections on to this service."""
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)

    def go_away(self) -> None:
        """Break all connections, and refuse new ones."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_connections()

    def come_back(self) -> None:
        """Take connections again."""
        self._listener = self._listen(self.port)

    def break_connections(self) -> None:
        """End all connections that are open."""
        for each in list(self._open):
            _shut(each)

    def close(self) -> None:
        """End it."""
        self.go_away()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        _in_background(self._accept, listener)
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.num_connections += 1
            server = socket.create_connection(self._target)
            self._open |= {client, server}
            is_lost = threading.Event()
            _in_background(self._requests, client, server, is_lost)
            _in_background(self._answers, server, client, is_lost)

    def _requests(self, client: socket.socket, server: socket.socket, is_lost: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(2**16):
                if self.hides_events and b"/events " in data[:200]:
                    client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    continue
                if self.num_to_lose and data.startswith(self.losing):
                    self.num_to_lose -= 1
                    is_lost.set()
                server.sendall(data)
        self._end(client, server)

    def _answers(self, server: socket.socket, client: socket.socket, is_lost: threading.Event) -> None:
        with suppress(OSError):
            while (data := server.recv(2**16)) and not is_lost.is_set():
                client.sendall(data)
        self._end(client, server)

    def _end(self, *sockets: socket.socket) -> None:
        for each in sockets:
            _shut(each)
            self._open.discard(each)
            each.close()


def _shut(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)


def _in_background(work: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()
