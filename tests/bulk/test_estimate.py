"""`--estimate` says how long the rest takes, from what it measured, and keeps nothing."""

import re
from pathlib import Path

import pytest

from bulk.estimate import Estimate
from tests.bulk.pictures import OPTIONS


def test_hours_follow_from_the_rate_and_the_machines():
    made = Estimate(num_measured=500, measured_s=20.0, num_left=9_000_000)
    assert made.pictures_per_s == 25
    assert made.hours(1) == pytest.approx(100)
    assert made.by_machines(also=10) == pytest.approx({1: 100, 4: 25, 10: 10, 16: 6.25, 64: 1.5625})
    assert "9000000 pictures to do: 100 h on 1, 25 h on 4, 6.25 h on 16, 1.56 h on 64 machines" in str(made)


def test_an_estimate_writes_nothing_and_counts_what_is_there(smalti, codes):
    out, _ = smalti("encode", "pics", "--out", "none", "--estimate", *OPTIONS)
    rate, measured = re.search(
        r"([\d.]+) pictures a second on this machine, measured on (\d+) in", out
    ).groups()
    assert float(rate) > 0
    assert measured == "20"  # all there are, as 20 s take more
    assert "\n20 pictures to do: " in out
    assert "assumed: " in out
    assert not Path("none").exists()
    (codes / "codes-000002.parquet").unlink()
    before = {path: path.read_bytes() for path in codes.iterdir()}
    out, _ = smalti("encode", "pics", "--out", "codes", "--estimate", *OPTIONS)
    assert "measured on 4 in" in out
    assert "\n4 pictures to do: " in out
    assert {path: path.read_bytes() for path in codes.iterdir()} == before


def test_an_estimate_of_a_folder_of_other_codes_is_refused(smalti, codes):
    told = smalti("encode", "pics", "--out", "codes", "--estimate", *OPTIONS, "--flips", status=1)[1]
    assert "codes holds other codes: transform" in told
