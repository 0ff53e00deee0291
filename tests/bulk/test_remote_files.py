"""Sources elsewhere, by fsspec: a store in memory, and an HTTP server on loopback."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from bulk.errors import BulkError
from bulk.sources import Sources
from tests.bulk.pictures import OPTIONS, picture, write_pictures, write_tar
from tests.bulk.test_sources import read_all, write_parquet


@pytest.fixture
def memory(tmp_path) -> str:
    """An address of a store that holds a folder of pictures, a tar, a parquet and other files."""
    write_pictures(tmp_path / "data" / "sub", 2)
    write_tar(tmp_path / "data" / "a.tar", ["0.png", "1.png"])
    write_parquet(tmp_path / "data" / "b.parquet", [picture(0), picture(1)])
    (tmp_path / "data" / "notes.txt").write_text("x")
    (tmp_path / "data" / ".hidden.png").write_bytes(b"x")
    store = fsspec.filesystem("memory")
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            store.pipe_file(f"/data/{path.relative_to(tmp_path / 'data')}", path.read_bytes())
    yield "memory://data"
    store.rm("/data", recursive=True)


class _Files(http.server.SimpleHTTPRequestHandler):
    """Files of a folder. num_failures: so many requests are answered with 503 first."""

    num_failures = 0
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if type(self).num_failures > 0:
            type(self).num_failures -= 1
            self.send_error(503)
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path) -> Iterator[tuple[str, type[_Files]]]:
    handler = type("Files", (_Files,), {"asked": []})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def test_a_store_holds_the_items_that_its_folder_does(tmp_path, memory):
    assert read_all(memory) == read_all(tmp_path / "data")
    assert list(read_all(memory)) == [
        "a.tar!0.png", "a.tar!1.png", "b.parquet#0", "b.parquet#1", "sub/0000.png", "sub/0001.png",
    ]  # fmt: skip
    remote, local = (Sources([str(given)]).list() for given in (memory, tmp_path / "data"))
    assert remote == local
    assert list(read_all(f"{memory}/sub/*1.png")) == ["0001.png"]
    assert list(read_all(f"{memory}/sub", f"{memory}/a.tar"))[::3] == ["a.tar!0.png", "sub/0001.png"]
    assert read_all(f"file://{tmp_path}/data") == read_all(tmp_path / "data")


def test_what_is_not_there_or_not_together_is_told(tmp_path, memory):
    for given, said in (
        (["memory://none"], "memory://none: is not there"),
        (["memory://data/*.gif"], "nothing that it fits"),
        ([memory, str(tmp_path)], "some sources are here and some elsewhere"),
        ([memory, "http://127.0.0.1:1/a.tar"], "several stores"),
        (["nope://x"], "nope://x: Protocol not known"),
    ):
        with pytest.raises(BulkError, match=said):
            Sources(given)


def test_tars_and_parquets_of_the_web_are_read_as_those_of_a_folder(tmp_path, web, monkeypatch):
    monkeypatch.setattr("bulk.remote_files._PAUSES_S", (0.01, 0.01))
    address, handler = web
    write_tar(tmp_path / "a.tar", ["0.png", "1.png"])
    handler.num_failures = 1
    assert read_all(f"{address}/a.tar?key=secret") == {"a.tar!0.png": picture(0), "a.tar!1.png": picture(1)}
    assert handler.asked[-1] == "/a.tar?key=secret"
    (tmp_path / "0.png").write_bytes(picture(0))
    assert read_all(f"{address}/0.png") == {"0.png": picture(0)}


def test_a_network_that_fails_is_no_error_of_a_picture(tmp_path, web, monkeypatch):
    monkeypatch.setattr("bulk.remote_files._PAUSES_S", (0.01, 0.01))
    address, handler = web
    (tmp_path / "0.png").write_bytes(picture(0))
    (item,) = Sources([f"{address}/0.png?key=secret"]).walk()
    handler.num_failures = 9
    with pytest.raises(BulkError, match=r"0\.png can't be read now: .*Start again later, to go on") as told:
        item.read()
    assert f"{address}/0.png can't" in str(told.value)


@pytest.mark.ci
def test_codes_of_a_store_are_those_of_the_same_folder(smalti, memory, tmp_path):
    smalti("encode", memory, "--out", "remote", *OPTIONS)
    smalti("encode", "data", "--out", "local", *OPTIONS)
    remote, local = (
        {path.name: path.read_bytes() for path in Path(name).iterdir()} for name in ("remote", "local")
    )
    given = [json.loads(each.pop("manifest.json"))["sources"].pop("given") for each in (remote, local)]
    assert given == [["memory://data"], ["data"]]
    assert remote == local
    assert "all as they should be" in smalti("verify", "remote")[0]


def test_an_address_with_a_key_in_it_is_not_written_down(smalti, web, tmp_path):
    write_tar(tmp_path / "a.tar", ["0.png"])
    address = f"{web[0]}/a.tar?key=secret"
    told = "".join(smalti("encode", address, "--out", "codes", *OPTIONS))
    kept = b"".join(path.read_bytes() for path in (tmp_path / "codes").iterdir())
    assert b"secret" not in kept
    assert "secret" not in told
    assert "doesn't say where its sources were" in smalti("verify", "codes", status=1)[1]
    assert "all as they should be" in smalti("verify", "codes", address)[0]
