"""Serve the application over HTTP."""

import socket

import uvicorn
from fastapi import FastAPI

from app.main import create_app
from app.settings import AppSettings

GRACE_S = 20


class Server(uvicorn.Server):
    """Uvicorn; but at the end, clients that wait for a job are answered at once: it is still queued."""

    def __init__(self, app: FastAPI, *, host: str, port: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                log_config=None,
                access_log=False,
                ws="none",
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.services.is_ending.set()
        await super().shutdown(sockets)


def serve(settings: AppSettings, listener: socket.socket | None = None) -> None:
    """Serve until SIGTERM or SIGINT; on a socket that listens already, if one is given.

    Raises: ConfigError when there is no pipeline to serve; SettingsError when there is no queue server.
    """
    server = Server(create_app(settings), host=settings.host, port=settings.port)
    server.run(sockets=None if listener is None else [listener])
