"""The client that blocks, against a real service."""

import io
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from smalti import Client, InvalidRequest, JobCancelled, JobFailed, NoBytes, NotFound, Result, WaitTimeout
from tests.fake_engine import FAILS_SAMPLE_1, FINGERPRINT, grey_of, pixels_of


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_of(grey)[..., 0]).save(file, "PNG")
    return file.getvalue()


def test_generate_returns_pictures(client, tmp_path):
    result = client.generate(class_label="Sneaker", seed=7, num_outputs=2)

    assert (result.operation, result.pipeline, result.seed) == ("generate", "tiny", 7)
    for index, output in enumerate(result.outputs):
        assert output.image().getpixel((0, 0)) == grey_of(7, index)
        assert output._repr_png_() == output.bytes()
    path = result.outputs[0].save(tmp_path / "sneaker")
    assert path == tmp_path / "sneaker.png"
    assert path.read_bytes() == result.outputs[0].bytes()


def test_a_webp_is_saved_as_one_and_shown_as_png(client, tmp_path):
    (output,) = client.generate(seed=7, format="webp").outputs
    assert output.save(tmp_path / "grey").suffix == ".webp"
    assert output._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "source",
    [png(9), Image.fromarray(pixels_of(9)[..., 0]), pixels_of(9), pixels_of(9)[..., 0], io.BytesIO(png(9))],
    ids=["bytes", "image", "array", "flat array", "open file"],
)
def test_encode_takes_what_people_have(client, source):
    result = client.encode(source)
    assert result.codes.tokenizer == FINGERPRINT
    assert result.codes.codes == [[[9, 9], [9, 9]]]


def test_pictures_become_an_array_of_codes_and_pictures_again(client, tmp_path):
    paths = [tmp_path / f"{grey}.png" for grey in (3, 200)]
    for path in paths:
        path.write_bytes(png(int(path.stem)))

    encoded = client.encode(paths, effort=1, return_psnr=False)
    codes = encoded.codes.numpy()

    assert codes.dtype == np.uint16
    assert codes.tolist() == [[[3, 3], [3, 3]], [[200, 200], [200, 200]]]
    by_result = client.decode(encoded)
    by_codes = client.decode(encoded.codes)
    by_array = client.decode(codes, tokenizer=FINGERPRINT)
    by_json = client.decode(encoded.model_dump(mode="json"))
    for decoded in (by_result, by_codes, by_array, by_json):
        assert [output.image().getpixel((0, 0)) for output in decoded.outputs] == [3, 200]


def test_a_result_that_was_kept_as_json_can_be_used_again(client):
    made = client.generate(seed=5, return_codes=True)
    result = Result.model_validate_json(made.model_dump_json())
    with pytest.raises(NoBytes, match=r"client\.fetch"):
        result.outputs[0].bytes()
    assert client.fetch(result).outputs[0].bytes() == made.outputs[0].bytes()
    assert client.decode(result).outputs[0].image().getpixel((0, 0)) == grey_of(5, 0)


def test_a_quick_job_takes_two_requests_and_a_failed_one_is_not_made_again(service):
    asked: list[str] = []
    hooks = {"request": [lambda request: asked.append(f"{request.method} {request.url.path[:6]}")]}
    with httpx.Client(event_hooks=hooks) as http, Client(service.url, http=http) as client:
        client.generate(seed=1)
        assert asked == ["POST /gener", "GET /jobs/"]
        asked.clear()
        with pytest.raises(JobFailed):
            client.generate(seed=668)  # 507
        assert asked == ["POST /gener", "GET /jobs/"]


def test_a_job_is_followed_with_its_previews(client, service):
    service.engine.is_held.set()
    job = client.submit("generate", seed=4, preview=True)
    threading.Timer(0.6, service.engine.is_held.clear).start()

    events = list(job.events())

    assert [event.status for event in events if event.kind == "status"] == ["queued", "running", "succeeded"]
    assert any(event.progress and event.progress.total == 5 for event in events)
    previews = [event.preview for event in events if event.preview]
    assert previews[0].image().size[0] > 0
    assert job.info.has_ended
    assert events[-1].job.result.seed == 4


def test_leaving_events_early_leaves_nothing_open(client, service):
    service.engine.is_held.set()
    job = client.submit("generate", seed=4)
    for _ in job.events():
        break
    assert job.cancel().status in ("running", "cancelled")


def test_time_that_is_over_cancels_nothing(client, service):
    service.engine.is_held.set()
    with pytest.raises(WaitTimeout, match="it goes on") as timeout:
        client.generate(seed=3, timeout_s=0.4)
    service.engine.is_held.clear()
    assert client.job(timeout.value.job.id).wait().seed == 3


