"""A rolling upgrade from the version before messages had one: workers first, then the front end."""

import io
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

from app.main import create_app
from models.media.image import encode_image
from tests.app.conftest import WAIT, job_of, serving, settings_for, working
from tests.fake_engine import FakeEngine, codes_of, pixels_of
from tests.waiting import wait_until

BEFORE = "894b9e75e1"
ROOT = Path(__file__).parents[2]
TOLD_LATER = {"metrics": None, "expires_at": None, "events_url": None}  # not by the older API


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory) -> Path:
    """The source of the version before."""
    archive = subprocess.run(
        ["git", "archive", BEFORE, "app", "models", "workers", "training", "tests"],
        cwd=ROOT,
        capture_output=True,
    )
    if archive.returncode:
        pytest.skip(f"this checkout does not have the history back to {BEFORE}")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@contextmanager
def process(tree: Path, *arguments: str, **options) -> Iterator[subprocess.Popen]:
    environment = {**os.environ, "PYTHONPATH": str(tree), **options.pop("environment", {})}
    running = subprocess.Popen(
        [sys.executable, "-P", "-m", *arguments],
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **options,
    )
    try:
        yield running
    finally:
        running.terminate()
        running.wait(20)


@contextmanager
def old_api(tree: Path, settings) -> Iterator[httpx.Client]:
    environment = {
        "REDIS_URL": settings.redis_url,
        "SMALTI_WEIGHTS_DIR": str(settings.weights_dir),
        "SMALTI_DATA_DIR": str(settings.data_dir),
    }
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        fd = listener.fileno()
        command = ("app.cli.main", "serve", f"--fd={fd}")
        with (
            process(tree, *command, environment=environment, pass_fds=(fd,)),
            httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client,
        ):
            assert client.get("/health/live").status_code == 200
            yield client


@pytest.mark.ci
def test_workers_are_upgraded_first_and_then_the_front_end(old_tree, redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    picture = encode_image(pixels_of(9), "png")
    body = {"seed": 4, "return_codes": True}
    engine = FakeEngine()
    jobs = []

    def ask(client: httpx.Client) -> None:
        """Get right answers to every kind of request."""
        made = job_of(client.post("/generate", json=body, headers=WAIT))
        assert (made.status, made.result.codes.codes) == ("succeeded", [codes_of(4)])
        image = client.get(made.result.outputs[0].url).content  # versions compress it in their own ways
        with (
            Image.open(io.BytesIO(image)) as shown,
            Image.open(io.BytesIO(encode_image(pixels_of(4), "png"))) as wanted,
        ):
            assert shown.tobytes() == wanted.tobytes()
        encoded = job_of(client.post("/encode", files={"source": picture}, headers=WAIT))
        assert encoded.result.codes.codes == [codes_of(9)]
        with client.stream("GET", f"/jobs/{encoded.id}/events") as events:
            assert "succeeded" in "".join(events.iter_text())
        jobs.extend([made, encoded])

    with old_api(old_tree, settings) as client:
        toy = ("tests.workers.toy_worker", redis_url, str(settings.data_dir), "1", "0.3", "20", "3")
        with process(old_tree, *toy) as old_worker:
            ask(client)
            running = job_of(client.post("/generate", json={"seed": 5, "num_steps": 5}))
            wait_until(lambda: client.get(f"/jobs/{running.id}").json()["status"] == "running")
            with working(settings, engine):  # the new worker comes, the old one ends what it has
                old_worker.terminate()
                ask(client)
                old_worker.wait(20)
                ask(client)
                waited = client.get(f"/jobs/{running.id}", headers=WAIT).json()
                assert (waited["status"], waited["num_tries"]) == ("succeeded", 1)

                with serving(create_app(settings)) as new_client:  # now the new front end
                    ask(new_client)
                    for job in jobs:
                        seen = job_of(new_client.get(f"/jobs/{job.id}"))
                        assert seen.expires_at is not None
                        assert seen.model_copy(update=TOLD_LATER) == job.model_copy(update=TOLD_LATER)
                    by_old, by_new = (new_client.get(f"/jobs/{job.id}").json() for job in (jobs[0], jobs[4]))
                    assert by_old["metrics"] is None
                    assert by_new["metrics"]["num_steps"] > 0
