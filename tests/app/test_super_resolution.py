"""Drawing small pictures larger over HTTP and on the command line, and what is refused."""

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.cli.local import compute
from app.sources import SourceFile
from models.autoencoders.vq import TokenizerConfig
from models.media.image import ImageSpec
from models.networks.dit import DiTConfig
from smalti import Client, InvalidRequest
from tests.app.conftest import png_of, problem_of, serving_weights
from tests.app.test_edits import noise_png, text_of
from tests.tiny import save_untrained
from workers.messages import GenerateRequest
from workers.queue import embedded_server
from workers.settings import WorkerSettings

PNG = {"Accept": "image/png", "Prefer": "wait=60"}
SMALL, WHOLE = noise_png(1, 6, 6, 1), noise_png(2, 12, 12, 1)
BODY = {"pipeline": "enlarging", "source": text_of(SMALL), "seed": 3}


@pytest.fixture(scope="module")
def weights(tiny_weights: Path, tmp_path_factory) -> Path:
    """Two pipelines of 12×12 grey pictures: "enlarging" those of 6×6, and "tiny"."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "tiny").symlink_to(tiny_weights / "tiny")
    save_untrained(
        folder / "enlarging",
        TokenizerConfig(image_size_px=12, hidden_channels=8, num_blocks=1, codebook_size=32),
        DiTConfig(grid=(6, 6), hidden_size=32, depth=2, num_heads=2, source_channels=4),
        takes={"source": ImageSpec(width_px=6, height_px=6, channels=1)},
    )
    return folder


@pytest.fixture(scope="module")
def client(weights: Path, tmp_path_factory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("service")
    server = embedded_server.start(folder / "redis")
    try:
        with serving_weights(server.url, weights, folder / "data", pipelines=()) as client:
            yield client
    finally:
        server.stop()


@pytest.fixture(scope="module")
def larger(client: httpx.Client) -> bytes:
    """What ``BODY`` gives."""
    answer = client.post("/generate", json=BODY, headers=PNG)
    assert answer.status_code == 200, answer.text
    return answer.content


def test_the_command_line_and_the_client_draw_the_same_picture(client, larger, weights, tmp_path):
    settings = WorkerSettings(weights_dir=weights, data_dir=tmp_path, device="cpu")
    resolved, finished = compute(GenerateRequest(**BODY), settings, [SourceFile("source", SMALL)])
    assert png_of(resolved, finished) == larger
    with Client(str(client.base_url)) as ours:
        made = ours.generate(source=SMALL, pipeline="enlarging", seed=3).outputs[0]
        assert made.bytes() == larger
        assert (made.width_px, made.height_px) == (12, 12)
        with pytest.raises(InvalidRequest, match="enlarging draws a picture of 6 x 6 px larger; send one"):
            ours.generate(pipeline="enlarging")
    assert b"compositeWithTrainedAlgorithmicMedia" in larger


def test_pipelines_say_which_source_they_need(client):
    tiny, enlarging = client.get("/pipelines").json()
    assert (tiny["name"], tiny["needs_source"]) == ("tiny", False), (
        "which is the default, though later by name"
    )
    assert enlarging["needs_source"]
    assert enlarging["takes"] == {
        "source": {
            "medium": "image",
            "formats": ["png", "webp", "jpeg"],
            "sizes": {"width_px": 6, "height_px": 6, "channels": 1},
        }
    }
    assert enlarging["example"] is None
    assert "strength" not in enlarging["options"]
    with Client(str(client.base_url)) as ours:
        assert [each.needs_source for each in ours.pipelines()] == [False, True]


def test_what_names_no_pipeline_goes_to_one_that_needs_no_source(client):
    for body in ({"seed": 1}, {"source": text_of(SMALL), "seed": 1}):
        answer = client.post("/generate", json=body, headers={"Prefer": "wait=60"})
        assert answer.json()["result"]["pipeline"] == "tiny"
    assert (
        client.post("/encode", json={"source": text_of(WHOLE)}, headers={"Prefer": "wait=60"}).json()[
            "result"
        ]["pipeline"]
        == "tiny"
    )


def test_encode_takes_what_the_pipeline_makes(client):
    body = {"source": text_of(WHOLE), "pipeline": "enlarging"}
    result = client.post("/encode", json=body, headers={"Prefer": "wait=60"}).json()["result"]
    assert result["codes"]["grid"] == [6, 6]


@pytest.mark.parametrize(
    ("changes", "code", "detail"),
    [
        (
            {"source": None},
            "invalid_request",
            "source: enlarging draws a picture of 6 x 6 px larger; send one",
        ),
        (
            {"source": text_of(noise_png(1, 30, 20))},
            "invalid_image",
            "source: enlarging takes 6 x 6 px, got 30 x 20 px; send it in that size",
        ),
        ({"source": base64.b64encode(SMALL[:60]).decode()}, "invalid_image", "source: "),
        ({"strength": 0.5}, "invalid_request", "strength: enlarging draws all of a larger picture; leave it"),
        (
            {"mask": text_of(noise_png(1, 6, 6, 1))},
            "invalid_request",
            "mask: enlarging takes no mask; it takes source",
        ),
    ],
)
def test_what_it_can_not_draw_larger_is_refused_in_words(client, changes, code, detail):
    problem = problem_of(client.post("/generate", json={**BODY, **changes}), 422, code)
    assert problem.detail.startswith(detail)


def test_openais_edits_are_told_that_it_takes_no_such_picture(client):
    form = {"model": "enlarging", "prompt": "a cat"}
    answer = client.post("/v1/images/edits", data=form, files={"image": SMALL})
    assert answer.json()["error"]["message"].startswith("image: enlarging takes no picture")
