"""A real service for tests of the client, with an engine that draws flat squares, and a network that fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.main import create_app
from smalti import Client
from tests.app.conftest import serving, settings_for, working
from tests.client.faulty_network import FaultyNetwork
from tests.fake_engine import FakeEngine
from tests.waiting import wait_until
from workers.queue import embedded_server


@dataclass(frozen=True)
class Service:
    url: str
    engine: FakeEngine
    folder: Path
    redis_url: str


@contextmanager
def running(folder: Path, redis_url: str, engine: FakeEngine, **changes) -> Iterator[str]:
    """Run the API and a worker, and yield the address once it is ready."""
    settings = settings_for(folder, redis_url, **changes)
    with serving(create_app(settings)) as http, working(settings, engine):
        wait_until(lambda: http.get("/health/ready").status_code == 200)
        yield str(http.base_url)


@pytest.fixture(scope="session")
def session_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    server = embedded_server.start(folder / "redis")
    engine = FakeEngine()
    try:
        with running(folder, server.url, engine) as url:
            yield Service(url, engine, folder, server.url)
    finally:
        server.stop()


@pytest.fixture
def service(session_service: Service) -> Iterator[Service]:
    """The API, a queue and a worker; shared by all tests of the client."""
    yield session_service
    session_service.engine.is_held.clear()
    session_service.engine.step_s = None


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, timeout_s=20, retry_s=5) as client:
        yield client


@pytest.fixture
def network(service: Service) -> Iterator[FaultyNetwork]:
    """A network before the service that does harm when told to."""
    network = FaultyNetwork(service.url)
    yield network
    network.close()
