"""A number is a number: neither true nor a text that looks like one."""

import numpy as np
import pytest

from models.media.image import encode_image
from tests.app.conftest import problem_of
from tests.fake_engine import FINGERPRINT

SQUARE = encode_image(np.full((9, 9, 1), 77, np.uint8), "png")
WHOLE = ("num_steps", "num_outputs", "num_images", "seed")
NUMBERS = ("guidance_scale", "deadline_s")
CLAIMS = ("preview", "return_codes")


@pytest.mark.parametrize(("value", "shown"), [(True, "true"), ("1", "'1'"), (1.5, "1.5"), ({}, "an object")])
@pytest.mark.parametrize("field", WHOLE)
def test_what_is_no_whole_number_is_refused_by_its_value(service, field, value, shown):
    problem = problem_of(service.client.post("/generate", json={field: value}), 422, "invalid_request")
    assert problem.detail == f"{field}: should be a valid integer, got {shown}"


@pytest.mark.parametrize(("value", "shown"), [(True, "true"), ("2", "'2'"), ([2], "1 of them")])
@pytest.mark.parametrize("field", NUMBERS)
def test_what_is_no_number_is_refused_by_its_value(service, field, value, shown):
    problem = problem_of(service.client.post("/generate", json={field: value}), 422, "invalid_request")
    assert problem.detail == f"{field}: should be a valid number, got {shown}"


@pytest.mark.parametrize(("value", "shown"), [(1, "1"), ("yes", "'yes'"), ("true", "'true'")])
@pytest.mark.parametrize("field", CLAIMS)
def test_what_is_neither_true_nor_false_is_refused_by_its_value(service, field, value, shown):
    problem = problem_of(service.client.post("/generate", json={field: value}), 422, "invalid_request")
    assert problem.detail == f"{field}: should be a valid boolean, got {shown}"


@pytest.mark.parametrize("body", [{"labels": {"class": True}}, {"class_label": 1.0}, {"style": False}])
def test_a_label_is_a_name_or_a_whole_number(service, body):
    problem = problem_of(service.client.post("/generate", json=body), 422, "invalid_request")
    assert "should be a valid string or should be a valid integer" in problem.detail


@pytest.mark.parametrize("field", ["prompt", "pipeline", "format", "sampler", "background", "priority"])
def test_a_text_is_a_text(service, field):
    assert service.client.post("/generate", json={field: 1}).status_code == 422


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1]])
def test_a_code_is_a_whole_number(service, value):
    body = {"codes": [[[1, value], [2, 3]]], "tokenizer": FINGERPRINT}
    problem = problem_of(service.client.post("/decode", json=body), 422, "invalid_codes")
    assert problem.errors[0].field == "codes[0][0][1]"


@pytest.mark.parametrize(
    "body", [{"guidance_scale": 2, "deadline_s": 5}, {"guidance_scale": 2.5, "class_label": "1"}]
)
def test_a_whole_number_is_a_number_and_a_label_may_be_digits(service, body):
    assert service.client.post("/generate", json=body).status_code == 202


@pytest.mark.parametrize("effort", ["true", "2.0", " 2", "+1", "1_0", "٢", "", "9" * 30])
def test_in_a_form_a_whole_number_is_written_in_digits(service, effort):
    response = service.client.post("/encode", files={"source": SQUARE}, data={"effort": effort})
    assert problem_of(response, 422, "invalid_request").errors[0].field == "effort"


@pytest.mark.parametrize("deadline_s", ["nan", "inf", "1e999", "true", "x"])
def test_in_a_form_a_number_is_finite(service, deadline_s):
    response = service.client.post("/encode", files={"source": SQUARE}, data={"deadline_s": deadline_s})
    assert problem_of(response, 422, "invalid_request").errors[0].field == "deadline_s"


def test_in_a_form_numbers_are_read_from_text(service):
    data = {"effort": "2", "deadline_s": "30", "priority": "batch"}
    assert service.client.post("/encode", files={"source": SQUARE}, data=data).status_code == 202
    as_json = service.client.post("/encode", json={"source": "AAAA", "effort": "2"})
    assert problem_of(as_json, 422, "invalid_request").detail == "effort: should be a valid integer, got '2'"
