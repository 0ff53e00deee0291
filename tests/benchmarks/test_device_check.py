"""The check of a GPU machine runs on a CPU, in small; its figures are for a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import device_check

SCRIPT = Path(device_check.__file__)


@pytest.mark.ci
@pytest.mark.timeout(300)  # five processes that load torch
def test_the_check_runs_and_says_what_it_found(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--scale", "small", "--out", tmp_path]
    options += ["--only", "contract,gpu wide,gpu training,suite"]
    result = subprocess.run(
        [sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=290, check=False
    )
    assert result.returncode == 0, (tmp_path / "log.txt").read_text()
    assert json.loads((tmp_path / "contract.json").read_text())["num_differing"] == 0
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert set(figures["parts"]) == {"wide", "training"}
    assert all(figure["value"] > 0 for part in figures["parts"].values() for figure in part)
    told = (tmp_path / "summary.txt").read_text()
    assert told.strip() == result.stdout.strip()
    for said in ("0 of 6 requests differ", "0 failures, 0 errors", "engine, 2 at once", "batches of 128"):
        assert said in told


def test_a_part_that_takes_too_long_or_fails_loses_nothing(tmp_path: Path) -> None:
    slow = "import sys, time; print('begun', flush=True); time.sleep(60)"
    with (tmp_path / "log.txt").open("wb") as log:
        outcomes = [
            device_check.take(device_check.Part("slow", [sys.executable, "-c", slow], 60), {}, log, left_s=2),
            device_check.take(
                device_check.Part("bad", [sys.executable, "-c", "import nothing"], 60), {}, log, left_s=60
            ),
            device_check.take(
                device_check.Part("late", [sys.executable, "-c", slow], 60), {}, log, left_s=0.5
            ),
        ]
    assert [outcome.split(" after ")[0] for outcome in outcomes] == [
        "cut off",
        "FAILED with 1",
        "not begun: no time was left",
    ]
    log_text = (tmp_path / "log.txt").read_text()
    assert "===== slow\nbegun" in log_text
    assert "No module named 'nothing'" in log_text


def test_a_figure_says_whether_its_aim_is_met() -> None:
    figure = {
        "name": "a lone image",
        "value": 4.5,
        "unit": "ms",
        "aim": 4.0,
        "aimed_share": None,
        "share_of_matrix_rate": 0.123,
        "is_met": False,
    }
    said = " ".join(device_check.line_of(figure).split())
    assert said == "a lone image 4.5 ms 12.3% ≤ 4 NOT MET"
    assert device_check.line_of({**figure, "is_met": True, "value": 3.5}).endswith(" met")
