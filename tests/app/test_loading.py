"""Pipelines that come, go and change while the service runs, with the real API, queue, worker and engine."""

import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.keys import make_key
from app.main import create_app
from app.settings import AppSettings
from models.autoencoders.vq import TokenizerConfig
from models.networks.dit import DiTConfig
from tests.app.conftest import WAIT, job_of, problem_of, serving
from tests.tiny import save_untrained
from tests.waiting import wait_until
from workers import loader, pipeline_folders
from workers.settings import WorkerSettings
from workers.start import new_worker
from workers.worker import Worker

REQUEST = {"seed": 5, "num_steps": 2, "format": "png"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of three small pipelines, of the same size, to be copied."""
    folder = tmp_path_factory.mktemp("sources")
    for number, name in enumerate(("one", "two", "three")):
        save_untrained(
            folder / name,
            TokenizerConfig(image_size_px=12, hidden_channels=8, num_blocks=1, codebook_size=32 + number),
            DiTConfig(grid=(6, 6), hidden_size=32, depth=2, num_heads=2, label_sizes=(3,)),
            labels={"class": ("cat", "dog", "bird")},
        )
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_folders, "SCAN_EVERY_S", 0.05)
    monkeypatch.setattr("app.main.SCAN_EVERY_S", 0.05)
    monkeypatch.setattr(loader, "TICK_S", 0.02)
    monkeypatch.setattr("workers.residents._FIRST_PAUSE_S", 0.01)


def put(source: Path, weights: Path, name: str = "") -> Path:
    """Put a pipeline into the weights folder as an importer does: whole, by a rename."""
    target = weights / (name or source.name)
    shutil.copytree(source, weights / ".partial")
    if target.exists():
        target.rename(weights / ".old")
    (weights / ".partial").rename(target)
    shutil.rmtree(weights / ".old", ignore_errors=True)
    return target


@dataclass
class Place:
    client: httpx.Client
    weights: Path

    def info(self, name: str) -> dict[str, Any]:
        return next((each for each in self.client.get("/pipelines").json() if each["name"] == name), {})

    def states(self, name: str) -> list[str]:
        return [load["state"] for load in self.info(name).get("loads", ())]

    def loaded(self) -> set[str]:
        return {name for worker in self.client.get("/workers").json() for name in worker["loaded"]}

    def generate(self, name: str, **fields: Any) -> str:
        """Return the digest of the picture that a pipeline makes of the request."""
        job = job_of(
            self.client.post("/generate", json={**REQUEST, "pipeline": name, **fields}, headers=WAIT)
        )
        assert job.status == "succeeded", job
        return job.result.outputs[0].sha256


@contextmanager
def running(redis_url: str, weights: Path, folder: Path, **changes: Any) -> Iterator[Place]:
    settings = AppSettings(redis_url=redis_url, weights_dir=weights, data_dir=folder / "data", max_wait_s=15)
    with serving(create_app(settings)) as client, worker_of(settings, **changes):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield Place(client, weights)


@contextmanager
def worker_of(settings: AppSettings, **changes: Any) -> Iterator[Worker]:
    worker = new_worker(
        WorkerSettings(
            redis_url=settings.redis_url,
            weights_dir=settings.weights_dir,
            data_dir=settings.data_dir,
            device="cpu",
            max_batch_size=4,
            lease_s=1,
            drain_grace_s=0,
            **changes,
        )
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.request_stop()
        thread.join()


@pytest.fixture
def weights(tmp_path: Path, sources: Path) -> Path:
    (tmp_path / "weights").mkdir()
    put(sources / "one", tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture(scope="module")
def alone(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pictures of pipelines that never shared a process with another, by name."""
    from app.cli.local import Local
    from workers.files import encode_output
    from workers.messages import GenerateRequest

    found = {}
    for name in ("one", "two"):
        data = tmp_path_factory.mktemp("alone")
        local = Local(WorkerSettings(weights_dir=sources, data_dir=data, device="cpu", max_batch_size=4))
        work = local.prepare(GenerateRequest(pipeline=name, **REQUEST))
        [finished] = local.run([work])
        found[name] = hashlib.sha256(
            encode_output(work.request, finished, 0, tells_provenance=True)
        ).hexdigest()
    return found


def test_a_folder_that_is_put_there_is_served_without_a_restart(redis_url, weights, sources, tmp_path, alone):
    with running(redis_url, weights, tmp_path) as place:
        assert place.generate("one") == alone["one"]
        problem_of(place.client.post("/generate", json={"pipeline": "two"}), 422, "unknown_pipeline")
        put(sources / "two", weights)
        wait_until(lambda: place.states("two") == ["not_loaded"])
        assert [each["name"] for each in place.client.get("/pipelines").json()] == ["one", "two"]
        assert place.generate("two") == alone["two"]
        wait_until(lambda: place.states("two") == ["loaded"])
        assert place.info("two")["loads"][0]["num_bytes"] > 10_000
        assert place.generate("one") == alone["one"]
        counted = 'smalti_pipeline_loads_total{outcome="loaded",pipeline="two"} 1.0'
        wait_until(lambda: counted in place.client.get("/metrics").text)
        assert 'smalti_loaded_bytes{pipeline="two",worker=' in place.client.get("/metrics").text

        shutil.rmtree(weights / "two")
        wait_until(lambda: place.loaded() == {"one"})
        problem_of(place.client.post("/generate", json={"pipeline": "two"}), 422, "unknown_pipeline")


@pytest.mark.ci
def test_two_pipelines_with_room_for_one_take_turns(redis_url, weights, sources, tmp_path, alone):
    put(sources / "two", weights)
    num_bytes = sum(file.stat().st_size for file in (weights / "two").glob("*.safetensors"))
    with running(redis_url, weights, tmp_path, max_loaded_bytes=int(1.5 * num_bytes)) as place:
        assert place.loaded() == {"one"}
        assert place.client.get("/health/ready").json()["refused_pipelines"] == {}
        for name in ("two", "one", "two"):
            assert place.generate(name) == alone[name]
            wait_until(lambda name=name: place.loaded() == {name})


@pytest.mark.ci
def test_what_runs_is_never_dropped_and_its_turn_ends(
    redis_url, weights, sources, tmp_path, alone, monkeypatch
):
    """A pipeline that always has jobs gives way to a job that has waited, once those it has are done."""
    monkeypatch.setattr(loader, "TURN_S", 0.3)
    put(sources / "two", weights)
    num_bytes = sum(file.stat().st_size for file in (weights / "two").glob("*.safetensors"))
    with running(redis_url, weights, tmp_path, max_loaded_bytes=int(1.5 * num_bytes)) as place:
        long = {"pipeline": "one", "num_steps": 200, "seed": 1}
        many = [job_of(place.client.post("/generate", json={**long, "seed": seed})) for seed in range(12)]
        assert place.generate("two") == alone["two"]
        for job in many:
            done = job_of(place.client.get(f"/jobs/{job.id}", headers=WAIT))
            assert (done.status, done.num_tries) == ("succeeded", 1)


@pytest.mark.ci
def test_a_broken_one_is_refused_and_harms_nothing(redis_url, weights, sources, tmp_path, alone):
    with running(redis_url, weights, tmp_path) as place:
        broken = put(sources / "two", weights)
        (broken / "pipeline.json").write_text('{"format": 2, "name": "two"}')
        cut = put(sources / "three", weights)
        (cut / "prior.safetensors").write_bytes((cut / "prior.safetensors").read_bytes()[:-100])
        wait_until(lambda: place.states("three") == ["not_loaded"])
        answer = place.client.post("/generate", json={"pipeline": "three"}, headers=WAIT)
        said = problem_of(answer, 503, "pipeline_not_served").detail
        assert "three/prior.safetensors is truncated" in said
        wait_until(lambda: place.states("three") == ["failed"])
        wait_until(lambda: len(place.client.get("/health/ready").json()["refused_pipelines"]) == 2)
        refused = place.client.get("/health/ready").json()["refused_pipelines"]
        assert "two/pipeline.json" in refused["two"]
        assert "truncated" in refused["three"]
        assert str(tmp_path) not in str(refused) + said
        problem_of(place.client.post("/generate", json={"pipeline": "three"}), 503, "pipeline_not_served")
        assert place.generate("one") == alone["one"]

        put(sources / "two", weights)
        put(sources / "three", weights)
        wait_until(lambda: place.states("three") == place.states("two") == ["not_loaded"])
        assert place.generate("two") == alone["two"]
        place.generate("three")


@pytest.mark.ci
def test_load_pins_and_unload_lets_go_until_a_request_comes(redis_url, weights, sources, tmp_path, alone):
    put(sources / "two", weights)
    num_bytes = sum(file.stat().st_size for file in (weights / "two").glob("*.safetensors"))
    with running(redis_url, weights, tmp_path, max_loaded_bytes=int(1.5 * num_bytes)) as place:
        answer = place.client.post("/pipelines/two/load")
        assert (answer.status_code, answer.json()["name"], answer.json()["is_pinned"]) == (202, "two", True)
        wait_until(lambda: place.loaded() == {"two"})
        answer = place.client.post("/generate", json={"pipeline": "one"}, headers=WAIT)
        assert "SMALTI_MAX_LOADED_BYTES" in problem_of(answer, 503, "pipeline_not_served").detail
        assert place.generate("two") == alone["two"]

        assert place.client.post("/pipelines/two/unload").json()["is_pinned"] is False
        wait_until(lambda: place.loaded() == set())
        assert place.generate("two") == alone["two"]
        place.client.post("/pipelines/one/load")
        wait_until(lambda: place.loaded() == {"one"})
        problem_of(place.client.post("/pipelines/none/load"), 422, "unknown_pipeline")

    with running(redis_url, weights, tmp_path, max_loaded_bytes=int(1.5 * num_bytes)) as place:
        assert place.loaded() == {"one"}, "orders survive a restart"
        assert place.info("one")["is_pinned"]


def smalti(place: Place, *command: str) -> Any:
    return CliRunner().invoke(cli, [*command, "--url", str(place.client.base_url)])


@pytest.mark.ci
def test_the_command_line_loads_and_tells(redis_url, weights, sources, tmp_path):
    cut = put(sources / "three", weights)
    (cut / "prior.safetensors").write_bytes((cut / "prior.safetensors").read_bytes()[:-100])
    put(sources / "two", weights)
    with running(redis_url, weights, tmp_path, max_loaded_bytes=200_000) as place:
        done = smalti(place, "load", "two")
        assert (done.exit_code, done.stdout) == (0, "two: loaded by 1 of 1 workers, 0 MB, pinned\n")
        lines = smalti(place, "pipelines").stdout.splitlines()
        assert [line.split("; ")[0].split(":")[0] for line in lines] == ["one", "three", "two"]
        assert lines[0].endswith("loaded by 0 of 1 workers")
        assert lines[2].endswith("loaded by 1 of 1 workers, 0 MB, pinned")
        assert smalti(place, "unload", "two").exit_code == 0
        wait_until(lambda: place.loaded() == set())
        done = smalti(place, "load", "three")
        assert done.exit_code != 0
        assert "1 of 1 workers could not load three: three/prior.safetensors" in str(done.exception)
        assert smalti(place, "load", "../none").exit_code != 0


KILLED = """
import sys, time
from pathlib import Path
from workers.engine.loading import Shelf
from workers.settings import WorkerSettings
from workers.start import run_worker

url, weights, data, mark = sys.argv[1:]
read = Shelf.read


def slowly(shelf, entry):
    if entry.spec.name == "two" and not Path(mark).exists():
        Path(mark).touch()
        time.sleep(60)
    return read(shelf, entry)


run_worker(WorkerSettings(redis_url=url, weights_dir=weights, data_dir=data, device="cpu", lease_s=1))
"""


@pytest.mark.ci
def test_a_worker_that_is_killed_while_it_loads_loses_no_job(redis_url, weights, sources, tmp_path, alone):
    settings = AppSettings(
        redis_url=redis_url, weights_dir=weights, data_dir=tmp_path / "data", max_wait_s=30
    )
    code = KILLED.replace("\nrun_worker", "\nShelf.read = slowly\nrun_worker")
    arguments = [redis_url, str(weights), str(tmp_path / "data"), str(tmp_path / "mark")]
    with serving(create_app(settings)) as client:
        first = subprocess.Popen([sys.executable, "-c", code, *arguments])
        try:
            wait_until(lambda: client.get("/health/ready").status_code == 200, 30)
            put(sources / "two", weights)
            place = Place(client, weights)
            wait_until(lambda: place.states("two") == ["not_loaded"])
            job = job_of(client.post("/generate", json={**REQUEST, "pipeline": "two"}))
            wait_until(lambda: (tmp_path / "mark").exists())
        finally:
            first.kill()
            first.wait()
        with worker_of(settings):
            done = job_of(client.get(f"/jobs/{job.id}", headers={"Prefer": "wait=25"}))
        assert (done.status, done.num_tries) == ("succeeded", 1), done
        assert done.result.outputs[0].sha256 == alone["two"]


@pytest.mark.ci
def test_a_replaced_folder_is_loaded_anew(redis_url, weights, sources, tmp_path, alone):
    with running(redis_url, weights, tmp_path) as place:
        before = place.info("one")["tokenizer"]
        other = shutil.copytree(sources / "two", tmp_path / "other")
        text = (other / "pipeline.json").read_text()
        (other / "pipeline.json").write_text(text.replace('"two"', '"one"'))
        running_job = job_of(place.client.post("/generate", json={"pipeline": "one", "num_steps": 200}))
        put(other, weights, "one")
        wait_until(lambda: place.info("one").get("tokenizer", before) != before)
        wait_until(lambda: "smalti_pipeline_loads_total" in place.client.get("/metrics").text)
        assert job_of(place.client.get(f"/jobs/{running_job.id}", headers=WAIT)).status == "succeeded"
        code = [[[1] * 6] * 6]
        decoded = place.client.post(
            "/decode", json={"codes": code, "tokenizer": place.info("one")["tokenizer"]}, headers=WAIT
        )
        assert job_of(decoded).status == "succeeded"


def test_only_administrators_load(redis_url, weights, tmp_path):
    secrets, lines = zip(*(make_key(name, [name]) for name in ("generate", "admin")), strict=True)
    settings = AppSettings(
        redis_url=redis_url, weights_dir=weights, data_dir=tmp_path / "data", api_keys=";".join(lines)
    )
    with serving(create_app(settings)) as client:
        for what in ("load", "unload"):
            path = f"/pipelines/one/{what}"
            problem_of(client.post(path), 401, "unauthorized")
            bearer = {"Authorization": f"Bearer {secrets[0]}"}
            problem_of(client.post(path, headers=bearer), 403, "forbidden")
            assert client.get("/pipelines", headers=bearer).status_code == 200
            bearer = {"Authorization": f"Bearer {secrets[1]}"}
            assert client.post(path, headers=bearer).status_code == 202
