"""The seed promise on the shipped weights: same request, same bytes; same image, same codes; in any company."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.networks import layers
from tests import seed_mixes
from tests.seed_mixes import compare

ROOT = Path(__file__).parent.parent
CPU_FLAGS = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
NEEDED = {"AVX512_CORE_BF16": "avx512_bf16", "AVX512_CORE": "avx512dq", "AVX2": "avx2"}


@pytest.mark.timeout(300)
def test_20_short_mixes_on_the_shipped_weights(tmp_path: Path) -> None:
    report = compare(20, tmp_path, num_probes=64, rows=(1, 4, 8, 32), max_steps=2, pool_size=15)
    assert report.num_requests > 50
    assert report.num_differing == 0, report


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_300_mixes_on_the_shipped_weights(tmp_path: Path) -> None:
    report = compare(300, tmp_path, num_probes=128, max_steps=4, pool_size=60)
    assert report.num_requests > 1000
    assert report.num_differing == 0, report


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_20_mixes_of_all_families(tmp_path: Path) -> None:
    """Flow, codes in turn, codes in any order, photographs, and small pictures drawn larger."""
    names = seed_mixes.FAMILIES
    report = compare(20, tmp_path, names=names, num_probes=64, rows=(1, 4, 8, 32), max_steps=3, pool_size=30)
    assert report.num_requests > 50
    assert report.num_differing == 0, report


@pytest.mark.ci
@pytest.mark.timeout(900)
@pytest.mark.parametrize("instructions", NEEDED)
def test_20_mixes_with_fewer_instructions(tmp_path: Path, instructions: str) -> None:
    """oneDNN reads what it may use when it is loaded, so each has a process of its own."""
    if NEEDED[instructions] not in CPU_FLAGS:
        pytest.skip(f"the processor has no {NEEDED[instructions]}")
    command = [sys.executable, "-P", str(ROOT / "tests" / "seed_mixes.py"), "20", str(tmp_path), "32"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ONEDNN_MAX_CPU_ISA": instructions}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    report = json.loads(output)
    assert report["num_requests"] > 50
    assert report["num_differing"] == 0, report


@pytest.mark.ci
@pytest.mark.timeout(900)
@pytest.mark.skipif("amx_bf16" not in CPU_FLAGS, reason="the processor has no AMX")
def test_the_mixes_would_find_a_broken_promise(tmp_path: Path, monkeypatch) -> None:
    """Without the mend of wide layers, and without a check, AMX gives other bytes in company."""
    monkeypatch.setattr(layers, "MAX_TOKENS", 10**9)
    report = compare(20, tmp_path, num_probes=0, max_steps=4, pool_size=24)
    assert report.num_differing > 0, report


@pytest.mark.parametrize("num_rows", [2, 5, 6, 16, 40])
def test_rows_of_a_wide_layer_are_those_of_a_lone_sample(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = layers.WideLinear(704, 256).bfloat16().requires_grad_(False)
    x = torch.randn(num_rows, 49, 704, generator=generator).bfloat16()
    with torch.inference_mode():
        together = layer(x)
        alone = torch.cat([layer(row[None]) for row in x])
    assert torch.equal(together, alone)


def test_the_fingerprints_of_shipped_tokenizers_stay_valid() -> None:
    """People keep codes: a tokenizer's fingerprint is for ever."""
    from models.autoencoders.vq import Tokenizer

    found = {
        name: Tokenizer.load(seed_mixes.WEIGHTS / name / "tokenizer.safetensors").fingerprint()
        for name in ("fashion-mnist", "emoji-64")
    }
    assert found == {"fashion-mnist": "c8c07774ea28995c", "emoji-64": "8f9b12a9c036c6c0"}
