"""The measurement of growth runs, and gives a verdict; its figures are for a quiet machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.ci
def test_growth_is_measured_and_judged(tiny_weights, tmp_path):
    (tmp_path / "README.md").write_text("Before\n<!-- growth -->\nold\n<!-- end of growth -->\nAfter\n")
    options = ["--weights", tiny_weights / "tiny", "--out", tmp_path, "--only", "q,s", "--scale", "0.002"]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    parts = json.loads((tmp_path / "growth.json").read_text())["parts"]
    assert [row["length"] for row in parts["q"]["rows"]] == [0, 2, 20]
    assert parts["q"]["bytes_of_a_waiting_job"] > 0
    assert set(parts["s"]["bytes"]) == {"the API", "Redis", "worker 1"}
    assert parts["s"]["num_requests"] == 200
    readme = (tmp_path / "README.md").read_text()
    assert "old" not in readme
    assert result.stdout.strip() in readme
