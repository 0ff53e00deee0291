"""What the API's memory does in the worst burst that it admits: at the start, at most, and afterwards.

    python -m benchmarks.door [--clients 64]

Runs `smalti serve` with the shipped pipelines and a queue server of its own, without a worker, and sends
large pictures and bodies as large as may be, as forms and in base64, all at once.
"""

import argparse
import base64
import io
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image

from workers.queue import embedded_server

MIB = 2**20
LARGEST_FILE_BYTES = 10 * MIB
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_EVERY_S = 0.005
_CALM_S = 2.0  # the API returns what is free a second after the last large request


@dataclass(frozen=True)
class Burst:
    """Resident memory, and how requests were answered, by status.

    peak_bytes: of the API and its children together. after_bytes: of the API; a child that decodes small
    pictures, of 48 MiB, stays a minute for the next.
    """

    start_bytes: int
    peak_bytes: int
    after_bytes: int
    statuses: Counter[int]
    seconds: float


@contextmanager
def serving(**environment: str) -> Iterator[tuple[httpx.Client, int]]:
    """Run the API as a process of its own; yield a client and the process's id."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        server = embedded_server.start(Path(folder) / "queue")
        process = subprocess.Popen(
            (sys.executable, "-m", "app.cli.main", "serve", f"--port={port}"),
            env={**os.environ, "REDIS_URL": server.url, "SMALTI_DATA_DIR": folder, **environment},
            stderr=subprocess.DEVNULL,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                while not _is_live(client):
                    time.sleep(0.05)
                yield client, process.pid
        finally:
            process.terminate()
            process.wait()
            server.stop()


def _is_live(client: httpx.Client) -> bool:
    try:
        return client.get("/health/live").status_code == 200
    except httpx.TransportError:
        return False


def measure(client: httpx.Client, pid: int, content: bytes, *, is_form: bool, num_clients: int) -> Burst:
    """Send a file from many clients at once, and look at the memory all the while."""
    json_body = b"" if is_form else b'{"source": "' + base64.b64encode(content) + b'"}'

    def send(_: int) -> int:
        try:
            if is_form:
                return client.post("/encode", files={"source": content}).status_code
            headers = {"Content-Type": "application/json"}
            return client.post("/encode", content=json_body, headers=headers).status_code
        except httpx.TransportError:
            return 0  # turned away while it was sending

    return _watched(pid, lambda: _all_at_once(send, num_clients))


def measure_left_open(client: httpx.Client, pid: int, num_bytes: int, *, num_clients: int) -> Burst:
    """Begin uploads, leave them open, and see how each is answered; 0 where it is cut off."""
    head = (
        "POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {num_bytes + 1}\r\n\r\n"
    )

    def send(_: int) -> int:
        with socket.create_connection((client.base_url.host, client.base_url.port), 120) as upload:
            try:
                upload.sendall(head.encode() + b" " * num_bytes)
                return int(upload.recv(65536).split(maxsplit=2)[1])
            except (ConnectionError, IndexError):
                return 0

    return _watched(pid, lambda: _all_at_once(send, num_clients))


def _all_at_once(send: Callable[[int], int], num_clients: int) -> Counter[int]:
    with ThreadPoolExecutor(num_clients) as pool:
        return Counter(pool.map(send, range(num_clients)))


def _watched(pid: int, send_all: Callable[[], Counter[int]]) -> Burst:
    start_bytes = peak_bytes = memory_bytes(pid)
    is_over = threading.Event()

    def watch() -> None:
        nonlocal peak_bytes
        while not is_over.wait(_EVERY_S):
            peak_bytes = max(peak_bytes, memory_bytes(pid, with_children=True))

    watching = threading.Thread(target=watch)
    watching.start()
    began_s = time.perf_counter()
    statuses = send_all()
    seconds = time.perf_counter() - began_s
    time.sleep(_CALM_S)
    is_over.set()
    watching.join()
    return Burst(start_bytes, peak_bytes, memory_bytes(pid), statuses, seconds)


def memory_bytes(pid: int, *, with_children: bool = False) -> int:
    """Return the resident memory of a process, with that of its children if wanted."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        threads = list(Path(f"/proc/{pid}/task").iterdir())  # a child is listed with the one that started it
        children = " ".join((thread / "children").read_text() for thread in threads).split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = pages * _PAGE_BYTES
    return own + sum(memory_bytes(int(child)) for child in children) if with_children else own


def large_picture() -> bytes:
    """Return the largest picture that is taken, with transparency, as a PNG."""
    out = io.BytesIO()
    Image.new("RGBA", (5792, 5792), (200, 30, 30, 128)).save(out, "PNG")
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    arguments = parser.parse_args()
    files = {"no picture": secrets.token_bytes(LARGEST_FILE_BYTES), "a large picture": large_picture()}
    with serving() as (client, pid):
        first_bytes = memory_bytes(pid)
        print(f"start: {first_bytes / MIB:.0f} MiB")

        def tell(name: str, burst: Burst) -> None:
            print(
                f"{name}: peak {burst.peak_bytes / MIB:.0f}, after {burst.after_bytes / MIB:.0f} MiB"
                f" ({burst.after_bytes / first_bytes:.2f} of the start), {burst.seconds:.1f} s,"
                f" answers {dict(burst.statuses)}",
                flush=True,
            )

        burst = measure_left_open(client, pid, 5 * MIB, num_clients=100)
        tell("100 uploads of which 5 MiB come, left open", burst)
        for name, content in files.items():
            for is_form in (True, False):
                burst = measure(client, pid, content, is_form=is_form, num_clients=arguments.clients)
                tell(f"{name}, {len(content) / MIB:.1f} MiB, {'form' if is_form else 'base64'}", burst)


if __name__ == "__main__":
    main()
