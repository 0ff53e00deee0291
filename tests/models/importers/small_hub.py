"""A hub of one repository on 127.0.0.1, as far as huggingface_hub asks one for files."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

REPOSITORY = "somebody/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secretsecretsecret"


class SmallHub:
    """Files by name; ``asked``: the paths that were asked for, and ``tokens``: what came with them."""

    def __init__(self, files: dict[str, bytes], url: str) -> None:
        self.files = files
        self.url = url
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.wants_token = False
        self.card: dict[str, object] = {"license": "mit"}

    @property
    def fetched(self) -> set[str]:
        """The files that were fetched."""
        start = f"GET /{REPOSITORY}/resolve/{COMMIT}/"
        return {path.removeprefix(start) for path in self.asked if path.startswith(start)}


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[SmallHub]:
    """Serve while the context is open."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(self.path).partition("?")[0]
            hub.asked.append(f"{self.command} {path}")
            hub.tokens.add(self.headers.get("Authorization"))
            if hub.wants_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            models, _, revision = path.partition(f"/api/models/{REPOSITORY}")
            if not models and path.startswith("/api/models/"):
                if revision not in ("", "/revision/main", "/revision/v1", f"/revision/{COMMIT}"):
                    return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                said = {
                    "id": REPOSITORY, "sha": COMMIT, "cardData": hub.card, "tags": ["license:mit"],
                    "siblings": [{"rfilename": name} for name in hub.files], "private": False, "gated": False,
                    "downloads": 0, "likes": 0,
                }  # fmt: skip
                return self.answer(200, json.dumps(said).encode(), {"Content-Type": "application/json"})
            start = f"/{REPOSITORY}/resolve/{COMMIT}/"
            if path.startswith(start) and (data := hub.files.get(path.removeprefix(start))) is not None:
                etag = hashlib.sha256(data).hexdigest()
                return self.answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
            return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = SmallHub(files, f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
