"""The benchmark runs, and says what it measured; its figures are for a quiet machine and a real pipeline."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.ci
@pytest.mark.timeout(300)  # ten processes, for a minute
def test_the_benchmark_measures_and_reports(tiny_weights, tmp_path):
    (tmp_path / "README.md").write_text("Before\n<!-- results -->\nold\n<!-- end of results -->\nAfter\n")
    options = ["--weights", tiny_weights / "tiny", "--out", tmp_path, "--only", "a,c,e", "--scale", "0.01"]
    result = subprocess.run(
        [sys.executable, BENCHMARKS / "serving.py", *options],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert parts["a"]["by_batch_size"][0]["images_per_s"] > 0
    for way in ("joining", "together", "whole"):
        assert parts["c"][way]["p99_s"] > 0
    assert 0 < parts["e"]["p50_s"] < 1
    readme = (tmp_path / "README.md").read_text()
    assert "old" not in readme
    assert result.stdout.strip() in readme
    assert "A quick run" in readme
    assert (tmp_path / "serving.png").read_bytes().startswith(b"\x89PNG")
