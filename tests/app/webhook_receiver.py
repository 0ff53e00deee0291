"""A receiver of webhooks for tests: a real server that answers as it is told to."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Receiver:
    """What came, in order. statuses: of the answers, the last for all that follow. is_held: none is answered."""

    url: str
    address: str
    statuses: Sequence[int]
    bodies: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    is_held: threading.Event = field(default_factory=threading.Event)

    def told(self, index: int = 0) -> dict:
        """Return a message that came, once its signature is verified."""
        return Webhook(SECRET).verify(self.bodies[index], self.headers[index])


@contextmanager
def receiving(*statuses: int) -> Iterator[Receiver]:
    receiver: Receiver

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.bodies.append(body.decode())
            receiver.headers.append(dict(self.headers))
            status = receiver.statuses[min(len(receiver.bodies), len(receiver.statuses)) - 1]
            while receiver.is_held.is_set():
                threading.Event().wait(0.01)
            try:
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("location", f"{receiver.url}elsewhere")
                self.end_headers()
            except OSError:
                pass  # who sent it was killed

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    address = f"127.0.0.1:{server.server_address[1]}"
    receiver = Receiver(f"http://{address}/", address, statuses or (204,))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.is_held.clear()
        server.shutdown()
        thread.join()
        server.server_close()
