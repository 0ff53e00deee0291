"""Latents on the wire: encoded by a KL autoencoder, sent back in every way, decoded."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis
import torch
from PIL import Image

from app.cli.main import _Run, cli
from app.cli.terminal import CommandError
from models.autoencoders.kl import KlAutoencoder, KlConfig
from models.autoencoders.tiny import TinyAutoencoder, TinyConfig
from models.checkpoint import save_checkpoint
from models.media.image import ImageSpec
from models.networks.ldm_autoencoder import LdmConfig
from models.noise import draw_noise
from models.pipeline import AUTOENCODER_FILE
from models.spec import SPEC_FILE, PipelineSpec
from smalti import Client, InvalidRequest
from smalti.encoding import joined
from tests.app.conftest import WAIT, problem_of, serving_weights

NPY = "application/x-npy"
SHAPE = (3, 8, 8)


def save_pipeline(folder: Path, kind: str, autoencoder) -> str:
    """Write a pipeline that encodes and decodes only, and return its fingerprint."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    for parameter in autoencoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    side = autoencoder.signal_shape[1]
    save_checkpoint(folder / AUTOENCODER_FILE, autoencoder.state_dict(), autoencoder.config)
    PipelineSpec(
        name=folder.name,
        makes=(ImageSpec(width_px=side, height_px=side, channels=3),),
        latents=autoencoder.latent_shape,
        autoencoders={"image": kind},
        fingerprint=autoencoder.fingerprint(),
        has_posterior=kind == "kl",
    ).save(folder / SPEC_FILE)
    return autoencoder.fingerprint()


def make_kl() -> KlAutoencoder:
    network = LdmConfig(
        latent_channels=3, level_channels=(8, 8), num_blocks=1, num_groups=4, has_moments=True
    )
    return KlAutoencoder(KlConfig(network=network, image_size_px=16, latent_channels=3))


def save_weights(weights: Path) -> tuple[str, str]:
    """Write a KL pipeline and a tiny one, and return their fingerprints."""
    tiny = TinyConfig(
        image_size_px=16, latent_channels=3, hidden_channels=4, encoder_blocks=(0, 1), decoder_blocks=(1, 0)
    )
    return (
        save_pipeline(weights / "kl", "kl", make_kl()),
        save_pipeline(weights / "tiny-ae", "tiny", TinyAutoencoder(tiny)),
    )


def picture(shade: int) -> str:
    buffer = io.BytesIO()
    Image.effect_noise((16, 16), shade).convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def array_of(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)


def file_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("latents") / "weights"


@pytest.fixture(scope="module")
def fingerprints(weights: Path) -> tuple[str, str]:
    return save_weights(weights)


@pytest.fixture(scope="module")
def service(_session_redis_url: str, weights: Path, fingerprints) -> Iterator[httpx.Client]:
    with redis.Redis.from_url(_session_redis_url) as client:
        client.flushall()
    with serving_weights(_session_redis_url, weights, weights.with_name("data")) as client:
        yield client


def encode(service: httpx.Client, **fields) -> dict:
    answer = service.post("/encode", json={"pipeline": "kl", **fields}, headers=WAIT)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_latents_come_back_in_every_way_as_the_same_picture(service, fingerprints) -> None:
    job = encode(service, source=[picture(40), picture(90)], return_psnr=True)
    result = job["result"]
    assert (result["codes"], result["seed"]) == (None, None)
    assert result["latents"] == {
        "url": f"/jobs/{job['id']}/latents",
        "shape": [2, *SHAPE],
        "dtype": "float32",
        "tokenizer": fingerprints[0],
        "lengths": None,
    }
    assert all(output["psnr_db"] > 0 for output in result["outputs"])
    fetched = service.get(result["latents"]["url"])
    assert (fetched.headers["content-type"], fetched.headers["smalti-tokenizer"]) == (NPY, fingerprints[0])
    latents = array_of(fetched.content)
    assert (latents.shape, latents.dtype) == ((2, *SHAPE), np.float32)
    upload = service.post("/files", files={"file": ("latents.npy", fetched.content)}).json()["id"]
    ways = [
        {"json": job},
        {"json": result},
        {"json": {"latents": result["latents"]}},
        {"json": {"latents": {"job": job["id"]}}},
        {"json": {"latents": {"file": upload}, "tokenizer": fingerprints[0]}},
        {
            "content": fetched.content,
            "params": {"pipeline": "kl", "tokenizer": fingerprints[0]},
            "headers": {**WAIT, "Content-Type": NPY},
        },
    ]
    seen = set()
    for way in ways:
        decoded = service.post("/decode", **{"headers": WAIT, **way})
        assert decoded.status_code == 200, decoded.text
        assert decoded.json()["result"]["pipeline"] == "kl"
        seen.add(tuple(output["sha256"] for output in decoded.json()["result"]["outputs"]))
    assert len(seen) == 1
    one = service.post(
        "/decode",
        content=file_of(latents[1]),
        params={"tokenizer": fingerprints[0], "format": "webp"},
        headers={"Content-Type": NPY, "Accept": "image/webp"},
    )
    assert one.content[8:12] == b"WEBP"


