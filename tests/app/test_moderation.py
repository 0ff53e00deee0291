"""A hook that refuses requests, and outputs before they are stored."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import redis

from app.main import create_app
from app.settings import read_settings
from models.media.image import IMAGE
from tests import moderating
from tests.app.conftest import WAIT, Service, problem_of, serving, settings_for, working
from tests.app.test_batches import ended, results, row, send
from tests.fake_engine import FakeEngine
from tests.moderating import AFTER, EXITS, HANGS, LIES, RAISES, REFUSES, REFUSES_1, SECRET
from tests.waiting import wait_until
from workers.errors import ModerationFailed
from workers.moderation import AskedFor, MadeOutput, load_moderation
from workers.queue import embedded_server
from workers.queue.records import events_key
from workers.settings import SettingsError, WorkerSettings

PNG = IMAGE.save(np.full((8, 8, 1), 7, np.uint8), "png")
NOT_CHECKED = ModerationFailed.message
REFUSED = {
    REFUSES: "not this one",
    RAISES: NOT_CHECKED,
    HANGS: NOT_CHECKED,
    LIES: NOT_CHECKED,
    EXITS: NOT_CHECKED,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moderated")
    server = embedded_server.start(folder / "redis")
    settings = settings_for(
        folder, server.url, moderation="tests.moderating:hook", moderation_timeout_s=0.5, default_wait_s=10
    )
    app, engine = create_app(settings), FakeEngine()
    try:
        with serving(app) as client, working(settings, engine):
            wait_until(lambda: client.get("/health/ready").status_code == 200)
            yield Service(client, engine, app)
    finally:
        moderating.is_over.set()
        server.stop()


def generate(service, seed: int, headers=WAIT, **fields):
    return service.client.post("/generate", json={"seed": seed, **fields}, headers=headers)


def num_jobs(service) -> int:
    return len(service.client.get("/jobs", params={"limit": 100}).json()["jobs"])


@pytest.mark.parametrize("seed", REFUSED)
def test_a_request_that_is_refused_makes_no_job(service, seed):
    before = num_jobs(service)
    answer = generate(service, seed)
    assert problem_of(answer, 422, "moderation_refused").detail == REFUSED[seed]
    assert SECRET not in answer.text
    assert num_jobs(service) == before


@pytest.mark.parametrize("seed", REFUSED)
def test_an_output_that_is_refused_is_not_stored(service, seed):
    for num_outputs in (1, 3):
        answer = generate(service, seed + AFTER, num_outputs=num_outputs)
        problem = problem_of(answer, 422, "moderation_refused")
        assert problem.detail == REFUSED[seed]
        assert service.client.get(f"/jobs/{problem.job_id}/outputs/0").status_code == 404
        assert not list(service.app.state.services.results._folder.rglob(f"*{problem.job_id}*"))
        again = service.client.post(f"/jobs/{problem.job_id}/retry", headers=WAIT)
        assert problem_of(again, 422, "moderation_refused").job_id != problem.job_id


def test_one_output_is_refused_alone_and_its_codes_with_it(service):
    result = generate(service, REFUSES_1, num_outputs=3, return_codes=True).json()["result"]
    first, second, third = result["outputs"]
    assert second["error"] == {"code": "moderation_refused", "message": "not the second"}
    assert "url" not in second
    assert [each is None for each in result["codes"]["codes"]] == [False, True, False]
    for output in (first, third):
        assert IMAGE.info(service.client.get(output["url"]).content).width_px == 8


@pytest.mark.parametrize("method", ["before", "after"])
def test_rows_of_a_batch_wait_for_a_hook_that_fails(service, method):
    try:
        moderating.is_down.add(method)
        rows = [row(f"r{n}", seed=900 + n, num_outputs=2) for n in range(12)]
        batch_id = send(service.client, rows)["id"]
        told = "12 rows: the moderation hook fails"
        wait_until(lambda: service.client.get(f"/batches/{batch_id}").json()["waiting"] == told)
        assert problem_of(generate(service, 7), 422, "moderation_refused").detail == NOT_CHECKED
    finally:
        moderating.is_down.clear()
    done = ended(service.client, batch_id)
    assert (done["counts"]["succeeded"], done["waiting"]) == (12, None)
    for each in results(service.client, batch_id):
        assert [output.get("error") for output in each["result"]["outputs"]] == [None, None]


def test_a_row_that_a_hook_refuses_is_not_tried_again(service):
    rows = [row("before", seed=REFUSES), row("after", seed=REFUSES + AFTER), row("good", seed=901)]
    batch_id = send(service.client, rows)["id"]
    assert ended(service.client, batch_id)["counts"]["failed"] == 2
    before, after, good = results(service.client, batch_id, order="input")
    assert before["error"] == after["error"] == {"code": "moderation_refused", "message": "not this one"}
    assert good["status"] == "succeeded"


def test_a_hook_that_hangs_holds_up_nobody_else(service):
    with ThreadPoolExecutor(8) as pool:
        hanging = [pool.submit(generate, service, HANGS + AFTER * (i % 2)) for i in range(6)]
        took = []
        for seed in range(5):
            began = time.monotonic()
            assert generate(service, seed).status_code == 200
            took.append(time.monotonic() - began)
        assert {each.result().status_code for each in hanging} == {422}
    assert min(took) < 0.4


def test_what_is_sent_again_is_asked_about_again(service):
    headers = WAIT | {"Idempotency-Key": "moderated"}
    first = generate(service, 5, headers).json()["id"]
    moderating.asked_before.clear()
    assert generate(service, 5, headers).json()["id"] == first
    (asked,) = moderating.asked_before
    assert (asked.operation, asked.pipeline, asked.seed, asked.owner) == ("generate", "tiny", 5, "")


def test_encoding_and_decoding_are_asked_about(service):
    moderating.asked_before.clear()
    encoded = service.client.post("/encode", files={"source": ("a.png", PNG)}, headers=WAIT)
    decoded = service.client.post("/decode", json=encoded.json(), headers=WAIT)
    assert decoded.json()["status"] == "succeeded"
    assert [asked.operation for asked in moderating.asked_before] == ["encode", "decode"]


def test_what_nobody_has_looked_at_is_not_shown_on_its_way(service):
    service.engine.is_held.set()
    job = service.client.post("/generate", json={"seed": 6, "preview": True}).json()
    with redis.Redis.from_url(service.app.state.settings.redis_url, decode_responses=True) as client:

        def events() -> list[str]:
            return [entry["event"] for _, entry in client.xrange(events_key(job["id"]))]

        wait_until(lambda: "progress" in events())
        assert "preview" not in events()
    service.engine.is_held.clear()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tests.nowhere:hook", "ModuleNotFoundError"),
        ("tests.moderating:nothing", "AttributeError"),
        ("tests.moderating:Nothing", "neither a method before nor after"),
        ("tests.harmful_decoders.missing:x", "PYTHONPATH"),
    ],
)
def test_a_hook_that_can_not_be_loaded_stops_the_start(tmp_path, name, told):
    with pytest.raises(SettingsError, match=told) as raised:
        create_app(settings_for(tmp_path, "redis://127.0.0.1:1", moderation=name))
    assert str(raised.value).startswith(f"SMALTI_MODERATION: {name} ")


def test_a_name_of_another_form_is_refused_with_the_form(monkeypatch):
    monkeypatch.setenv("SMALTI_MODERATION", "tests.moderating")
    with pytest.raises(SettingsError, match=r"must be package\.module:object"):
        read_settings(WorkerSettings)


def test_the_example_refuses_words_and_empty_pictures(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    hook = import_module("moderation").Moderation()
    asked = AskedFor("generate", "tiny", "", "a Knife and fork", None, {}, 1, 7)
    assert hook.before(asked) == "prompt: 'knife' is refused here"
    assert hook.before(replace(asked, prompt=None)) is None
    empty = np.full((8, 8, 1), 7, np.uint8)
    assert hook.after(asked, MadeOutput(0, "image", empty)) == "the picture shows nothing"
    assert hook.after(asked, MadeOutput(0, "image", empty * np.arange(8, dtype=np.uint8))) is None


def test_no_name_is_no_hook_and_a_class_is_called():
    assert load_moderation("", 1) is None
    moderation = load_moderation("tests.moderating:Hook", 1)
    assert moderation is not None
    assert moderation.checks_outputs
    moderation.close(0)
