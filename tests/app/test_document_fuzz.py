"""The OpenAPI document against a real service: Schemathesis asks for all that is in it, and for what is not.

It checks that nothing is answered that the document doesn't have: status, media type, headers and shape; that
what the document forbids is refused; that no answer is a server error; and that no operation forgets its key.
"""

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.keys import make_key
from tests.app.conftest import serving_weights
from tests.waiting import wait_until
from workers.queue import embedded_server

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).with_name("schemathesis.toml")
NEVER_ACCEPTED = {  # pictures in forms are random bytes here; and what failed of its deadline fails of it again
    "POST /v1/images/edits",
    "POST /v1/images/variations",
    "POST /jobs/{job_id}/retry",
    "GET /jobs/{job_id}/latents",  # the pipelines here have codes
}
NOT_CHECKED = ("--exclude-checks", "use_after_free")  # DELETE of a job or a batch cancels: it is still there
SHORT_WAITS = {"default_wait_s": 0.2, "max_wait_s": 0.2}


@dataclass(frozen=True)
class Fuzzed:
    """What Schemathesis found. report: its own; output: for people."""

    exit_code: int
    report: dict[str, Any]
    output: str

    @property
    def failures(self) -> set[str]:
        return {failure["type"] for failure in self.report["failures"]}

    @property
    def accepted(self) -> set[str]:
        """The operations that have done what they were asked for, at least once."""
        return {
            operation
            for operation, phases in self.report["valid_rates"].items()
            if any(phase["accepted"] for phase in phases.values())
        }


@dataclass(frozen=True)
class Target:
    """A service to try. folder: for files of this run; secret: of its key, if it has one."""

    client: httpx.Client
    folder: Path
    secret: str | None

    def document(self) -> dict[str, Any]:
        """Return its OpenAPI document without default answers, so that every status has to be named."""
        document: dict[str, Any] = self.client.get("/openapi.json").json()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("default")
        return document

    def fuzz(self, document: dict[str, Any], *options: str) -> Fuzzed:
        """Run Schemathesis with a document."""
        files = self.folder / "openapi.json", self.folder / "report.json"
        files[0].write_text(json.dumps(document))
        headers = ["--header", f"Authorization: Bearer {self.secret}"] if self.secret else []
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "--no-color", "run"),
            *(
                str(files[0]),
                "--url",
                str(self.client.base_url),
                "--checks",
                "all",
                *NOT_CHECKED,
                "--seed",
                "1",
            ),
            *("--report", "json", "--report-json-path", str(files[1])),
            *headers,
            *options,
        ]
        environment = os.environ | {
            "SCHEMATHESIS_HOOKS": "tests.app.schemathesis_hooks",
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.folder, env=environment, check=False
        )
        assert files[1].exists(), done.stdout + done.stderr
        return Fuzzed(done.returncode, json.loads(files[1].read_text()), done.stdout)


@contextmanager
def target(folder: Path, weights: Path, *, has_keys: bool) -> Iterator[Target]:
    """Run a service with a real worker, whose waits are short."""
    secret, line = make_key("fuzz", ["admin"]) if has_keys else (None, "")
    server = embedded_server.start(folder / "redis")
    headers = {"Authorization": f"Bearer {secret}"}
    try:
        with serving_weights(server.url, weights, folder / "data", api_keys=line, **SHORT_WAITS) as client:
            client.headers.update(headers if secret else {})
            yield Target(client, folder, secret)
    finally:
        server.stop()


