"""The measurement of codes in bulk runs, through a kill, too; its figures are for a quiet machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.ci
def test_bulk_is_measured_and_a_kill_changes_no_byte(tmp_path):
    options = ["--out", tmp_path, "--pictures", "64", "--seconds", "0.5", "--kills", "1"]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.bulk", *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "bulk.json").read_text())
    assert figures["pictures"] == 64
    assert figures["same_bytes_after_kills"] is True
    assert figures["per_s"] > 0
    assert figures["limit_of_both_per_s"] < max(figures["tokenizer_alone_per_s"])