def test_a_seed_draws_from_the_posterior_and_is_told(service) -> None:
    source = [picture(40), picture(90)]
    headers = {"Accept": NPY}
    body = {"pipeline": "kl", "source": source}
    mean = array_of(service.post("/encode", json=body, headers=headers).content)
    drawn = service.post("/encode", json={**body, "seed": 7}, headers=headers)
    assert drawn.headers["smalti-seed"] == "7"
    again = encode(service, source=source, posterior="sample", seed=7)
    assert again["result"]["seed"] == 7
    assert service.get(again["result"]["latents"]["url"]).content == drawn.content
    difference = array_of(drawn.content) - mean
    noise = np.stack([draw_noise(SHAPE, 7, index).numpy() for index in range(2)])
    assert ((difference / noise) > 0).mean() > 0.99  # std times noise
    unknown = encode(service, source=source, posterior="sample")["result"]["seed"]
    assert isinstance(unknown, int)
    form = service.post(
        "/encode",
        data={"pipeline": "kl", "seed": "7"},
        files=[("source", base64.b64decode(each)) for each in source],
        headers=headers,
    )
    assert form.content == drawn.content


def test_what_an_autoencoder_cannot_draw_is_refused(service) -> None:
    for fields, said in (
        ({"pipeline": "tiny-ae", "posterior": "sample"}, "posterior: tiny-ae draws nothing"),
        ({"pipeline": "tiny-ae", "seed": 3}, "seed: tiny-ae draws nothing"),
        ({"pipeline": "kl", "posterior": "mean", "seed": 3}, "seed: the mean of a posterior needs none"),
        ({"pipeline": "kl", "effort": 1}, "effort: kl can't search for codes"),
    ):
        problem = problem_of(
            service.post("/encode", json={"source": picture(9), **fields}), 422, "invalid_request"
        )
        assert problem.detail.startswith(said)


def test_pipelines_tell_what_they_encode_to(service, fingerprints) -> None:
    kl, tiny = service.get("/pipelines").json()
    assert (kl["latents"], kl["has_posterior"], kl["tokenizer"]) == (list(SHAPE), True, fingerprints[0])
    assert (tiny["has_posterior"], tiny["codebook_size"]) == (False, None)


def test_latents_that_cannot_be_decoded_are_refused(service, fingerprints) -> None:
    kl, tiny = fingerprints
    good = np.zeros((1, *SHAPE), np.float32)
    bad = good.copy()
    bad[0, 0, 0, 0] = np.nan

    def post(data: bytes, **params) -> httpx.Response:
        return service.post(
            "/decode", content=data, params={"tokenizer": kl, **params}, headers={"Content-Type": NPY}
        )

    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], object), allow_pickle=True)
    for data, said in (
        (file_of(good.astype(np.float64)), "must be little-endian float32 ('<f4'), got '<f8'"),
        (file_of(good.astype(">f4")), "must be little-endian float32"),
        (file_of(np.zeros((1, 3, 8, 4), np.float32)), "must be 3 x 8 x 8, or N x 3 x 8 x 8 with N from 1"),
        (file_of(np.zeros((65, *SHAPE), np.float32)), "with N from 1 to 64; got 65 x 3 x 8 x 8"),
        (file_of(np.zeros((0, *SHAPE), np.float32)), "got 0 x 3 x 8 x 8"),
        (file_of(np.asfortranarray(np.zeros((2, *SHAPE), np.float32))), "must be in C order"),
        (file_of(bad), "latents[0]: is not finite"),
        (file_of(good)[:-4], "has 764 bytes of data, its header says 768"),
        (file_of(good) + b"x", "has 769 bytes of data"),
        (pickled.getvalue(), "must be little-endian float32"),
        (b"PK\x03\x04", "is not a NumPy file"),
        (b"\x93NUMPY\x01\x00" + b"\xff\xff" + b"(" * 60000, "is not a NumPy file"),
    ):
        problem = problem_of(post(data), 422, "invalid_latents")
        assert said in problem.detail
    other = problem_of(post(file_of(good), pipeline="kl", tokenizer=tiny), 422, "invalid_latents")
    assert f"these latents were made by {tiny}, which is not the tokenizer of {kl} (kl)" in other.detail
    missing = problem_of(service.post("/decode", json={}), 422, "invalid_request")
    assert missing.detail == "codes: is required, or latents instead; got neither"
    assert "priority" in problem_of(post(file_of(good), priority="soon"), 422, "invalid_request").detail
    assert (
        "twice"
        in problem_of(
            service.post(
                f"/decode?tokenizer={kl}&tokenizer={kl}", content=b"x", headers={"Content-Type": NPY}
            ),
            422,
            "invalid_request",
        ).detail
    )