def test_time_that_is_over_cancels_when_asked(client, service):
    service.engine.is_held.set()
    with pytest.raises(WaitTimeout, match="cancelled, as asked") as timeout:
        client.generate(seed=3, timeout_s=0.4, cancel_on_timeout=True)
    with pytest.raises(JobCancelled):
        client.job(timeout.value.job.id).wait()


def test_a_bad_field_is_named(client):
    with pytest.raises(InvalidRequest, match="num_outputs") as refused:
        client.generate(num_outputs=65)
    assert (refused.value.status, refused.value.code) == (422, "invalid_request")
    assert [error.field for error in refused.value.errors] == ["num_outputs"]


def test_a_field_that_this_client_does_not_know_reaches_the_service(client):
    with pytest.raises(InvalidRequest, match="seeed"):
        client.generate(seeed=3)


def test_a_failed_job_is_told_with_its_reason(client):
    with pytest.raises(JobFailed, match="NaN") as failed:
        client.generate(seed=666)
    assert failed.value.code == "not_finite"
    assert failed.value.job.status == "failed"


def test_a_failed_sample_fails_alone(client):
    first, second = client.generate(seed=FAILS_SAMPLE_1, num_outputs=2).outputs
    assert first.bytes()
    with pytest.raises(NoBytes, match="sample 1 failed"):
        second.bytes()


def test_results_of_many_requests_come_in_order(client, service):
    requests = iter(range(10**9))  # endless, as far as anyone can tell
    results = client.map("generate", ({"seed": seed} for seed in requests), concurrency=4, return_codes=True)
    assert [next(results).seed for _ in range(20)] == list(range(20))
    results.close()
    assert next(requests) <= 20 + 2 * 4

    decoded = client.map("decode", [[[[grey, 1], [1, 1]]] for grey in (4, 5)], tokenizer=FINGERPRINT)
    assert [each.outputs[0].image().getpixel((0, 0)) for each in decoded] == [4, 5]


def test_one_of_many_fails_alone_when_asked(client):
    seeds = ({"seed": seed} for seed in (1, 666, 2))
    first, second, third = client.map("generate", seeds, return_errors=True)
    assert (first.seed, third.seed) == (1, 2)
    assert isinstance(second, JobFailed)
    with pytest.raises(JobFailed):
        list(client.map("generate", [{"seed": 666}, {"seed": 1}]))


def test_a_picture_that_is_not_there_is_one_of_many_that_fails(client, tmp_path):
    first, second = client.map("encode", [png(1), tmp_path / "none.png"], return_errors=True)
    assert first.codes.codes == [[[1, 1], [1, 1]]]
    assert "No such file" in str(second)


@pytest.mark.parametrize("requests", ["a cat", {"prompt": "a cat"}])
def test_one_request_instead_of_many_is_told(client, requests):
    with pytest.raises(ValueError, match="requests: is a list"):
        client.map("generate", requests)
    with pytest.raises(ValueError, match="concurrency: is 1 to 256, got 0"):
        client.map("generate", [requests], concurrency=0)


def test_a_picture_larger_than_a_job_takes_is_told(client):
    with pytest.raises(InvalidRequest) as refused:
        client.encode(bytes(80 * 2**20))
    assert refused.value.code == "body_too_large"


def test_it_says_what_there_is_and_whether_it_is_ready(client):
    (pipeline,) = client.pipelines()
    assert (pipeline.name, pipeline.tokenizer, pipeline.labels["class"][1]) == (
        "tiny",
        FINGERPRINT,
        "Sneaker",
    )
    health = client.health()
    assert health.is_ready
    assert health.num_ready_workers == 1


def test_a_job_that_is_not_there_is_told(client):
    with pytest.raises(NotFound):
        client.job("0" * 32)


@pytest.mark.parametrize("has_tqdm", [True, False])
def test_progress_is_shown_on_standard_error(client, service, capsys, monkeypatch, has_tqdm):
    if not has_tqdm:
        monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    service.engine.is_held.set()
    threading.Timer(0.4, service.engine.is_held.clear).start()
    client.generate(seed=1, progress=True)
    list(client.map("generate", [{"seed": 1}], progress=True))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "generate" in shown.err
    assert "2/5" in shown.err if has_tqdm else "2 of 5" in shown.err


def test_a_client_can_be_used_by_many_threads_and_closed(service):
    with Client(service.url) as client:
        threads = [threading.Thread(target=client.generate, kwargs={"seed": seed}) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with pytest.raises(RuntimeError, match="closed"):
        client.pipelines()


def test_it_has_no_traces_of_the_service(tmp_path: Path):
    import subprocess
    import sys

    source = (
        "import sys, smalti; found = {'torch', 'app', 'workers', 'models', 'training', 'numpy', 'PIL'}"
        " & set(sys.modules); print(found or 'clean')"
    )
    client_source = Path(__file__).parents[2] / "client" / "src"
    told = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, env={"PYTHONPATH": str(client_source)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == "clean"
