"""Editing over HTTP: pictures drawn anew, in whole or in parts, and what is refused."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from app.cli.local import compute
from app.main import create_app
from app.settings import AppSettings
from app.sources import SourceFile
from models.media.image import ImageSpec, encode_image, load_image
from models.media.mask import load_mask
from tests.app.conftest import job_of, png_of, problem_of, serving, serving_weights, working
from tests.tiny import save_families
from tests.waiting import wait_until
from workers.messages import GenerateRequest
from workers.queue import embedded_server
from workers.settings import WorkerSettings

PNG = {"Accept": "image/png", "Prefer": "wait=60"}


def noise_png(seed: int, width: int, height: int, channels: int = 3) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return encode_image(pixels, "png")


def mask_png(width: int, height: int, *, is_white: bool = True) -> bytes:
    """Return a mask that is white in its middle."""
    pixels = np.zeros((height, width, 1), np.uint8)
    if is_white:
        pixels[height // 4 : -height // 4, width // 4 : -width // 4] = 255
    return encode_image(pixels, "png")


SOURCE, MASK = noise_png(1, 30, 20), mask_png(30, 20)
IS_NEW = load_mask(MASK, ImageSpec(width_px=12, height_px=12, channels=1)) > 0


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


BODY = {"source": text_of(SOURCE), "mask": text_of(MASK), "seed": 3, "num_steps": 4}


def pixels_in(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)[..., None]


@pytest.fixture(scope="module")
def weights(tiny_weights: Path, tmp_path_factory) -> Path:
    """Four pipelines: "tiny", "coder" that has no prior, and two that draw codes, "masked" and "in-turn"."""
    folder, families = tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("families")
    save_families(families)
    for name in ("masked", "in-turn"):
        (folder / name).symlink_to(families / name)
    (folder / "tiny").symlink_to(tiny_weights / "tiny")
    spec = json.loads((tiny_weights / "tiny" / "pipeline.json").read_text())
    (folder / "coder").mkdir()
    (folder / "coder" / "tokenizer.safetensors").symlink_to(tiny_weights / "tiny" / "tokenizer.safetensors")
    spec |= {"name": "coder", "prior": None, "labels": {}, "defaults": {}}
    (folder / "coder" / "pipeline.json").write_text(json.dumps(spec))
    return folder


@pytest.fixture(scope="module")
def client(weights: Path, tmp_path_factory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("service")
    server = embedded_server.start(folder / "redis")
    names = ("tiny", "coder", "masked", "in-turn")
    try:
        with serving_weights(server.url, weights, folder / "data", pipelines=names) as client:
            yield client
    finally:
        server.stop()


@pytest.fixture(scope="module")
def edited(client: httpx.Client) -> bytes:
    """What ``BODY`` gives."""
    answer = client.post("/generate", json=BODY, headers=PNG)
    assert answer.status_code == 200, answer.text
    return answer.content


def test_known_pixels_are_those_of_the_fitted_source(edited):
    is_same = pixels_in(edited) == load_image(SOURCE, 12, 12, 1)
    assert is_same[~IS_NEW].all()
    assert is_same[IS_NEW].mean() < 0.2
    assert b"compositeWithTrainedAlgorithmicMedia" in edited


def test_a_masked_pipeline_keeps_known_pixels_and_draws_the_others_by_the_seed(client):
    whole = {name: value for name, value in BODY.items() if name != "mask"}
    bodies = ({}, {"seed": 4}, {"strength": 0.5})
    first, second, third = (
        pixels_in(client.post("/generate", json={**BODY, "pipeline": "masked", **body}, headers=PNG).content)
        for body in bodies
    )
    source = load_image(SOURCE, 12, 12, 1)
    for each in (first, second, third):
        assert (each == source)[~IS_NEW].all()
        assert (each == source)[IS_NEW].mean() < 0.2
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, third)
    drawn = {
        client.post("/generate", json={**whole, "pipeline": "masked", "strength": share}, headers=PNG).content
        for share in (0.2, 1)
    }
    plain = client.post("/generate", json={"pipeline": "masked", "seed": 3, "num_steps": 4}, headers=PNG)
    assert len(drawn) == 2
    assert any(np.array_equal(pixels_in(plain.content), pixels_in(each)) for each in drawn)


def test_a_form_an_upload_and_json_give_the_same_bytes(client, edited):
    form = {"seed": "3", "num_steps": "4", "strength": "1.0"}
    by_form = client.post("/generate", data=form, files={"source": SOURCE, "mask": MASK}, headers=PNG)
    assert by_form.content == edited
    ids = [client.post("/files", files={"file": data}).json()["id"] for data in (SOURCE, MASK)]
    named = {**BODY, "source": {"file": ids[0]}, "mask": {"file": ids[1]}}
    assert client.post("/generate", json=named, headers=PNG).content == edited


def test_the_command_line_computes_the_same_bytes_without_a_service(edited, weights, tmp_path):
    settings = WorkerSettings(weights_dir=weights, data_dir=tmp_path, device="cpu")
    files = [SourceFile("source", SOURCE), SourceFile("mask", MASK, role="mask")]
    resolved, finished = compute(GenerateRequest(**BODY, pipeline="tiny"), settings, files)
    assert png_of(resolved, finished) == edited


def test_edits_have_their_bytes_in_any_company_and_samples_of_their_own(client, edited):
    bodies = [{**BODY, "seed": seed} for seed in range(4)] + [{"seed": 9}, {**BODY, "mask": None}]
    jobs = [job_of(client.post("/generate", json={**body, "num_outputs": 2})).id for body in bodies]
    files = []
    for job_id in jobs:
        wait_until(lambda job_id=job_id: client.get(f"/jobs/{job_id}").json()["status"] == "succeeded")
        files += [client.get(f"/jobs/{job_id}/outputs/{number}").content for number in range(2)]
    assert files[6] == edited
    assert len(set(files)) == len(files)


def test_a_batch_edits_an_upload(client, edited):
    ids = [client.post("/files", files={"file": data}).json()["id"] for data in (SOURCE, MASK)]
    body = {**BODY, "pipeline": "tiny", "source": {"file": ids[0]}, "mask": {"file": ids[1]}}
    rows = [
        {"id": "whole", "operation": "generate", "body": body},
        {"id": "alone", "operation": "generate", "body": {"mask": {"file": ids[1]}}},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    batch = client.post("/batches", content=lines, headers={"Content-Type": "application/jsonl"}).json()
    wait_until(lambda: client.get(f"/batches/{batch['id']}").json()["status"] == "succeeded")
    found = client.get(f"/batches/{batch['id']}/results", params={"order": "input"}).text.splitlines()
    whole, alone = map(json.loads, found)
    assert client.get(whole["result"]["outputs"][0]["url"]).content == edited
    assert alone["error"]["message"].startswith("mask: says which part of it to draw anew, but there is no")


def test_pipelines_say_what_they_take(client):
    tiny, coder, masked, in_turn = client.get("/pipelines").json()
    assert tiny["takes"]["source"]["sizes"] == {"width_px": 12, "height_px": 12, "channels": 1}
    assert list(tiny["takes"]) == ["source", "mask"]
    assert tiny["options"]["strength"]["default"] == 0.6
    assert (coder["takes"], coder["options"]) == ({}, {})
    assert (masked["takes"], masked["options"]["strength"]) == (tiny["takes"], tiny["options"]["strength"])
    assert in_turn["takes"] == {}
    assert "strength" not in in_turn["options"]


def test_a_strength_that_is_left_out_is_the_pipelines_own_and_1_with_a_mask(client, edited):
    plain = {name: value for name, value in BODY.items() if name != "mask"}
    answers = [
        client.post("/generate", json=body, headers=PNG).content
        for body in (plain, {**plain, "strength": 0.6}, {**plain, "strength": 0.9}, {**BODY, "strength": 1})
    ]
    assert answers[0] == answers[1] != answers[2]
    assert answers[3] == edited


@pytest.mark.parametrize(
    ("changes", "code", "detail"),
    [
        ({"source": None}, "invalid_request", "mask: says which part of it to draw anew, but there is no"),
        ({"source": None, "mask": None, "strength": 0.5}, "invalid_request", "strength: says how much of it"),
        ({"strength": 0}, "invalid_request", "strength: should be greater than 0, got 0"),
        ({"strength": 1.5}, "invalid_request", "strength: should be less than or equal to 1, got 1.5"),
        ({"pipeline": "coder"}, "invalid_request", "pipeline: coder has no prior"),
        (
            {"pipeline": "in-turn"},
            "invalid_request",
            "source: in-turn takes no source: it draws codes one after another, rows first",
        ),
        ({"source": "AAAA"}, "invalid_image", "source: the bytes are not a PNG, JPEG or WebP file"),
        ({"source": "%%%%"}, "invalid_image", "source: is not valid base64"),
        ({"mask": text_of(SOURCE[:99])}, "invalid_image", "mask: "),
        (
            {"mask": text_of(mask_png(20, 30))},
            "invalid_image",
            "mask: must have the size of its source, 30 x 20 px, got 20 x 30 px",
        ),
        (
            {"mask": text_of(mask_png(30, 20, is_white=False))},
            "invalid_image",
            "mask: is white nowhere, at 12 x 12 px; the source is drawn anew where its mask is white",
        ),
        ({"source": {"file": "0" * 32}}, "invalid_request", "source: there is no file"),
    ],
)
def test_what_can_not_be_edited_is_refused_in_words(client, changes, code, detail):
    problem = problem_of(client.post("/generate", json={**BODY, **changes}), 422, code)
    assert problem.detail.startswith(detail)


@pytest.mark.parametrize(
    ("form", "files", "detail"),
    [
        ({"source": "AAAA"}, {"mask": MASK}, "source: must be a file in a form"),
        ({"labels": "{}"}, {"source": SOURCE}, "labels: a form has none; send class_label, style or group"),
        ({}, {"image": SOURCE}, "image: is not a file's name; send it as source"),
        ({}, [("source", SOURCE), ("source", SOURCE)], "source: is there twice; send one"),
        ({"num_steps": "2.0"}, {"source": SOURCE}, "num_steps: should be a valid integer, got '2.0'"),
        ({"steps": "2"}, {"source": SOURCE}, "steps: unknown field; did you mean num_steps?"),
    ],
)
def test_a_form_that_is_wrong_is_refused_in_words(client, form, files, detail):
    problem = problem_of(client.post("/generate", data=form, files=files), 422, "invalid_request")
    assert problem.detail.startswith(detail)


def test_a_mask_may_be_transparent_where_it_is_white(client, edited):
    mask = np.zeros((20, 30, 4), np.uint8)
    mask[..., 3] = 255 - pixels_in(MASK)[..., 0]
    body = {**BODY, "mask": text_of(encode_image(mask, "png"))}
    assert client.post("/generate", json=body, headers=PNG).content == edited


def test_an_edit_goes_on_with_another_worker_and_gives_the_same_bytes(redis_url, tiny_weights, tmp_path):
    from models.pipeline import Pipeline  # brings PyTorch, which other tests of the API do without
    from workers.engine.engine import Engine

    def engine() -> Engine:
        return Engine({"tiny": Pipeline.load(tiny_weights / "tiny")})

    settings = AppSettings(redis_url=redis_url, weights_dir=tiny_weights, data_dir=tmp_path)
    long = {**BODY, "num_steps": 60, "sampler": "heun"}
    with serving(create_app(settings)) as client:
        with working(settings, engine()):
            plain = client.post("/generate", json=long, headers=PNG).content
            first = job_of(client.post("/generate", json=long)).id
            wait_until(lambda: (client.get(f"/jobs/{first}").json()["progress"] or {}).get("step", 0) > 0)
        assert client.get(f"/jobs/{first}").json()["status"] == "queued"
        with working(settings, engine()):
            wait_until(lambda: client.get(f"/jobs/{first}").json()["status"] == "succeeded")
            assert client.get(f"/jobs/{first}/outputs/0").content == plain
            second = job_of(client.post("/generate", json=long)).id
            assert client.delete(f"/jobs/{second}").json()["status"] == "cancelled"
            assert client.post("/generate", json=long, headers=PNG).content == plain