@pytest.fixture(scope="module")
def weights(tiny_weights: Path, tiny_prompt_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both tiny pipelines."""
    folder = tmp_path_factory.mktemp("both")
    for pipeline in (tiny_weights / "tiny", tiny_prompt_weights / "tiny-prompt"):
        (folder / pipeline.name).symlink_to(pipeline)
    return folder


def narrowed(document: dict[str, Any], client: httpx.Client) -> dict[str, Any]:
    """Return the document with what this one service knows, so that many requests get beyond its front door.

    It gets a job that has succeeded, one that has failed, and a batch as OpenAI's clients make it.
    """
    pipelines = client.get("/pipelines").json()
    names = [each["name"] for each in pipelines]
    labels = [label for each in pipelines for label_set in each["labels"].values() for label in label_set]
    sources = [png_in_base64(side_px) for side_px in (1, 12, 40)]
    done = finished(client, "/encode", pipeline=names[0], source=sources)
    known = {
        "pipeline": names,
        "model": names,
        "tokenizer": [each["tokenizer"] for each in pipelines],
        "codes": [done["result"]["codes"]],
        "format": ["png", "webp", "jpeg"],
        "style": labels,
        "group": labels,
        "class_label": labels,
        "source": sources,
        "size": ["auto"],
    }
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request"):
            for field in known.keys() & schema["properties"].keys():
                others = [] if field in schema.get("required", ()) else [None]
                schema["properties"][field] = {"enum": [*known[field], *others]}
    for field in ("posterior", "seed"):  # nothing is drawn, where there are codes
        document["components"]["schemas"]["EncodeRequest"]["properties"][field] = {"enum": [None]}
    jobs = {
        "/jobs/{job_id}/retry": finished(client, "/generate", deadline_s=1e-6)["id"],
        "/jobs/{job_id}/": finished(client, "/generate")["id"],
    }
    batch = document["paths"]["/batches"]["post"]["requestBody"]["content"]
    lines = {"file": ("lines.jsonl", batch["application/jsonl"]["example"])}
    file_id = client.post("/files", files=lines).json()["id"]
    batch["application/json"]["schema"]["properties"]["file"] = {"enum": [file_id]}
    file_id, openai_batch_id = openai_batch(client)
    document["components"]["schemas"]["BatchCreate"]["properties"]["input_file_id"] = {"enum": [file_id]}
    for path, operations in document["paths"].items():
        job_id = next((job_id for start, job_id in jobs.items() if f"{path}/".startswith(start)), None)
        for parameter in (each for method in operations.values() for each in method.get("parameters", ())):
            if parameter["name"] == "job_id":
                parameter["schema"]["examples"] = [job_id]
            if parameter["name"] == "batch_id" and path.startswith("/v1/"):
                parameter["schema"]["examples"] = [openai_batch_id]
            if parameter["name"] == "model":
                parameter["schema"]["examples"] = names
    return document


def openai_batch(client: httpx.Client) -> tuple[str, str]:
    """Return the ids of an upload and of its batch, both as OpenAI's clients make them."""
    asked = {"url": "/v1/images/generations", "method": "POST", "body": {"prompt": "a red apple"}}
    lines = {"file": ("lines.jsonl", json.dumps({"custom_id": "a", **asked}).encode())}
    file_id = client.post("/v1/files", files=lines, data={"purpose": "batch"}).json()["id"]
    request = {"input_file_id": file_id, "endpoint": asked["url"], "completion_window": "24h"}
    return file_id, client.post("/v1/batches", json=request).json()["id"]


def finished(client: httpx.Client, path: str, **request: Any) -> dict[str, Any]:
    """Return a job that has ended."""
    address = "/jobs/" + client.post(path, json=request).json()["id"]
    wait_until(lambda: client.get(address).json()["ended_at"])
    job: dict[str, Any] = client.get(address).json()
    return job


def png_in_base64(side_px: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (side_px, side_px), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "num_examples", [pytest.param(20, marks=pytest.mark.ci), pytest.param(200, marks=pytest.mark.hours)]
)
@pytest.mark.parametrize("has_keys", [False, True], ids=["open", "keys"])
def test_every_answer_is_as_the_document_says(tmp_path, weights, has_keys, num_examples):
    with target(tmp_path, weights, has_keys=has_keys) as service:
        document = narrowed(service.document(), service.client)
        phases = ["--phases", "examples,fuzzing"] if has_keys and num_examples < 100 else []
        fuzzed = service.fuzz(document, "--max-examples", str(num_examples), *phases)

    told = {name: fuzzed.report[name] for name in ("operations", "test_cases", "running_time")}
    print(told)  # noqa: T201 - which `make fuzz` shows
    assert fuzzed.exit_code == 0, fuzzed.output
    operations = {
        f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods
    }
    assert fuzzed.report["operations"]["tested"] == len(operations)
    if not phases:
        assert fuzzed.accepted >= operations - NEVER_ACCEPTED, "a run that is refused says little"


@pytest.mark.ci
def test_an_operation_that_forgets_its_key_is_found(tmp_path, weights):
    """As a check that finds nothing may be one that does nothing."""
    with target(tmp_path, weights, has_keys=False) as service:
        document = service.document()
        document["paths"]["/jobs"]["get"]["security"] = [{"API key": []}]
        fuzzed = service.fuzz(document, "--include-operation-id", "list_jobs", "--max-examples", "5")
    assert fuzzed.exit_code == 1
    assert "IgnoredAuth" in fuzzed.failures
