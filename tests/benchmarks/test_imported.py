"""The comparison with diffusers runs, and its decoders agree; its figures are for a quiet machine."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "imported.py"


@pytest.mark.ci
def test_the_comparison_with_diffusers_measures_both_parts() -> None:
    options = ["--tiny", "--steps", "2", "--batch-sizes", "1,2", "--rounds", "1"]
    result = subprocess.run(
        [sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 0, result.stderr
    rows = [line.split("|")[1:-1] for line in result.stdout.splitlines()[2:]]
    assert [(row[0].strip(), int(row[1])) for row in rows] == [
        ("prior", 1),
        ("prior", 2),
        ("vq", 1),
        ("vq", 2),
    ]
    assert all(float(figure) > 0 for row in rows for figure in row[2:])
