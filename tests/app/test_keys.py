"""API keys: who gets in, what each may do, and whose jobs are whose."""

import json
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.codes import LONGEST_WAIT_S
from app.examples import PROBLEMS
from app.keys import Key, load_keys, make_key, read_line
from app.main import create_app
from app.settings import AppSettings
from tests.app.conftest import problem_of, serving, settings_for, wait_until, working
from tests.fake_engine import FakeEngine
from workers.queue import embedded_server
from workers.results import ResultStore
from workers.settings import SettingsError

SECRETS, LINES = {}, []
for name, scopes in (("ada", ["generate"]), ("bob", ["generate"]), ("root", ["admin"]), ("cy", ["batch"])):
    SECRETS[name], line = make_key(name, scopes)
    LINES.append(line)
ADDRESSES = [("GET", "/pipelines"), ("POST", "/generate"), ("GET", "/jobs/x"), ("GET", "/nothing")]


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("keys") / "data"


@pytest.fixture(scope="module", params=["", "/smalti"], ids=["plain", "below a path"])
def client(request, data_dir) -> Iterator[httpx.Client]:
    folder = data_dir.parent
    server = embedded_server.start(folder / "redis")
    (folder / "keys").write_text("# who may ask\n\n" + "\n".join(LINES[1:]))
    settings = settings_for(
        folder, server.url, api_keys=LINES[0], api_keys_file=folder / "keys", root_path=request.param
    )
    try:
        with serving(create_app(settings)) as client, working(settings, FakeEngine()):
            wait_until(lambda: client.get("/health/ready").status_code == 200)
            yield client
    finally:
        server.stop()


