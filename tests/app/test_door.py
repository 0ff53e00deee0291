"""What comes in is bounded: bodies, heads and connections, in size, number and time."""

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from app.main import create_app
from app.processes.server import Server
from tests.app.conftest import Service, problem_of, serving, settings_for
from tests.app.test_metrics import samples_of
from tests.waiting import wait_until

KIB = 2**10
BODY_OF_A_MIB = b'{"source": "' + b"A" * (2**20 - 14) + b'"}'


@contextlib.contextmanager
def connected(client, *parts: bytes) -> Iterator[socket.socket]:
    address = client.base_url.host, client.base_url.port
    with socket.create_connection(address, timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
        yield connection


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    first = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def read_answer(connection: socket.socket) -> bytes:
    """Return one whole answer, of a connection that stays open."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    headers, _, body = answer.partition(b"\r\n\r\n")
    (length,) = re.findall(rb"content-length: (\d+)", headers.lower())
    while len(body) < int(length):
        body += connection.recv(65536)
    return headers


def answer_of(connection: socket.socket) -> tuple[int, dict]:
    """Return the status and the problem of an answer after which the connection is closed."""
    first, _, rest = read_all(connection).partition(b"\r\n")
    headers, _, body = rest.partition(b"\r\n\r\n")
    assert b"application/problem+json" in headers, first
    return int(first.split()[1]), json.loads(body)


# --- bytes -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_door(redis_url, tmp_path):
    """An API that holds 2 MiB of bodies at a time."""
    settings = settings_for(tmp_path, redis_url, max_in_flight_bytes=2 * 2**20, body_timeout_s=0.4)
    app = create_app(settings)
    with serving(app) as client:
        yield Service(client, None, app)


def test_uploads_left_open_hold_no_more_than_the_bound_and_end_by_themselves(small_door):
    client = small_door.client
    begun = [head("/encode", "Content-Length: 1048576"), BODY_OF_A_MIB[: 900 * KIB]]
    with contextlib.ExitStack() as stack:
        uploads = [stack.enter_context(connected(client, *begun)) for _ in range(2)]
        wait_until(lambda: samples_of(client)["smalti_http_body_bytes",] == 2 * 900 * KIB)

        response = client.post("/encode", json={"source": "A" * 2**20})
        assert "try again soon" in problem_of(response, 503, "too_busy").detail
        assert int(response.headers["retry-after"]) >= 1

        for upload in uploads:
            status, problem = answer_of(upload)
            assert (status, problem["code"]) == (408, "request_timeout")
            assert "the body came too slowly" in problem["detail"]
    samples = samples_of(client)
    assert samples["smalti_http_body_bytes",] == 0
    assert samples["smalti_http_turned_away_total", "too_busy"] == 1
    assert samples["smalti_http_turned_away_total", "request_timeout"] == 2
    problem_of(client.post("/encode", json={"source": "A" * 2**20}), 422, "invalid_image")


def test_bytes_of_untold_length_count_as_they_arrive(small_door):
    client = small_door.client
    begun = [head("/encode", "Content-Length: 2000000"), b" " * 1_900_000]
    with connected(client, *begun):
        wait_until(lambda: samples_of(client)["smalti_http_body_bytes",] == 1_900_000)
        chunks = (b" " * 100_000 for _ in range(3))
        response = client.post("/encode", content=chunks, headers={"content-type": "application/json"})
        problem_of(response, 503, "too_busy")


def test_a_body_that_could_never_be_held_is_too_large(small_door):
    response = small_door.client.post("/encode", content=b" " * (2**21 + 1))
    assert f"at most {2**21} bytes" in problem_of(response, 413, "body_too_large").detail


def test_a_request_that_waits_counts_until_its_answer(small_door):
    client = small_door.client
    sent = threading.Thread(
        target=lambda: client.post("/generate", json={"class_label": 0}, headers={"Prefer": "wait=1"})
    )
    sent.start()
    wait_until(lambda: samples_of(client)["smalti_http_body_bytes",] > 0)
    sent.join()
    assert samples_of(client)["smalti_http_body_bytes",] == 0


def test_a_slow_body_that_keeps_its_rate_is_taken(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url, body_timeout_s=0.3, min_body_bytes_per_s=200)
    with serving(create_app(settings)) as client:
        body = b'{"class_label": 0}' + b" " * 300
        lines = f"Content-Length: {len(body)}", "Connection: close"
        with connected(client, head("/generate", *lines)) as connection:
            for start in range(0, len(body), 50):
                connection.sendall(body[start : start + 50])
                time.sleep(0.1)  # 500 bytes a second, for twice as long as may pass without enough of them
            assert read_all(connection).startswith(b"HTTP/1.1 202")
        with connected(client, head("/generate", *lines)) as connection:
            connection.sendall(body[:1])
            time.sleep(0.1)
            connection.sendall(body[1:2])
            assert answer_of(connection)[0] == 408


def test_a_body_left_open_at_an_address_that_takes_none_ends_too(small_door):
    for path, method in (("/health/live", "GET"), ("/nothing", "PUT"), ("/jobs/x/events", "GET")):
        with connected(small_door.client, head(path, "Content-Length: 10", method=method)) as connection:
            assert answer_of(connection)[0] == 408


# --- aborted uploads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data; boundary=x"])
def test_an_aborted_upload_is_499_without_a_word_in_the_log(service, media_type, caplog):
    def aborted() -> float:
        return samples_of(service.client).get(("smalti_http_requests_total", "any", "none", "499"), 0)

    before = aborted()
    begun = f"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nContent-Length: 99\r\n\r\n"
    form = b'--x\r\nContent-Disposition: form-data; name="source"; filename="a"\r\n\r\nabc'
    for _ in range(5):
        with connected(service.client, begun.encode(), form) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
    wait_until(lambda: aborted() == before + 5)

    assert not caplog.records
    samples = samples_of(service.client)
    assert not [
        key for key in samples if key[0] == "smalti_http_requests_total" and key[-1] in ("400", "500")
    ]
    assert samples["smalti_http_body_bytes",] == 0


# --- heads and connections -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict_door(tmp_path_factory):
    from workers.queue import embedded_server

    folder = tmp_path_factory.mktemp("strict")
    server = embedded_server.start(folder / "redis")
    settings = settings_for(
        folder,
        server.url,
        header_timeout_s=0.3,
        keep_alive_s=1,
        max_connections=4,
        max_connections_per_client=3,
    )
    try:
        app = create_app(settings)
        with serving(app) as client:
            client.headers["Connection"] = "close"
            yield Service(client, None, app)
    finally:
        server.stop()


def test_a_connection_that_sends_nothing_is_closed(strict_door):
    with connected(strict_door.client) as connection:
        assert read_all(connection) == b""


@pytest.mark.parametrize("num_bytes", [1, 30])
def test_a_head_that_does_not_end_is_answered_and_closed(strict_door, num_bytes):
    with connected(strict_door.client, head("/health/live", method="GET")[:num_bytes]) as connection:
        status, problem = answer_of(connection)
    assert (status, problem["code"]) == (408, "request_timeout")


def test_a_second_head_is_bounded_as_the_first(strict_door):
    request = head("/health/live", method="GET")
    with connected(strict_door.client, request) as connection:
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(request[:20])
        assert answer_of(connection)[0] == 408


def test_an_endless_head_is_refused(strict_door):
    with connected(strict_door.client, b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX: ") as connection:
        with contextlib.suppress(ConnectionError):
            for _ in range(8):
                connection.sendall(b"x" * 8192)
        assert answer_of(connection)[0] == 400


def test_what_is_not_http_is_refused_in_our_shape(strict_door):
    with connected(strict_door.client, b"\x16\x03\x01 hello\r\n\r\n") as connection:
        status, problem = answer_of(connection)
    assert (status, problem["code"]) == (400, "bad_request")


def test_connections_are_bounded_for_each_client_and_come_free(strict_door):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(strict_door.client)) for _ in range(3)]
        time.sleep(0.05)
        with connected(strict_door.client, head("/health/live", method="GET")) as one_more:
            status, problem = answer_of(one_more)
        assert (status, problem["code"]) == (503, "too_busy")
        assert "3 connections of this address" in problem["detail"]
        for connection in held:
            assert read_all(connection) == b""
    wait_until(lambda: strict_door.client.get("/health/live").status_code == 200)
    assert samples_of(strict_door.client)["smalti_http_turned_away_total", "too_busy"] >= 1


def test_a_stream_and_a_wait_outlast_all_limits_of_time(strict_door):
    client = strict_door.client
    job_id = client.post("/generate", json={}).json()["id"]
    request = head(f"/jobs/{job_id}/events", method="GET")
    with connected(client, request) as stream:
        began_s = time.monotonic()
        waited = client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=1.5"})
        assert waited.json()["status"] == "queued"
        assert time.monotonic() - began_s > 1.4
        client.delete(f"/jobs/{job_id}")
        events = b""
        while b"cancelled" not in events:
            events += stream.recv(65536)


def test_an_answer_before_the_body_is_over_leaves_the_connection_usable(service):
    with connected(service.client, head("/jobs/x/retry", "Content-Length: 300000")) as connection:
        assert read_answer(connection).startswith(b"HTTP/1.1 413")
        connection.sendall(b"x" * 300_000)  # more than a head may have
        connection.sendall(head("/health/live", "Connection: close", method="GET"))
        assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_idle_connections_are_kept_for_longer_than_the_pools_of_clients_keep_them(service):
    """Httpx closes after 5 s, nginx and most load balancers after 60."""
    assert Server(service.app, host="127.0.0.1", port=0).config.timeout_keep_alive == 75


@pytest.mark.ci
def test_an_idle_connection_outlives_the_pool_of_httpx(service):
    with connected(service.client, head("/health/live", method="GET")) as connection:
        read_answer(connection)
        connection.settimeout(5.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)  # uvicorn's own default would have closed it
        connection.sendall(head("/health/live", method="GET"))
        assert read_answer(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.ci
def test_a_client_that_does_not_read_its_answer_is_left(strict_door):
    results = strict_door.app.state.services.results
    job_id = "a" * 32
    results.put(job_id, 0, bytes(64 * 2**20), "png")
    request = head(f"/jobs/{job_id}/outputs/0", method="GET")
    with connected(strict_door.client, request) as connection:
        wait_until(lambda: len(connection.recv(1)) == 1)
        time.sleep(2.5)  # two looks, a second apart
        connection.settimeout(5)
        assert len(read_all(connection)) < 64 * 2**20
