"""The queue server's address: refused in words that hold no password, and asked before anything starts."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from workers.errors import QueueUnavailable
from workers.queue.probe import QueueRefused, require_queue
from workers.redis_url import require_address, shown

SECRET = "geheim"


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://:geheim@host:6379/0",
        "rediss://user:geheim@[::1]:6379/2?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=1",
        "redis://:ge%2Fheim@host",
    ],
)
def test_addresses_of_every_form_are_taken(url):
    require_address(url)
    assert SECRET not in shown(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("host:6379", "must begin with redis://, as in redis://host:6379"),
        ("user:geheim@host:6379", "must begin with redis://, as in redis://host:6379"),
        ("http://user:geheim@host:6379", "got http://host:6379"),
        ("redis://:geheim@host:port", "its port is not a number"),
        ("redis://:geheim@host:99999", "its port is not a number"),
        ("redis://:geheim/s@host:6379", "/ in its password not %2F"),
        ("redis://:geheim@host/name", "must end in the number of a database"),
        ("redis://:geheim@[::1", "must be redis://"),
        ("", "must begin with redis://"),
    ],
)
def test_what_can_be_no_address_is_refused_without_its_password(url, said):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        require_address(url)
    assert said in str(refused.value)
    assert SECRET not in str(refused.value)


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A server of another kind: it gives this answer, and closes; its port."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("scheme", "answer", "said"),
    [
        ("redis", b"HTTP/1.1 400 Bad Request\r\n\r\n", "is not a queue server that can be used"),
        ("redis", b"", "with TLS it is rediss://"),
        ("rediss", b"-ERR unknown command\r\n", "Without TLS it is redis://"),
    ],
)
def test_what_is_no_queue_server_is_refused(scheme, answer, said):
    with answering(answer) as port, pytest.raises(QueueRefused) as refused:
        require_queue(f"{scheme}://:geheim@127.0.0.1:{port}/0")
    assert said in str(refused.value)
    assert f"127.0.0.1:{port}" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_where_nothing_listens_the_place_is_named(tmp_path):
    with pytest.raises(QueueUnavailable, match=r"none.sock \(REDIS_URL\)") as refused:
        require_queue(f"unix://{tmp_path}/none.sock?password=geheim")
    assert not isinstance(refused.value, QueueRefused), "waiting may help"
    assert SECRET not in str(refused.value)


def test_a_wrong_password_and_a_database_that_is_not_there_are_refused(own_redis):
    require_queue(own_redis.url)
    with pytest.raises(QueueRefused, match=r"an option after \? that can't be used"):
        require_queue(f"{own_redis.url}?colour=red")
    with pytest.raises(QueueRefused, match="DB index is out of range"):
        require_queue(f"{own_redis.url}?db=99")
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("requirepass", "another")
        for url in (own_redis.url, f"{own_redis.url}?password={SECRET}"):
            with pytest.raises(QueueRefused, match="refuses user or password") as refused:
                require_queue(url)
            assert SECRET not in str(refused.value)
        client.config_set("requirepass", "")
