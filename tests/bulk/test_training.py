"""A prior learns from a folder of codes instead of pictures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from models.autoencoders.vq import Tokenizer
from models.options import FlowOptions
from models.pipeline import Pipeline
from training.data.code_folder import read_codes
from training.data.dataset import DataError
from training.examples import encode_examples, read_coded_data
from training.network import NetworkSettings
from training.prior import PriorTrainingConfig, train_prior


@pytest.fixture
def tokenizer_file(weights) -> Path:
    return weights / "tiny" / "tokenizer.safetensors"


def test_a_prior_trains_on_codes_and_their_folders_are_its_classes(codes, tokenizer_file, tmp_path):
    config = PriorTrainingConfig(
        prior=NetworkSettings(hidden_size=32, depth=2, num_heads=2),
        tokenizer=tokenizer_file,
        folder=tmp_path / "run",
        output=tmp_path / "weights" / "from-codes",
        defaults=FlowOptions(num_steps=2, guidance_scale=1.0),
        data=f"codes:{codes}",
        batch_size=8,
        num_steps=3,
        warmup_steps=1,
        is_compiled=False,
        samples_every=3,
    )
    pipeline = Pipeline.load(train_prior(config))
    assert pipeline.spec.labels == {"class": ("sub",)}
    assert pipeline.spec.codes.fingerprint == Tokenizer.load(tokenizer_file).fingerprint()


def test_latents_are_those_of_the_codes_in_their_order(codes, tokenizer_file, tmp_path):
    tokenizer = Tokenizer.load(tokenizer_file)
    data = read_coded_data(codes, tokenizer)
    tables = [pyarrow.parquet.read_table(path) for path in sorted(codes.glob("*.parquet"))]
    rows = [row["codes"] for row in pyarrow.concat_tables(tables).to_pylist() if not row["error"]]
    assert data.codes.flatten(1).tolist() == rows
    examples = encode_examples(tokenizer, data, None, with_flips=True, cache=tmp_path)
    expected = tokenizer.lookup(torch.tensor(rows).view(-1, 6, 6)).to(torch.bfloat16)
    assert torch.equal(examples.targets, expected)


def test_ids_that_name_no_class_give_one(codes, tokenizer_file):
    path = codes / "codes-000001.parquet"
    table = pyarrow.parquet.read_table(path)
    ids = ["a.tar!sub/1.png", *table.column("id").to_pylist()[1:]]
    pyarrow.parquet.write_table(table.set_column(0, table.schema.field("id"), pyarrow.array(ids)), path)
    data = read_codes(codes, Tokenizer.load(tokenizer_file).fingerprint())
    assert data.class_names == ("image",)
    assert not data.labels.any()


def test_a_folder_that_does_not_fit_is_refused(codes, tokenizer_file):
    fingerprint = Tokenizer.load(tokenizer_file).fingerprint()
    with pytest.raises(
        DataError, match=f"made by the tokenizer {fingerprint}, but the prior's is {'0' * 16}"
    ):
        read_codes(codes, "0" * 16)
    with pytest.raises(DataError, match="is not a folder of codes"):
        read_codes(codes / "none", fingerprint)
    whole = (codes / "codes-000001.bin").read_bytes()
    for damaged in (whole[:-1], np.full(8 * 36, 32, "<u2").tobytes()):
        (codes / "codes-000001.bin").write_bytes(damaged)
        with pytest.raises(DataError, match="is damaged, as `smalti verify` tells"):
            read_codes(codes, fingerprint)
    (codes / "codes-000001.parquet").unlink()
    with pytest.raises(DataError, match="has 2 of its 3 shards"):
        read_codes(codes, fingerprint)
    (codes / "manifest.json").write_text(json.dumps({"tokenizer": fingerprint}))
    with pytest.raises(DataError, match="its manifest is damaged"):
        read_codes(codes, fingerprint)


@pytest.mark.ci
def test_the_example_learns_from_codes_without_smalti(codes):
    script = Path(__file__).parents[2] / "examples" / "train_on_codes.py"
    source = f"import runpy, sys; sys.argv = ['x', {str(codes)!r}, '--steps', '40']\n"
    source += f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    source += "assert not {'models', 'smalti', 'pyarrow', 'PIL'} & set(sys.modules)\n"
    told = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", source], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    first, *steps = told.stdout.splitlines()
    assert first == "19 rows of 36 codes, 3.47 nats each by chance"
    losses = [float(step.split()[2]) for step in steps]
    assert losses[-1] < losses[0] < 3.47 + 1
