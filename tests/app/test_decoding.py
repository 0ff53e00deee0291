"""Uploads are decoded within bounds, outside of the API's process."""

import contextlib
import io
import socket
import time
from pathlib import Path

import pytest
from PIL import Image

from app import decoding
from app.main import create_app
from models.media.image import encode_image
from models.media.isolated import Limits
from tests.app.conftest import WAIT, job_of, problem_of, serving, settings_for, working
from tests.fake_engine import SIDE_PX, FakeEngine, codes_of, pixels_of
from tests.harmful_decoders import jpeg_of_scans
from tests.waiting import wait_until

PICTURE = encode_image(pixels_of(9), "png")


@pytest.fixture(scope="module")
def slow_picture() -> bytes:
    """Many seconds of work in 30 KB."""
    return jpeg_of_scans(5792, 400)


def decoding_children(app) -> list[int]:
    """Return the process ids of what decodes now."""
    processes = app.state.services.decoders._processes
    return [each._child.pid for each in processes if each._child and each._child.poll() is None]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_a_picture_that_takes_too_long_is_refused(redis_url, tmp_path, slow_picture, monkeypatch):
    monkeypatch.setattr(decoding, "_LIMITS", Limits(cpu_s=0.5))
    settings = settings_for(tmp_path, redis_url)
    with serving(create_app(settings)) as client, working(settings, FakeEngine()):
        refused = client.post("/encode", files={"source": slow_picture})
        told = problem_of(refused, 422, "invalid_image").detail
        assert told == "source: takes longer than 0.5 s to decode"
        assert job_of(client.post("/encode", files={"source": PICTURE}, headers=WAIT)).status == "succeeded"


def test_slow_pictures_hold_no_others_up_and_end_with_their_clients(redis_url, tmp_path, slow_picture):
    settings = settings_for(tmp_path, redis_url)
    app = create_app(settings)
    with serving(app) as client, working(settings, FakeEngine()):
        job_of(client.post("/encode", files={"source": PICTURE}, headers=WAIT))
        address = (client.base_url.host, client.base_url.port)
        with contextlib.ExitStack() as hanging:
            for _ in range(3):
                hanging.enter_context(post_and_leave_open(address, slow_picture))
            wait_until(lambda: any(cpu_s(pid) > 1 for pid in decoding_children(app)), 20)
            [busy] = [pid for pid in decoding_children(app) if cpu_s(pid) > 1]
            for _ in range(3):
                start = time.monotonic()
                job = job_of(client.post("/encode", files={"source": PICTURE}, headers=WAIT))
                assert job.result.codes.codes == [codes_of(9)]
                assert time.monotonic() - start < 2
        wait_until(lambda: busy not in decoding_children(app), 5)
        wait_until(lambda: app.state.services.decoders._announced_bytes == 0)


def post_and_leave_open(address: tuple[str, int], picture: bytes) -> socket.socket:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="source"; filename="a"\r\n\r\n'
        + picture
        + b"\r\n--x--\r\n"
    )
    head = (
        f"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    connection = socket.create_connection(address)
    connection.sendall(head.encode() + body)
    return connection


def test_more_than_is_admitted_is_turned_away(redis_url, tmp_path, slow_picture, monkeypatch):
    monkeypatch.setattr(decoding, "_MAX_ANNOUNCED_BYTES", 2**20)
    settings = settings_for(tmp_path, redis_url)
    app = create_app(settings)
    with serving(app) as client, working(settings, FakeEngine()):
        address = (client.base_url.host, client.base_url.port)
        with post_and_leave_open(address, slow_picture):
            wait_until(lambda: app.state.services.decoders._announced_bytes > 0)
            refused = client.post("/encode", files={"source": PICTURE})
            problem_of(refused, 503, "too_busy")
            assert int(refused.headers["retry-after"]) >= 1
        wait_until(lambda: app.state.services.decoders._announced_bytes == 0)
        job_of(client.post("/encode", files={"source": PICTURE}, headers=WAIT))


def test_what_is_queued_is_what_was_checked_and_fitted(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    buffer = io.BytesIO()
    Image.new("P", (4000, 3000)).save(buffer, "PNG")  # shorter than many a fitted one
    with serving(create_app(settings)) as client:
        job_of(client.post("/encode", files={"source": buffer.getvalue()}))
    [blob] = [path for path in settings.blobs_dir.glob("??/*") if len(path.name) == 64]
    with Image.open(blob) as queued:
        assert (queued.format, queued.size) == ("PNG", (SIDE_PX, SIDE_PX))


def test_a_process_without_work_ends(redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_IDLE_S", {"small": 0.1, "large": 0.1})
    app = create_app(settings_for(tmp_path, redis_url))
    with serving(app) as client:
        for _ in range(2):
            job_of(client.post("/encode", files={"source": PICTURE}))
            wait_until(lambda: not decoding_children(app))


def test_the_processes_end_with_the_service(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url)
    app = create_app(settings)
    with serving(app) as client:
        job_of(client.post("/encode", files={"source": PICTURE}))
        [pid] = decoding_children(app)
    assert not Path(f"/proc/{pid}").exists()
