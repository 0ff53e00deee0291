"""A medium that app/ and workers/ know nothing of, through the whole service."""

import base64
from pathlib import Path

import numpy as np
import pytest
import torch

from models import options, registry
from models.checkpoint import save_checkpoint
from models.media import base as media
from models.spec import SPEC_FILE, CodesSpec, PipelineSpec
from tests.app.conftest import serving_weights
from tests.toy_masked import KIND as MASKED
from tests.toy_masked import ToyMaskedConfig, ToyMaskedNetwork, ToyMaskedOptions
from tests.toy_tone import KIND, MEDIUM, TONE, ToneSpec, ToyCodec, ToyCodecConfig


@pytest.fixture
def weights(tmp_path: Path, monkeypatch) -> Path:
    """A pipeline of tones, with a masked prior over the codec's codes."""
    monkeypatch.setitem(media.MEDIA, MEDIUM, "tests.toy_tone:TONE")
    monkeypatch.setitem(registry.AUTOENCODERS, KIND, "tests.toy_tone:ToyCodec")
    monkeypatch.setitem(registry.PRIORS, MASKED, "tests.toy_masked:ToyMaskedPrior")
    monkeypatch.setitem(options.FAMILIES, MASKED, ToyMaskedOptions)
    codec, config = ToyCodec(ToyCodecConfig()), ToyMaskedConfig(latent_channels=1, grid=(8,))
    folder = tmp_path / "weights" / "tones"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_checkpoint(folder / "tokenizer.safetensors", codec.state_dict(), codec.config)
    save_checkpoint(folder / "prior.safetensors", ToyMaskedNetwork(config).state_dict(), config)
    PipelineSpec(
        name="tones",
        makes=(ToneSpec(num_samples=64, sample_rate_hz=8000),),
        latents=codec.latent_shape,
        codes=CodesSpec(grid=(8,), size=32, fingerprint=codec.fingerprint()),
        labels={"mood": ("glad", "sad", "calm")},
        autoencoders={MEDIUM: KIND},
        prior=MASKED,
        defaults=ToyMaskedOptions(),
    ).save(folder / SPEC_FILE)
    return folder.parent


def test_a_tone_is_encoded_decoded_and_generated(weights: Path, tmp_path: Path, redis_url: str) -> None:
    wait = {"Prefer": "wait=20"}
    tone = (20000 * np.sin(np.arange(64) / 9)).astype(np.int16)
    source = base64.b64encode(TONE.save(tone, "wav")).decode()
    with serving_weights(redis_url, weights, tmp_path / "data") as client:
        info = client.get("/pipelines").json()[0]
        assert info["makes"] == [
            {"medium": "tone", "formats": ["wav"], "sizes": {"num_samples": 64, "sample_rate_hz": 8000}}
        ]
        encoded = client.post("/encode", json={"source": source}, headers=wait).json()
        assert encoded["status"] == "succeeded", encoded
        codes = encoded["result"]["codes"]
        assert np.shape(codes["codes"]) == (1, 8)
        decoded = client.post("/decode", json={"codes": codes}, headers={"Accept": "audio/wav"})
        assert decoded.headers["content-type"] == "audio/wav"
        heard = TONE.load(decoded.content, ToneSpec(num_samples=64, sample_rate_hz=8000))
        assert np.abs(heard.reshape(8, 8).mean(1) - tone.reshape(8, 8).mean(1)).max() < 32768 / 31
        request = {"labels": {"mood": "sad"}, "seed": 3, "num_outputs": 2}
        made = client.post("/generate", json=request, headers=wait).json()["result"]
        assert [output["duration_s"] for output in made["outputs"]] == [0.008, 0.008]
        assert made["images"] == []
        assert client.get(made["outputs"][1]["url"]).content[:4] == b"RIFF"
        refused = client.post("/encode", json={"source": base64.b64encode(b"no sound").decode()})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_tone")
