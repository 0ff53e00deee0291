"""A family of priors that app/ and workers/ know nothing of, in the same batch as the flow prior."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from models import options, registry
from models.checkpoint import save_checkpoint
from models.pipeline import Pipeline
from models.spec import SPEC_FILE, PipelineSpec
from tests.app.conftest import serving_weights
from tests.toy_masked import KIND, ToyMaskedConfig, ToyMaskedNetwork, ToyMaskedOptions
from tests.workers.engine.engine_runs import Jobs, digest, run
from workers.engine.engine import Engine
from workers.errors import InvalidRequest


@pytest.fixture
def weights(tiny_weights: Path, tmp_path: Path, monkeypatch) -> Path:
    """The tiny flow pipeline, and one with its tokenizer and a masked prior over its codes."""
    monkeypatch.setitem(registry.PRIORS, KIND, "tests.toy_masked:ToyMaskedPrior")
    monkeypatch.setitem(options.FAMILIES, KIND, ToyMaskedOptions)
    folder = tmp_path / "weights"
    shutil.copytree(tiny_weights, folder)
    spec = PipelineSpec.load(folder / "tiny" / SPEC_FILE)
    (folder / "masked").mkdir()
    torch.manual_seed(0)
    save_checkpoint(
        folder / "masked" / "prior.safetensors",
        ToyMaskedNetwork(ToyMaskedConfig()).state_dict(),
        ToyMaskedConfig(),
    )
    masked = replace(spec, name="masked", prior=KIND, defaults=ToyMaskedOptions(), shares_with="tiny")
    masked.save(folder / "masked" / SPEC_FILE)
    return folder


def test_both_families_share_a_batch_and_keep_the_seed_promise(weights: Path) -> None:
    pipelines = {name: Pipeline.load(weights / name) for name in ("tiny", "masked")}
    jobs = Jobs(weights)
    works = [
        jobs.generate(f"{name} {seed}", pipeline=name, seed=seed, num_outputs=1 + seed % 3, num_steps=steps)
        for seed in range(6)
        for name in pipelines
        for steps in [1 + seed % 5]
    ]
    alone = {work.job_id: digest(run(Engine(pipelines), [work])[work.job_id]) for work in works}
    together = run(Engine(pipelines), works, admit_chance=0.5)
    assert {name: digest(finished) for name, finished in together.items()} == alone
    assert len(set(alone.values())) == len(works)


def test_options_of_another_family_are_refused_by_name(weights: Path) -> None:
    with pytest.raises(InvalidRequest, match="sampler: this pipeline has num_steps"):
        Jobs(weights).generate(pipeline="masked", sampler="euler")


def test_the_service_knows_it_as_any_other(weights: Path, tmp_path: Path, redis_url: str) -> None:
    with serving_weights(redis_url, weights, tmp_path / "data") as client:
        info = {each["name"]: each for each in client.get("/pipelines").json()}
        assert list(info["masked"]["options"]) == ["num_steps"]
        request = {"pipeline": "masked", "class_label": "dog", "seed": 3, "return_codes": True}
        job = client.post("/generate", json=request, headers={"Prefer": "wait=20"}).json()
        assert job["status"] == "succeeded", job
        assert job["result"]["images"][0]["width_px"] == 12
        decoded = client.post(
            "/decode", json={"codes": job["result"]["codes"]}, headers={"Accept": "image/png"}
        )
        generated = client.get(job["result"]["images"][0]["url"])
        pictures = [Image.open(io.BytesIO(each.content)) for each in (decoded, generated)]
        assert pictures[0].tobytes() == pictures[1].tobytes()
