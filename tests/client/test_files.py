"""The client's uploads, lists, retries, and lists of pictures longer than a request."""

import asyncio

import numpy as np
import pytest

from smalti import (
    AsyncClient,
    File,
    InvalidRequest,
    JobFailed,
    NotFound,
    RequestFailed,
    UnusableSource,
)
from smalti.sources import MAX_BYTES, parts_of
from tests.client.test_client import png
from tests.fake_engine import FAILS_SAMPLES, pixels_of


def test_an_upload_is_a_source_alone_and_among_others(client, tmp_path):
    (tmp_path / "nine.png").write_bytes(png(9))
    file = client.upload(tmp_path / "nine.png")
    assert (file.name, file.media_type, file.num_bytes) == ("nine.png", "image/png", len(png(9)))
    assert client.encode(file, effort=1).codes.codes == [[[9, 9], [9, 9]]]
    mixed = client.encode([pixels_of(3), file, png(200)])
    assert [codes[0][0] for codes in mixed.codes.codes] == [3, 9, 200]


def test_files_are_looked_up_listed_and_deleted(client):
    file = client.upload(pixels_of(7), name="seven.png")
    assert client.file(file.id) == file
    assert next(client.files()) == file
    client.delete(file)
    with pytest.raises(NotFound):
        client.file(file.id)
    with pytest.raises(InvalidRequest, match="there is no file"):
        client.encode(file)
    with pytest.raises(UnusableSource, match="on the service already"):
        client.upload(file)


def test_jobs_are_listed_by_status_over_all_pages(client):
    made = [client.submit("generate", seed=i).id for i in range(3)]
    for job_id in made:
        client.job(job_id).wait()
    listed = [job.id for job in client.jobs(status="succeeded", operation="generate")]
    assert listed[:3] == made[::-1]
    assert len(set(listed)) == len(listed)
    assert not list(client.jobs(status="running"))


def test_a_list_is_read_page_after_page(client, monkeypatch):
    monkeypatch.setattr("smalti.pages._PAGE_LENGTH", 2)
    made = [client.upload(bytes([number])).id for number in range(5)]
    listed = [file.id for file in client.files()]
    assert sorted(listed[:5]) == sorted(made)
    assert len(set(listed)) == len(listed)


def test_a_failed_job_is_retried_as_a_new_one(client, service):
    job = client.submit("generate", seed=FAILS_SAMPLES)
    with pytest.raises(JobFailed):
        job.wait()
    for again in (job.retry(), client.retry(job), client.retry(job.id)):
        assert again.id != job.id
        with pytest.raises(JobFailed):
            again.wait()
    done = client.submit("generate", seed=1)
    done.wait()
    with pytest.raises(RequestFailed, match="only a job that has failed"):
        done.retry()


def test_more_pictures_than_a_job_takes_become_one_array_in_their_order(client, service):
    greys = [number % 251 for number in range(150)]
    before = len(list(client.jobs()))
    result = client.encode([png(grey) for grey in greys])
    codes = result.codes.numpy()
    assert codes.dtype == np.uint16
    assert codes[:, 0, 0].tolist() == greys
    assert [output.sample for output in result.outputs] == list(range(150))
    assert len(list(client.jobs())) - before == 3
    assert len(client.decode(codes[:64], tokenizer=result.codes.tokenizer).outputs) == 64


def test_a_key_of_many_pictures_makes_their_jobs_once(client):
    pictures = [png(number) for number in range(65)]
    before = len(list(client.jobs()))
    for _ in range(2):
        client.encode(pictures, idempotency_key="many-pictures")
    assert len(list(client.jobs())) - before == 2


def test_a_bad_picture_among_many_is_an_error(client):
    with pytest.raises(InvalidRequest, match=r"source\[6\]") as failed:
        client.encode([*(png(1) for _ in range(70)), b"text"])
    assert failed.value.__notes__ == ["source[0] of this job is number 64 of the list"]


def test_parts_are_bounded_in_number_and_bytes_and_lose_nothing():
    files = [File(id=str(number), num_bytes=MAX_BYTES // 3) for number in range(7)]
    parts = list(parts_of(files))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert [file for part in parts for file in part] == files
    assert [len(part) for part in parts_of([b"x"] * 129)] == [64, 64, 1]


async def _use(url: str) -> list[object]:
    async with AsyncClient(url, timeout_s=20, retry_s=5) as client:
        file = await client.upload(png(9), name="nine.png")
        many = await client.encode([file] * 65)
        listed = [each.id async for each in client.files()]
        jobs = [job.id async for job in client.jobs(operation="encode")]
        failed = await client.submit("generate", seed=FAILS_SAMPLES)
        with pytest.raises(JobFailed):
            await failed.wait()
        with pytest.raises(JobFailed):
            await (await client.retry(failed)).wait()
        with pytest.raises(JobFailed):
            await (await failed.retry()).wait()
        await client.delete(file)
        with pytest.raises(NotFound):
            await client.file(file.id)
        return [many.codes.numpy()[:, 0, 0].tolist() == [9] * 65, file.id in listed, len(jobs) >= 2]


def test_the_async_client_does_the_same(service):

    assert asyncio.run(_use(service.url)) == [True, True, True]