def generate(client: httpx.Client, name: str, **headers: str) -> httpx.Response:
    return client.post(
        "/generate", json={"seed": 1}, headers={"Prefer": "wait=10", **bearer(name), **headers}
    )


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
def test_without_a_key_only_health_and_docs_are_open(client, method, path):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {SECRETS['ada']}"}):
        answer = client.request(method, path, headers=headers)
        problem_of(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer ")
        assert SECRETS["ada"] not in answer.text
    for path_ in ("/health/live", "/docs", "/openapi.json"):
        assert client.get(path_).status_code == 200


def test_a_scope_lets_do_what_it_is_for(client):
    assert generate(client, "ada").status_code == 200
    assert client.get("/metrics", headers=bearer("root")).status_code == 200
    assert generate(client, "root").status_code == 200
    for path in ("/metrics", "/metrics%0A", "/metrics/"):
        problem_of(client.get(path, headers=bearer("ada")), 403, "forbidden")
    problem_of(generate(client, "cy"), 403, "forbidden")


def test_examples_of_the_refusals_are_what_is_sent(client):
    assert client.get("/pipelines").json()["detail"] == PROBLEMS["unauthorized"].detail
    assert client.get("/metrics", headers=bearer("ada")).json()["detail"] == PROBLEMS["forbidden"].detail


def test_a_job_is_there_for_its_key_and_administrators_alone(client):
    job = generate(client, "ada").json()
    path = f"/jobs/{job['id']}"
    for name, status in (("ada", 200), ("root", 200), ("bob", 404)):
        for each in (path, f"{path}/outputs/0", f"{path}/images/0", f"{path}/events"):
            assert client.get(each, headers=bearer(name)).status_code == status, (name, each)
    problem_of(client.delete(path, headers=bearer("bob")), 404, "job_not_found")


def test_a_file_is_there_for_its_key_and_administrators_alone(client):
    info = client.post("/files", files={"file": b"x"}, headers=bearer("ada")).json()
    path = f"/files/{info['id']}"
    assert [each["id"] for each in client.get("/files", headers=bearer("ada")).json()["files"]] == [
        info["id"]
    ]
    assert client.get("/files", headers=bearer("bob")).json()["files"] == []
    for name, status in (("ada", 200), ("root", 200), ("bob", 404)):
        assert client.get(path, headers=bearer(name)).status_code == status
        assert client.get(f"{path}/content", headers=bearer(name)).status_code == status
    body = {"source": {"file": info["id"]}}
    assert "there is no file" in client.post("/encode", json=body, headers=bearer("bob")).json()["detail"]
    problem_of(client.post("/encode", json=body, headers=bearer("root")), 422, "invalid_image")
    problem_of(client.delete(path, headers=bearer("bob")), 404, "file_not_found")
    assert client.delete(path, headers=bearer("ada")).status_code == 204


def test_idempotency_keys_belong_to_one_key(client):
    first, again, other = (
        generate(client, name, **{"Idempotency-Key": "mine"}).json()["id"] for name in ("ada", "ada", "bob")
    )
    assert first == again != other


def test_the_address_of_an_output_is_signed_and_for_that_output_alone(client):
    job = generate(client, "ada").json()
    url = job["result"]["outputs"][0]["url"]
    assert job["result"]["images"][0]["url"] == url
    shown = client.get(url)
    assert shown.headers["content-type"] == "image/png"
    assert shown.headers["cache-control"].startswith("private, ")
    query = url.partition("?")[2]
    other = generate(client, "bob").json()
    problem_of(client.get(url.partition("?")[0] + "?" + 99 * "&"), 401, "unauthorized")
    for bad in (
        f"/jobs/{other['id']}/outputs/0?{query}",
        f"/jobs/{job['id']}?{query}",
        url.replace("expires=1", "expires=2"),
        url.replace("key=ada", "key=bob"),
        re.sub("signature=.", "signature=é", url),
        url.partition("&signature")[0],
    ):
        problem_of(client.get(bad), 401, "unauthorized")
    problem_of(client.delete(url), 401, "unauthorized")
    # Who comes with a key is judged by that.
    assert client.get(url, headers=bearer("bob")).status_code == 404


def test_a_browser_follows_a_job_by_its_address_alone(client):
    job, other = (generate(client, name).json() for name in ("ada", "bob"))
    url = job["events_url"]
    shown = client.get(url)
    assert shown.headers["content-type"].startswith("text/event-stream")
    (data,) = re.findall(r"^data: (.+)$", shown.text, re.M)
    ended = json.loads(data)["job"]
    assert client.get(ended["result"]["outputs"][0]["url"]).headers["content-type"] == "image/png"
    assert client.get(ended["events_url"]).status_code == 200
    path, _, query = url.partition("?")
    for bad in (
        path,
        f"/jobs/{other['id']}/events?{query}",
        f"{path}/?{query}",
        f"/jobs/{job['id']}/outputs/0?{query}",
        f"/jobs/{job['id']}?{query}",
    ):
        problem_of(client.get(bad), 401, "unauthorized")
    listed = client.get("/jobs", headers=bearer("ada")).json()["jobs"]
    assert all(client.get(each["events_url"]).status_code == 200 for each in listed)


def test_the_address_of_events_outlives_the_wait_for_a_worker(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url, api_keys=LINES[0], result_ttl_s=60)
    with serving(create_app(settings)) as client:

        def holds_s(job: dict) -> float:
            return int(httpx.URL(job["events_url"]).params["expires"]) - time.time()

        job = client.post("/generate", json={}, headers=bearer("ada")).json()
        assert job["status"] == "queued"
        assert LONGEST_WAIT_S < holds_s(job) <= LONGEST_WAIT_S + 60
        client.delete(f"/jobs/{job['id']}", headers=bearer("ada"))
        (ended,) = client.get("/jobs", headers=bearer("ada")).json()["jobs"]
        assert holds_s(ended) <= 60


def test_an_openai_client_gets_in_by_its_key_and_gets_signed_addresses(client):
    url = f"{client.base_url}/v1/"
    with openai.OpenAI(base_url=url, api_key=SECRETS["ada"], max_retries=0) as known:
        (image,) = known.images.generate(prompt="Sneaker", response_format="url").data
        assert client.get(image.url).headers["content-type"] == "image/png"
    with (
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as unknown,
        pytest.raises(openai.AuthenticationError, match="this address takes an API key"),
    ):
        unknown.models.list()


def test_a_signature_ends():
    key = Key("ada", frozenset(["generate"]), "00" * 32)
    url = key.sign("/jobs/x/outputs/0", -1)
    query = dict(part.split("=") for part in url.partition("?")[2].split("&"))
    assert int(query["expires"]) < time.time()
    assert not key.has_signed("/jobs/x/outputs/0", query["expires"], query["signature"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"ada {'0' * 64}", "line 1 is not NAME SCOPE"),
        (f"\nada generate,root sha256:{'0' * 64}", "line 2 has a scope that there isn't"),
        (f"{LINES[0]};{LINES[0]}", "the name ada is there twice"),
        (SECRETS["ada"], "line 1 is not NAME SCOPE"),
    ],
    ids=["no hash", "no such scope", "twice", "a key itself"],
)
def test_a_bad_line_is_refused_without_showing_it(text, told):
    with pytest.raises(SettingsError, match=told) as raised:
        load_keys(text, None)
    assert SECRETS["ada"] not in str(raised.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.com"])
def test_a_service_that_others_can_reach_needs_keys_or_a_word(tmp_path, host):
    settings = settings_for(tmp_path, "redis://127.0.0.1:1", host=host)
    with pytest.raises(SettingsError, match="smalti new-key") as raised:
        create_app(settings)
    assert "SMALTI_REQUIRE_KEYS=off" in str(raised.value)
    create_app(settings.model_copy(update={"require_keys": "off"}))
    create_app(settings.model_copy(update={"api_keys": LINES[0]}))


def test_keys_that_are_given_are_asked_for_whatever_else_is_said(tmp_path, redis_url):
    for word in ("auto", "on", "off"):
        settings = settings_for(tmp_path, redis_url, api_keys=LINES[0], require_keys=word)
        with serving(create_app(settings)) as client:
            problem_of(client.get("/pipelines"), 401, "unauthorized")


def test_a_new_key_is_shown_once_and_only_its_hash_is_kept(tmp_path: Path):
    file = tmp_path / "keys"
    file.touch(mode=0o600)
    made = CliRunner().invoke(cli, ["new-key", "ada", "--scope", "admin", "--file", str(file)])
    assert made.exit_code == 0
    secret = made.stdout.strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret not in file.read_text()
    assert load_keys("", file).find(secret) == read_line(file.read_text())
    again = CliRunner().invoke(cli, ["new-key", "ada", "--file", str(file)])
    assert again.exit_code != 0
    assert len(file.read_text().splitlines()) == 1
    file.write_text(f"  # mine\n{file.read_text().strip()}")
    assert CliRunner().invoke(cli, ["new-key", "bob", "--file", str(file)]).exit_code == 0
    assert len(file.read_text().splitlines()) == 3
    assert load_keys("", file).find(secret) is not None


def test_a_file_of_keys_that_is_missing_is_told(tmp_path: Path):
    settings = AppSettings(api_keys_file=tmp_path / "none")
    with pytest.raises(SettingsError, match="SMALTI_API_KEYS_FILE"):
        load_keys(settings.api_keys, settings.api_keys_file)


def test_latents_are_decoded_for_the_key_of_their_job_alone(client, data_dir):
    job = generate(client, "ada").json()
    ResultStore(data_dir / "results").put_latents(job["id"], b"no file", "0" * 16)
    path = f"/jobs/{job['id']}/latents"
    for name, status in (("ada", 200), ("root", 200), ("bob", 404)):
        assert client.get(path, headers=bearer(name)).status_code == status
    about = {"url": path, "shape": [1, 4, 4, 4], "tokenizer": "0" * 16}
    for latents in ({"job": job["id"]}, about):
        told = client.post("/decode", json={"latents": latents}, headers=bearer("bob")).json()["detail"]
        assert f"latents: there is no job {job['id']}" in told
        found = client.post("/decode", json={"latents": latents}, headers=bearer("ada"))
        problem_of(found, 422, "invalid_latents")  # as the pipeline has codes