def test_a_url_only_names_a_job_of_the_service(service, fingerprints) -> None:
    about = {"shape": [1, *SHAPE], "tokenizer": fingerprints[0]}
    for url, said in (
        ("http://169.254.169.254/latest", "latents.url: must be that of a job's own latents"),
        (None, "latents.url: must be that of a job's own latents"),
        (f"http://127.0.0.1:1/jobs/{'0' * 32}/latents", f"latents: job {'0' * 32} has no latents"),
    ):
        answer = service.post("/decode", json={"latents": {**about, "url": url}})
        assert said in problem_of(answer, 422, "invalid_request").detail
    for job in ("../../etc", "0" * 32):
        answer = service.post("/decode", json={"latents": {"job": job}})
        problem_of(answer, 422, "invalid_request")
    job = encode(service, source=picture(3))
    wrong = {**job["result"]["latents"], "tokenizer": fingerprints[1]}
    told = problem_of(service.post("/decode", json={"latents": wrong}), 422, "invalid_latents")
    assert "but this job's latents were made by" in told.detail


def test_the_python_client_takes_latents_there_and_back(service) -> None:
    pictures = [base64.b64decode(picture(shade)) for shade in (20, 60)]
    with Client(str(service.base_url)) as client:
        encoded = client.encode(pictures, pipeline="kl", seed=3)
        assert encoded.seed == 3
        latents = encoded.latents.numpy()
        assert latents.shape == (2, *SHAPE)
        whole = [output.bytes() for output in client.decode(encoded).outputs]
        assert [output.bytes() for output in client.decode(encoded.latents).outputs] == whole
        own = client.decode(latents, tokenizer=encoded.latents.tokenizer, pipeline="kl")
        assert [output.bytes() for output in own.outputs] == whole
        both = joined([encoded, encoded])
        assert (both.latents.shape, len(both.outputs)) == ((4, *SHAPE), 4)
        assert [output.bytes() for output in client.decode(both).outputs] == whole * 2
        with pytest.raises(InvalidRequest, match="latents: must be 3 x 8 x 8"):
            client.decode(latents[:, :2], tokenizer=encoded.latents.tokenizer)


@pytest.mark.parametrize("is_local", [True, False])
def test_the_command_line_writes_latents_and_reads_them_back(
    service, weights, fingerprints, tmp_path, monkeypatch, capsys, is_local
) -> None:
    monkeypatch.setenv("SMALTI_WEIGHTS_DIR", str(weights))
    monkeypatch.setenv("SMALTI_DATA_DIR", str(tmp_path))
    place = [] if is_local else ["--url", str(service.base_url)]
    source, kept, out = tmp_path / "a.png", tmp_path / "a.npy", tmp_path / "b.png"
    source.write_bytes(base64.b64decode(picture(50)))

    def smalti(*arguments: object) -> int:
        return cli(list(map(str, [*arguments, *place])), standalone_mode=False, obj=_Run())

    smalti("encode", source, "--pipeline", "kl", "--seed", 5, "--out", kept)
    told = json.loads(capsys.readouterr().out)
    assert (told["latents"]["tokenizer"], told["seed"]) == (fingerprints[0], 5)
    job = encode(service, source=base64.b64encode(source.read_bytes()).decode(), seed=5)
    assert kept.read_bytes() == service.get(job["result"]["latents"]["url"]).content
    smalti("decode", kept, "--tokenizer", fingerprints[0], "--out", out)
    decoded = service.post("/decode", json=job, headers={"Accept": "image/png"})
    assert out.read_bytes() == decoded.content
    with pytest.raises(CommandError, match="latents need --tokenizer"):
        smalti("decode", kept, "--out", out)
    if is_local:
        with pytest.raises(CommandError, match=r"add --out FILE\.npy"):
            smalti("encode", source, "--pipeline", "kl")
