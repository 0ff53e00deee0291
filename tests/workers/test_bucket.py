"""Results in a bucket: the promises of the folder, against a server that speaks S3."""

import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest

from workers.bucket import BucketResults
from workers.errors import JobNotFound, StorageUnavailable

JOB, OTHER = "0123456789abcdef" * 2, "f" * 32
BUCKET = "results"


def everything(store_client) -> list[str]:
    found = store_client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return sorted(each["Key"] for each in found)


@pytest.fixture
def client(s3_server):
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    client.close()


@pytest.fixture
def store(client):
    return BucketResults(f"s3://{BUCKET}/some/prefix/")


def test_what_is_put_is_read_and_the_first_stays(store, client):
    first = store.put(JOB, 0, b"one", "png")
    assert store.put(JOB, 0, b"another", "png") == first
    assert store.read(JOB, 0) == first
    assert (first.data, first.media_type) == (b"one", "image/png")
    store.put_codes(JOB, [[[1, 2]], None])
    store.put_codes(JOB, [None])
    assert store.read_codes(JOB) == [[[1, 2]], None]
    folder = f"some/prefix/{JOB[:2]}/{JOB}"
    assert everything(client) == [f"{folder}/0.png", f"{folder}/codes.json"]


def test_what_is_not_there_is_told_as_in_a_folder(store):
    for missing in (lambda: store.read(JOB, 0), lambda: store.read_codes(JOB)):
        with pytest.raises(JobNotFound, match=f"job {JOB} has no"):
            missing()
    store.put(JOB, 10, b"ten", "png")
    with pytest.raises(JobNotFound):
        store.read(JOB, 1)
    with pytest.raises(JobNotFound, match="32 hexadecimal digits"):
        store.put("../../etc", 0, b"", "png")


def test_of_workers_that_store_the_same_output_at_once_one_is_believed_by_all(store):
    stores = [store, BucketResults(f"s3://{BUCKET}/some/prefix")]
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda n: stores[n % 2].put(JOB, 0, b"%d" % n, "png").data, range(16)))
    assert set(kept) == {store.read(JOB, 0).data}


def test_sweep_removes_old_jobs_that_are_not_kept(store, client):
    for job_id in (JOB, OTHER, "e" * 32):
        store.put(job_id, 0, b"x", "png")
        store.put_codes(job_id, [])
    client.put_object(Bucket=BUCKET, Key="some/prefix/a-file-of-someone-else", Body=b"")
    assert store.sweep(3600) == 0
    assert store.sweep(-2) == 0, "it has been looked at a moment ago"

    fresh = BucketResults(f"s3://{BUCKET}/some/prefix")
    in_two_seconds = -2  # as an object's time is in whole seconds
    assert fresh.sweep(in_two_seconds, lambda job_id: job_id == OTHER) == 2
    assert store.read(OTHER, 0).data == b"x"
    assert "some/prefix/a-file-of-someone-else" in everything(client)
    assert len(everything(client)) == 3

    store.remove(OTHER)
    store.remove(OTHER)
    assert len(everything(client)) == 1


def test_an_empty_bucket_is_swept_and_a_check_leaves_nothing(store, client):
    assert store.sweep(0) == 0
    store.check()
    assert everything(client) == []


def test_a_check_that_went_well_holds_until_something_fails(store, client):
    store.check()
    client.delete_bucket(Bucket=BUCKET)
    store.check()  # asks nobody
    with pytest.raises(StorageUnavailable):
        store.put(JOB, 0, b"x", "png")
    for _ in range(2):  # what went wrong is not remembered
        with pytest.raises(StorageUnavailable):
            store.check()
    client.create_bucket(Bucket=BUCKET)
    store.check()


def test_a_bucket_that_is_not_there_is_said(client):
    store = BucketResults("s3://no-such-bucket/prefix")
    for use in (store.check, lambda: store.put(JOB, 0, b"", "png"), lambda: store.sweep(0)):
        with pytest.raises(StorageUnavailable, match=r"\(SMALTI_RESULT_STORE\): there is no such bucket"):
            use()


def test_a_store_that_does_not_answer_is_said_at_once(monkeypatch, s3_server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        store = BucketResults(f"s3://{BUCKET}")
        began_s = time.monotonic()
        for use in (store.check, lambda: store.put(JOB, 0, b"", "png"), lambda: store.read(JOB, 0)):
            with pytest.raises(StorageUnavailable, match="does not answer"):
                use()
    assert time.monotonic() - began_s < 10


def test_no_credential_is_logged(client, monkeypatch, caplog):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token")
    for logger in ("botocore", "aiobotocore", "s3fs"):
        monkeypatch.setattr(logging.getLogger(logger), "level", logging.NOTSET)
    caplog.set_level(logging.DEBUG)
    store = BucketResults(f"s3://{BUCKET}")
    store.check()
    store.put(JOB, 0, b"x", "png")
    with pytest.raises(StorageUnavailable):
        BucketResults("s3://no-such-bucket").check()
    assert "no-such-bucket" in caplog.text
    assert not [secret for secret in ("a-secret", "a-token", "a-name") if secret in caplog.text]


def test_missing_credentials_are_said(monkeypatch, s3_server):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageUnavailable, match="no credentials were found"):
        BucketResults(f"s3://{BUCKET}").check()


class Careless(BaseHTTPRequestHandler):
    """A store that overwrites, whatever the condition."""

    protocol_version = "HTTP/1.1"

    def handle_one_request(self):
        super().handle_one_request()
        self.close_connection = True

    def do_PUT(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_DELETE(self):
        self.do_PUT()

    def log_message(self, *args):
        pass


def test_a_store_that_overwrites_is_refused(monkeypatch, s3_server):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Careless)
    threading.Thread(target=server.serve_forever).start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StorageUnavailable, match="ignores `If-None-Match"):
            BucketResults(f"s3://{BUCKET}").check()
    finally:
        server.shutdown()
        server.server_close()
