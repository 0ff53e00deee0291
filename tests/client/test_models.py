"""What the client reads and takes, without a service."""

import sys

import numpy as np
import pytest

from smalti import Codes, JobInfo, MissingPackage, NoBytes, Result, UnusableSource
from smalti.calls import work_call
from smalti.fields import DecodeFields, EncodeFields, GenerateFields
from smalti.sources import files_of
from workers.messages import DecodeRequest, EncodeRequest, GenerateRequest

CODES = {"codes": [[[1, 2]], None], "grid": [1, 2], "codebook_size": 2**17, "tokenizer": "0" * 16}


@pytest.mark.parametrize(
    ("typed", "request_class", "others"),
    [
        (GenerateFields, GenerateRequest, {"prompt", "num_images"}),
        (EncodeFields, EncodeRequest, {"source", "image"}),
        (DecodeFields, DecodeRequest, {"codes", "latents"}),
    ],
)
def test_fields_that_editors_offer_are_those_of_the_service(typed, request_class, others):
    """Besides what has an argument of its own, and older names."""
    assert set(typed.__annotations__) == set(request_class.model_fields) - others


def test_what_a_newer_service_adds_is_read_and_sent_back():
    result = {
        "operation": "encode",
        "pipeline": "p",
        "codes": {**CODES, "transform": "new"},
        "outputs": [{"sample": 0, "medium": "hologram", "depth_px": 3}],
        "mood": "new",
    }
    job = JobInfo.model_validate({"id": "1", "operation": "encode", "status": "paused", "result": result})
    assert not job.has_ended
    assert job.result.outputs[0].depth_px == 3
    assert work_call("decode", {"codes": job.result}, None).json == {"codes": result["codes"]}


def test_codes_are_as_wide_as_their_codebook_needs_and_gaps_are_told():
    codes = Codes.model_validate({**CODES, "codes": [[[1, 2**17 - 1]]]})
    assert codes.numpy().dtype == np.uint32
    assert codes.numpy().tolist() == codes.codes
    with pytest.raises(NoBytes, match=r"samples \[1\] failed"):
        Codes.model_validate(CODES).numpy()


def test_what_is_left_out_is_not_sent():
    assert work_call("generate", {"prompt": None, "seed": 0}, "key").json == {"seed": 0}
    assert work_call("generate", {}, "key").headers["Idempotency-Key"] == "key"
    assert work_call("generate", {}, None).headers != work_call("generate", {}, None).headers


def test_numbers_and_arrays_of_numpy_are_sent_as_plain_ones():
    assert work_call("generate", {"seed": np.int64(3), "guidance_scale": np.float32(2)}, None).json == {
        "seed": 3,
        "guidance_scale": 2.0,
    }
    array = np.array([[[1, 2]], [[3, 4]]], np.uint16)
    for codes in (array, list(array), array.tolist()):
        assert work_call("decode", {"codes": codes}, None).json == {"codes": [[[1, 2]], [[3, 4]]]}


def test_a_result_without_codes_can_not_be_decoded():
    result = Result(operation="generate", pipeline="p")
    with pytest.raises(NoBytes, match="return_codes=True"):
        work_call("decode", {"codes": result}, None)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ([], "list is empty"),
        (None, "got NoneType"),
        (3, "got int"),
        (np.zeros((4, 4), np.float32), r"\(4, 4\) of float32"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"\(2, 4, 4, 3\) of uint8; give several as a list"),
        (np.zeros((0, 4), np.uint8), r"\(0, 4\)"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(source, told):
    with pytest.raises(UnusableSource, match=told):
        files_of(source)


def test_a_file_open_as_text_and_a_path_that_is_not_there_are_told(tmp_path):
    (tmp_path / "a").write_text("text")
    with (tmp_path / "a").open() as file, pytest.raises(UnusableSource, match="'rb'"):
        files_of(file)
    with pytest.raises(UnusableSource, match=r"can't read '.*none': No such file"):
        files_of(str(tmp_path / "none"))


def test_a_missing_package_is_told_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingPackage, match="pip install pillow"):
        files_of(np.zeros((4, 4), np.uint8))
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingPackage, match="pip install numpy"):
        Codes.model_validate(CODES).numpy()
