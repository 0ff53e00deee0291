import hashlib
import os

import numpy as np
import pytest

from models.media.image import encode_image
from workers.errors import JobNotFound
from workers.results import ResultStore

JOB = "0123456789abcdef" * 2
IMAGE = encode_image(np.zeros((8, 6, 1), np.uint8), "png")
OTHER_IMAGE = encode_image(np.ones((8, 6, 1), np.uint8), "png")


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "results")


def test_what_is_put_is_read(store):
    put = store.put(JOB, 0, IMAGE, "png")

    assert (put.data, put.media_type) == (IMAGE, "image/png")
    assert put.sha256 == hashlib.sha256(IMAGE).hexdigest()
    assert store.read(JOB, 0) == put


def test_codes_are_kept_beside_the_outputs(store, tmp_path):
    codes = [[[1, 2], [3, 4]], None]
    store.put_codes(JOB, codes)
    store.put_codes(JOB, [None])

    assert store.read_codes(JOB) == codes, "the first stay"
    assert (tmp_path / "results" / JOB[:2] / JOB / "codes.json").exists()
    with pytest.raises(JobNotFound, match="has no codes"):
        store.read_codes("f" * 32)


def test_the_first_output_stays(store):
    first = store.put(JOB, 0, IMAGE, "png")

    assert store.put(JOB, 0, OTHER_IMAGE, "png") == first
    assert store.read(JOB, 0).data == IMAGE


def test_nothing_but_the_outputs_is_left(store, tmp_path):
    store.put(JOB, 0, IMAGE, "png")
    store.put(JOB, 0, OTHER_IMAGE, "png")
    store.put(JOB, 1, encode_image(np.zeros((4, 4, 3), np.uint8), "webp"), "webp")

    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["0.png", "1.webp"]


@pytest.mark.parametrize(
    "job_id", ["", "../../etc/passwd", "0" * 31, "0" * 33, "A" * 32, "0" * 32 + "\n", f"{'0' * 30}/."]
)
def test_only_32_hexadecimal_digits_are_a_job_id(store, job_id):
    with pytest.raises(JobNotFound):
        store.read(job_id, 0)
    with pytest.raises(JobNotFound):
        store.put(job_id, 0, IMAGE, "png")
    with pytest.raises(JobNotFound):
        store.remove(job_id)


def test_a_missing_output_is_told_by_job_and_index(store):
    store.put(JOB, 0, IMAGE, "png")
    with pytest.raises(JobNotFound, match=f"job {JOB} has no output 1"):
        store.read(JOB, 1)


def test_sweep_removes_old_jobs_only(store, tmp_path):
    young = "f" * 32
    store.put(JOB, 0, IMAGE, "png")
    store.put(young, 0, IMAGE, "png")
    os.utime(tmp_path / "results" / JOB[:2] / JOB, (1, 1))

    assert store.sweep(older_than_s=3600) == 1
    with pytest.raises(JobNotFound):
        store.read(JOB, 0)
    assert store.read(young, 0).data == IMAGE


def test_sweep_and_remove_need_nothing_to_be_there(store):
    assert store.sweep(older_than_s=0) == 0
    store.remove(JOB)
