"""The document that describes the API, its page, and the list of pipelines."""

import json
import re

from app.errors import Problem
from app.keys import make_key
from app.main import create_app
from app.routes.events import JobUpdate
from tests.app.conftest import SPEC, WAIT, job_of, read_job, settings_for
from tests.waiting import wait_until
from workers.messages import Output, PipelineInfo


def test_pipelines_are_listed_with_an_example_that_works(service):
    (info,) = (PipelineInfo.model_validate(item) for item in service.client.get("/pipelines").json())
    response = service.client.post("/generate", json=info.example.model_dump(), headers=WAIT)

    assert (info.name, info.labels) == ("tiny", SPEC.labels)
    assert job_of(response).status == "succeeded"


def test_pipelines_are_listed_with_what_each_worker_found_of_the_seed_promise(service):
    def verdicts() -> list[dict]:
        return service.client.get("/pipelines").json()[0]["seed_verdicts"]

    wait_until(verdicts)
    (verdict,) = verdicts()
    assert verdict["worker"]
    assert (verdict["is_kept"], verdict["how"], verdict["rows"]) == (True, "checked", [1, 2])


def test_home_leads_to_the_documentation(service):
    response = service.client.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")


def test_the_documentation_needs_no_other_host(service):
    page = service.client.get("/docs").text
    assert not re.search(r"https?:|//\w", page)
    addresses = re.findall(r"""(?:src|href)=["'](.+?)["']|url: '(.+?)'""", page)
    assert len(addresses) == 4
    for address in ("".join(found) for found in addresses):
        response = service.client.get(address)
        assert response.status_code == 200, address
        if address.endswith(".css"):
            assert not re.search(r"@import|url\(['\"]?(https?:)?//", response.text)
    assert service.client.get("/redoc").status_code == 404


def test_openapi_has_an_example_of_every_body_and_each_is_valid(service):
    document = service.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    readers = {"JobView": read_job, "Problem": Problem.model_validate}
    num_examples = 0

    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["tags"]
        assert operation["summary"]
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                if media_type.startswith("image/") or media_type == "application/x-npy":
                    continue
                name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
                examples = [example["value"] for example in content.get("examples", {}).values()]
                examples += (
                    [content["example"]]
                    if "example" in content
                    else schemas.get(name, {}).get("examples", [])
                )
                assert examples, (operation["operationId"], status, media_type)
                for example in examples:
                    num_examples += 1
                    if name in readers:
                        readers[name](example)
                    if name == "Problem" and status != "default":
                        assert example["status"] == int(status)
    assert num_examples > 40


def test_every_reference_in_openapi_leads_to_a_schema(service):
    document = service.client.get("/openapi.json").json()
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert named == set(document["components"]["schemas"])
    assert "HTTPValidationError" not in named


def test_the_request_examples_of_openapi_are_served(service):
    paths = service.client.get("/openapi.json").json()["paths"]
    for path in ("/generate", "/encode", "/decode"):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert content["examples"]
        for example in content["examples"].values():
            response = service.client.post(path, json=example["value"])
            # The examples are of another pipeline than the one served here.
            assert response.status_code == 202 or Problem.model_validate(response.json()).code in {
                "invalid_codes",
                "invalid_image",
                "invalid_request",
                "unknown_pipeline",
            }


def test_the_document_has_the_fields_of_an_output_and_of_each_event(service):
    document = service.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["Output"]["properties"].keys() == Output.model_fields.keys()

    stream = document["paths"]["/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]
    data = stream["text/event-stream"]["itemSchema"]["properties"]["data"]
    assert data["contentSchema"] == {"$ref": "#/components/schemas/JobUpdate"}
    assert schemas["JobUpdate"]["properties"].keys() == JobUpdate.model_fields.keys()


def test_the_document_allows_the_cursors_that_there_are(service):
    service.client.post("/generate", json={})
    service.client.post("/generate", json={})
    page = service.client.get("/jobs", params={"limit": 1}).json()
    parameters = service.client.get("/openapi.json").json()["paths"]["/jobs"]["get"]["parameters"]
    (pattern,) = (each["schema"]["pattern"] for each in parameters if each["name"] == "cursor")
    assert re.search(pattern, page["next"])
    assert not re.search(pattern, "0" * 64)


def test_the_document_says_which_addresses_take_a_key(tmp_path):
    _, line = make_key("ada", ["generate"])
    for keys, choice in (("", [{}]), (line, [])):
        document = create_app(settings_for(tmp_path, "redis://127.0.0.1:1", api_keys=keys)).openapi()
        paths, bearer, signed = document["paths"], {"API key": []}, {"Signed address": []}
        assert paths["/health/ready"]["get"]["security"] == []
        assert paths["/jobs/{job_id}/outputs/{index}"]["get"]["security"] == [*choice, bearer, signed]
        assert paths["/generate"]["post"]["security"] == [*choice, bearer]
        assert {"401", "403"} <= paths["/pipelines"]["get"]["responses"].keys()
        assert {"401", "403", "415"} <= paths["/v1/images/generations"]["post"]["responses"].keys()


def test_a_job_in_the_document_leads_to_operations_on_it(service):
    paths = service.client.get("/openapi.json").json()["paths"]
    taking = {
        operation["operationId"]
        for operations in paths.values()
        for operation in operations.values()
        if any(each["name"] == "job_id" for each in operation.get("parameters", ()))
    }
    for response in (paths["/generate"]["post"]["responses"][status] for status in ("200", "202")):
        assert response["links"]
        assert {link["operationId"] for link in response["links"].values()} <= taking
