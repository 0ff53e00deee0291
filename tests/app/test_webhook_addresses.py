"""Webhooks go to no address inside the operator's network, whatever a name resolves to."""

import asyncio
import socket
import ssl
import subprocess
import threading

import httpcore
import pytest

from app.webhooks.addresses import check_url, is_public, resolve
from app.webhooks.sender import Attempt, Sender
from tests.app.webhook_receiver import SECRET, receiving
from workers.errors import InvalidRequest


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::",
    ],
)  # fmt: skip
def test_addresses_of_other_networks_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


def test_the_operator_can_allow_a_host_or_a_port_of_it():
    for url, allowed in (
        ("http://hooks.internal/x", "hooks.internal"),
        ("http://hooks.internal:81/x", "hooks.internal:81"),
        ("https://10.0.0.1", "10.0.0.1:443"),
        ("http://[::1]:8000/", "[::1]:8000"),
    ):
        check_url(url, [allowed])
        with pytest.raises(InvalidRequest):
            check_url(url, ["other.internal", "hooks.internal:82", "10.0.0.1:80", "[::1]:80"])
    check_url("https://example.com/hook?of=mine", [])


def send(url: str, *allowed: str, **options) -> list[Attempt]:
    async def use() -> list[Attempt]:
        sender = Sender(SECRET, allowed, **options)
        try:
            return [await sender.send(url, "m1", "{}") for _ in range(2)]
        finally:
            await sender.close()

    return asyncio.run(use())


class Connections(httpcore.AsyncNetworkBackend):
    """Reaches nothing, and remembers what was to be reached."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def connect_tcp(self, host, *_):
        self.asked.append(host)
        raise httpcore.ConnectError


def test_a_name_that_changes_its_mind_reaches_what_was_checked_or_nothing():
    answers = iter([["8.8.8.8"], ["127.0.0.1"]])

    async def resolve(host, port):
        assert (host, port) == ("rebinding.example", 443)
        return next(answers)

    connections = Connections()
    first, second = send("https://rebinding.example/", resolve=resolve, inner=connections)
    assert (first.told, second.told) == ("ConnectError", "RefusedAddress")
    assert connections.asked == ["8.8.8.8"], "not the name, which would be resolved again"


def test_of_several_addresses_only_public_ones_are_tried():
    async def resolve(host, port):
        return ["10.0.0.1", "8.8.8.8", "::ffff:127.0.0.1", "2606:4700::1111"]

    connections = Connections()
    send("https://mixed.example/", resolve=resolve, inner=connections)
    assert connections.asked == ["8.8.8.8", "2606:4700::1111"] * 2


def test_ways_to_write_loopback_are_refused_by_what_they_resolve_to():
    with receiving() as receiver:
        port = receiver.address.partition(":")[2]
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
            told = {attempt.told for attempt in send(f"http://{host}:{port}/")}
            assert told <= {"RefusedAddress", "gaierror"}, host
        assert receiver.bodies == []


def test_an_endless_answer_is_not_read():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        sent = []

        def answer() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n")
                    try:
                        while sum(sent) < 2**30:
                            sent.append(connection.send(b"x" * 65536))
                    except OSError:
                        pass

        thread = threading.Thread(target=answer)
        thread.start()
        attempts = send(f"http://127.0.0.1:{listener.getsockname()[1]}/", "127.0.0.1")
        thread.join()
    assert all(attempt.is_delivered for attempt in attempts)
    assert sum(sent) < 2**27, "what the sockets hold"


def test_the_certificate_must_be_that_of_the_name(tmp_path):
    paths = [str(tmp_path / name) for name in ("key.pem", "certificate.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    about = ["-subj", "/CN=hooks.example", "-addext", "subjectAltName=DNS:hooks.example"]
    try:
        subprocess.run(
            [*command, *about, "-keyout", paths[0], "-out", paths[1]], check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(paths[1], paths[0])

    async def resolve(host, port):
        return ["127.0.0.1"]

    async def main() -> None:
        async def answer(reader, writer):
            await reader.readuntil(b"{}")
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        hosts = ["hooks.example", "other.example"]
        known = Sender(SECRET, hosts, resolve=resolve, tls=ssl.create_default_context(cafile=paths[1]))
        unknown = Sender(SECRET, hosts, resolve=resolve)
        told = [
            (await sender.send(f"https://{host}:{port}/", "m1", "{}")).told
            for sender, host in ((known, hosts[0]), (known, hosts[1]), (unknown, hosts[0]))
        ]
        assert told == ["status 204", "ConnectError", "ConnectError"]
        server.close()
        await known.close()
        await unknown.close()

    asyncio.run(main())


def test_name_servers_that_keep_silent_hold_up_no_file(monkeypatch):
    is_held = threading.Event()

    def silent(*_: object, **__: object) -> list:
        is_held.wait(20)
        return []

    async def look_up_and_read() -> None:
        monkeypatch.setattr(socket, "getaddrinfo", silent)
        asked = [asyncio.create_task(resolve(f"{number}.example", 443)) for number in range(40)]
        try:
            await asyncio.sleep(0.1)
            async with asyncio.timeout(5):
                assert await asyncio.to_thread(lambda: "read") == "read"
        finally:
            is_held.set()
        assert await asyncio.gather(*asked) == [[]] * 40

    asyncio.run(look_up_and_read())
