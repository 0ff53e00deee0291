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


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with one small untrained pipeline, "tiny": 12×12 grey, 6×6 codes, 3 classes."""
    import torch

    from models.config import PriorConfig, SamplingDefaults, TokenizerConfig
    from models.pipeline import save_pipeline
    from models.prior import DiT
    from models.tokenizer import Tokenizer

    weights = tmp_path_factory.mktemp("weights")
    generator = torch.Generator().manual_seed(0)
    tokenizer = Tokenizer(
        TokenizerConfig(
            image_size_px=12, hidden_channels=8, num_blocks=1, latent_channels=4, codebook_size=32
        )
    )
    prior = DiT(PriorConfig(grid=(6, 6), hidden_size=32, depth=3, num_heads=2, num_classes=3))
    for module in (tokenizer, prior):
        for parameter in module.parameters():
            parameter.data.normal_(std=0.2, generator=generator)
    tokenizer.quantizer.codebook.normal_(generator=generator)
    defaults = SamplingDefaults(num_steps=4, guidance_scale=2.0, guidance_interval=(0.0, 0.8))
    save_pipeline(weights / "tiny", "tiny", ("cat", "dog", "bird"), tokenizer, prior, defaults)
    return weights
