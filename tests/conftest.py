"""Fixtures that every test may use."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import redis

from workers.queue import embedded_server

if TYPE_CHECKING:
    from moto.server import ThreadedMotoServer

# Compute threads of several test processes must not spin while they wait. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell starts what is in its background with Ctrl-C ignored, and children would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def _session_redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = embedded_server.start(tmp_path_factory.mktemp("redis"))
    yield server.url
    server.stop()


@pytest.fixture
def redis_url(_session_redis_url: str) -> str:
    """The URL of a real server on a unix socket, emptied for each test."""
    with redis.Redis.from_url(_session_redis_url) as client:
        client.flushall()
    return _session_redis_url


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[embedded_server.EmbeddedServer]:
    """A server of the test's own, to be killed and started again."""
    server = embedded_server.start(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator["ThreadedMotoServer"]:
    """A server that speaks S3, empty, and the environment that leads to it."""
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    put, one_at_once = S3Response._key_response_put, threading.Lock()

    def put_as_s3_does(*of_a_request: Any) -> Any:
        """Look and write in one, as S3 does: moto's threads may each find nothing there, and all write."""
        with one_at_once:
            return put(*of_a_request)

    monkeypatch.setattr(S3Response, "_key_response_put", put_as_s3_does)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a-name",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    httpx.post(f"http://{host}:{port}/moto-api/reset")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with one small untrained pipeline, "tiny": 12×12 grey, 6×6 codes, 3 classes."""
    from models.autoencoders.vq import TokenizerConfig
    from models.networks.dit import DiTConfig
    from tests.tiny import save_untrained

    weights = tmp_path_factory.mktemp("weights")
    save_untrained(
        weights / "tiny",
        TokenizerConfig(image_size_px=12, hidden_channels=8, num_blocks=1, codebook_size=32),
        DiTConfig(grid=(6, 6), hidden_size=32, depth=3, num_heads=2, label_sizes=(3,)),
        labels={"class": ("cat", "dog", "bird")},
    )
    return weights


@pytest.fixture(scope="session")
def tiny_prompt_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with "tiny-prompt": 16×16 colour, 4×4 codes, prompts of 6 tokens, styles, groups."""
    from tests.tiny import PRIOR, TOKENIZER, save_untrained, tiny_prompt_encoder

    weights = tmp_path_factory.mktemp("prompt-weights")
    save_untrained(
        weights / "tiny-prompt",
        TOKENIZER,
        PRIOR,
        labels={"style": ("flat", "round", "small"), "group": ("animals", "food")},
        example_prompt="a red cat",
        prompt_encoder=tiny_prompt_encoder(),
    )
    return weights
