"""Fixtures that every test may use."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from workers import redis_server


@pytest.fixture(scope="session")
def _session_redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = redis_server.start(tmp_path_factory.mktemp("redis"))
    yield server.url
    server.stop()


@pytest.fixture
def redis_url(_session_redis_url: str) -> str:
    """The URL of a real server on a unix socket, emptied for each test."""
    with redis.Redis.from_url(_session_redis_url) as client:
        client.flushall()
    return _session_redis_url


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[redis_server.EmbeddedServer]:
    """A server of the test's own, to be killed and started again."""
    server = redis_server.start(tmp_path / "redis")
    yield server
    server.stop()
