"""The catalog follows the folder of pipeline folders."""

from dataclasses import replace
from pathlib import Path

import pytest

from models.options import ConfigError
from tests.workers.test_catalog import OTHER, SPEC
from workers.errors import UnknownPipeline
from workers.messages import GenerateRequest
from workers.pipeline_folders import SCAN_EVERY_S, PipelineFolders


def put(weights: Path, spec, folder: str = "") -> Path:
    path = weights / (folder or spec.name)
    path.mkdir(exist_ok=True)
    spec.save(path / "pipeline.json")
    return path


class Clock:
    """Refreshes folders at later and later times."""

    def __init__(self, folders: PipelineFolders) -> None:
        self.folders = folders
        self.now = 1000.0
        folders.refresh(self.now)

    def scan(self, times: int = 1) -> tuple[str, ...]:
        for _ in range(times):
            self.now += SCAN_EVERY_S
            self.folders.refresh(self.now)
        return self.folders.catalog.names


def test_a_folder_is_taken_up_once_it_looks_the_same_twice(tmp_path):
    put(tmp_path, SPEC)
    clock = Clock(PipelineFolders.load(tmp_path))
    put(tmp_path, OTHER)
    assert clock.scan() == ("tiny",)
    (tmp_path / "other" / "prior.safetensors").write_bytes(b"some")
    assert clock.scan() == ("tiny",), "it is being written"
    assert clock.scan() == ("tiny", "other"), "behind those that were there"
    assert clock.folders.catalog.spec(None).name == "tiny"
    assert clock.folders.catalog.first_names == ("tiny",)
    assert PipelineFolders.load(tmp_path).catalog.names == ("other", "tiny")


def test_a_folder_that_is_replaced_has_another_stamp_and_one_that_goes_is_gone(tmp_path):
    for spec in (SPEC, OTHER):
        put(tmp_path, spec)
    clock = Clock(PipelineFolders.load(tmp_path))
    catalog = clock.folders.catalog
    before = {entry.spec.name: entry.stamp for entry in catalog.entries}
    (tmp_path / "tiny").rename(tmp_path / ".old")
    put(tmp_path, replace(SPEC, labels={"class": ("cat",)}))
    clock.scan(2)
    assert catalog["tiny"].stamp != before["tiny"]
    assert catalog["other"].stamp == before["other"]
    assert catalog.spec("tiny").labels == {"class": ("cat",)}

    (tmp_path / "other").rename(tmp_path / ".gone")
    assert clock.scan() == ("tiny",)
    (tmp_path / "tiny").rename(tmp_path / ".gone too")
    assert clock.scan() == ()
    for name in (None, "tiny"):
        with pytest.raises(UnknownPipeline):
            catalog.resolve(GenerateRequest(pipeline=name))
    tmp_path.rename(tmp_path.parent / "elsewhere")
    assert clock.scan(2) == (), "and no error"


def test_a_broken_one_is_refused_and_the_others_stay(tmp_path, caplog):
    put(tmp_path, SPEC)
    (put(tmp_path, OTHER) / "pipeline.json").write_text("{")
    put(tmp_path, SPEC, "twin")
    folders = PipelineFolders.load(tmp_path)
    clock, catalog = Clock(folders), folders.catalog
    assert catalog.names == ("tiny",)
    assert catalog.refused["other"].startswith("other/pipeline.json is not valid JSON")
    assert "that of the one in tiny, too" in catalog.refused["twin"]
    put(tmp_path, OTHER)
    assert clock.scan(2) == ("tiny", "other")
    assert list(catalog.refused) == ["twin"]

    (tmp_path / "tiny" / "pipeline.json").write_text("{")
    assert clock.scan(2) == ("tiny", "other"), "what is in memory stays"
    assert list(catalog.refused) == ["tiny", "twin"]
    num_told = len(caplog.records)
    clock.scan(3)
    assert len(caplog.records) == num_told


def test_where_pipelines_are_named_only_these_count(tmp_path):
    put(tmp_path, SPEC)
    clock = Clock(PipelineFolders.load(tmp_path, ("tiny",)))
    put(tmp_path, OTHER)
    assert clock.scan(3) == ("tiny",)
    (tmp_path / "tiny" / "pipeline.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        PipelineFolders.load(tmp_path, ("tiny",))


def test_no_folder_and_none_that_can_be_used_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no pipeline"):
        PipelineFolders.load(tmp_path / "missing")
    (put(tmp_path, SPEC) / "pipeline.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        PipelineFolders.load(tmp_path)
