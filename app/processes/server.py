"""Serve the application over HTTP."""

import functools
import resource
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.main import create_app
from app.memory import return_freed_memory
from app.processes.connections import BoundedProtocol, Connections
from app.settings import AppSettings

GRACE_S = 20
_OTHER_FILES = 256  # that a process opens beside its connections


class Server(uvicorn.Server):
    """Uvicorn with bounds on connections; at the end, clients that wait for a job are answered at once.

    Their job is still queued.
    """

    def __init__(self, app: FastAPI, *, host: str, port: int) -> None:
        settings: AppSettings = app.state.settings
        limits = Connections(
            app.state.http_metrics,
            max_in_all=_room_for(settings.max_connections),
            max_per_client=settings.max_connections_per_client,
            header_timeout_s=settings.header_timeout_s,
            min_bytes_per_s=settings.min_body_bytes_per_s,
        )
        protocol: Any = functools.partial(BoundedProtocol, limits=limits)
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=protocol,
                log_config=None,
                access_log=False,
                ws="none",
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.services.is_ending.set()
        await super().shutdown(sockets)


def _room_for(max_connections: int) -> int:
    """Return how many connections there may be, once this process may open as many files as it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(max_connections, soft - _OTHER_FILES))
    return max_connections


def serve(settings: AppSettings, listener: socket.socket | None = None) -> None:
    """Serve until SIGTERM or SIGINT; on a socket that listens already, if one is given.

    Raises: ConfigError when there is no pipeline to serve; SettingsError when there is no queue server.
    """
    return_freed_memory()
    server = Server(create_app(settings), host=settings.host, port=settings.port)
    server.run(sockets=None if listener is None else [listener])
