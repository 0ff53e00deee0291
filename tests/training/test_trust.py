"""Training that can be trusted: it says beforehand what would fail, keeps what is good, and goes on from it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli
from models.autoencoders.vq import Tokenizer, TokenizerConfig
from training.checkpoints import check_exported
from training.compiling import Compiler
from training.config_file import TrainingError, load_config
from training.distill import DistillConfig, train_distilled
from training.folder_lock import hold
from training.losses_log import Losses
from training.network import NetworkSettings
from training.prior import PriorTrainingConfig, train_prior
from training.reconstruction import Stepper
from training.stopping import Stopped
from training.tokenizer import train_tokenizer
from training.tokenizer_config import TokenizerTrainingConfig

NUM_STEPS = 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pictures"
    noise = np.random.default_rng(0)
    for name in ("left", "right"):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            pixels = noise.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> TokenizerTrainingConfig:
    """A run that has ended, with a checkpoint of each of its last two steps."""
    config = TokenizerTrainingConfig(
        tokenizer=TokenizerConfig(image_size_px=8, hidden_channels=8, num_blocks=1, codebook_size=8),
        folder=tmp_path_factory.mktemp("runs") / "run",
        data=str(pictures),
        batch_size=8,
        num_steps=NUM_STEPS,
        warmup_steps=1,
        is_compiled=False,
        checkpoint_every_s=0,
        log_every=1,
        num_threads=1,
    )
    train_tokenizer(config)
    return config


@pytest.fixture
def config(finished: TokenizerTrainingConfig, tmp_path: Path) -> TokenizerTrainingConfig:
    """The finished run in a folder of the test's own."""
    shutil.copytree(finished.folder, tmp_path / "run")
    return replace(finished, folder=tmp_path / "run")


def logged(folder: Path) -> list[tuple[int, float]]:
    entries = map(json.loads, (folder / "losses.jsonl").read_text().splitlines())
    return [(entry["step"], entry["loss"]) for entry in entries]


def saved(path: Path) -> dict[str, object]:
    return torch.load(path, weights_only=True)


# What would fail later is said before the first step.


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_written(
    finished: TokenizerTrainingConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    wrong = replace(
        finished,
        folder=tmp_path / "file" / "run",
        continuous_steps=NUM_STEPS,
        adversarial_weight=1.0,
        adversarial_start=NUM_STEPS,
        start_from=tmp_path / "missing.safetensors",
    )
    with pytest.raises(TrainingError) as raised:
        train_tokenizer(wrong)
    lines = str(raised.value).split("\n")
    assert [line.partition(":")[0] for line in lines] == [
        "folder",
        "adversarial_start",
        "start_from",
        "continuous_steps",
    ]
    assert "set at most 7" in lines[3]
    with pytest.raises(TrainingError, match=r"batch_size: 999 is more than the \d+ images"):
        train_tokenizer(replace(finished, folder=tmp_path / "run", batch_size=999))
    assert not (tmp_path / "run" / "losses.jsonl").exists()


@pytest.mark.parametrize(("num_steps", "expected"), [(200, 50), (1700, 200), (4900, 200), (1, 0)])
def test_short_runs_train_their_codebook_for_three_quarters(
    finished: TokenizerTrainingConfig, num_steps: int, expected: int
) -> None:
    assert replace(finished, num_steps=num_steps).num_continuous_steps == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Two Words", "of at most 64 of a-z.* got 'Two Words'"),
        ("full", "holds other things than a pipeline"),
        ("tiny", r"holds another pipeline, whose makes is"),
    ],
)
def test_an_output_that_a_pipeline_cant_be_written_to_is_said_before_training(
    config: TokenizerTrainingConfig, tiny_weights: Path, tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    shutil.copytree(tiny_weights / "tiny", tmp_path / "tiny")
    prior = PriorTrainingConfig(
        tokenizer=config.folder / "tokenizer.safetensors",
        folder=tmp_path / "prior",
        output=tmp_path / name,
        data=config.data,
        batch_size=8,
        is_compiled=False,
    )
    with pytest.raises(TrainingError, match=said):
        train_prior(prior)
    assert not (tmp_path / "prior" / "checkpoint.pt").exists()


def test_a_teacher_is_not_overwritten_and_its_student_lies_beside_it(
    tiny_weights: Path, tmp_path: Path
) -> None:
    teacher = tiny_weights / "tiny"
    distilled = DistillConfig(teacher=teacher, folder=tmp_path / "run", output=teacher)
    with pytest.raises(TrainingError, match="is the teacher itself"):
        train_distilled(distilled)
    with pytest.raises(TrainingError, match="must lie beside the teacher"):
        train_distilled(replace(distilled, output=tmp_path / "student"))


def test_every_mistake_in_a_file_is_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(
        'batch_size = 0\nlerning_rate = 1\ncodebook_size = 8\n[tokenizer]\nhiden_channels = 8\nquantizer = "x"\n'
    )
    with pytest.raises(TrainingError) as raised:
        load_config(path, TokenizerTrainingConfig)
    lines = sorted(line.removeprefix(f"{path}: ") for line in str(raised.value).split("\n"))
    assert lines == [
        "batch_size should be greater than or equal to 1, got 0",
        "codebook_size is not a setting: it belongs into the table [tokenizer]",
        "folder is missing",
        "lerning_rate is not a setting: did you mean learning_rate?",
        "tokenizer.hiden_channels is not a setting: did you mean hidden_channels?",
        "tokenizer.quantizer should be 'vector' or 'fsq', got 'x'",
    ]
    for text, said in (("learning_rate = nan", "must be finite, got nan"), ("a =", "not valid TOML")):
        path.write_text(text)
        with pytest.raises(TrainingError, match=said):
            load_config(path, TokenizerTrainingConfig)


# A run that diverges ends, and what was good stays.


def test_a_run_that_diverges_ends_with_its_last_good_checkpoint_and_no_weights(
    finished: TokenizerTrainingConfig, tmp_path: Path
) -> None:
    diverging = replace(finished, folder=tmp_path / "run", learning_rate=1e18, warmup_steps=0, num_steps=50)
    with pytest.raises(TrainingError, match=r"diverged: .*last finite loss: .* lower learning_rate \(now"):
        train_tokenizer(diverging)
    assert not (tmp_path / "run" / "tokenizer.safetensors").exists()
    state = saved(tmp_path / "run" / "checkpoint.pt")
    assert 0 < state["step"] < 50
    assert all(tensor.isfinite().all() for tensor in state["tokenizer"].values())
    assert all(np.isfinite(loss) for _, loss in logged(tmp_path / "run"))


@pytest.mark.parametrize("name", ["muon_learning_rate", "adversarial_learning_rate"])
def test_a_run_that_diverges_names_every_rate_that_may_be_too_high(
    config: TokenizerTrainingConfig, tmp_path: Path, name: str
) -> None:
    diverging: dict[str, Any] = {"folder": tmp_path / "x", "num_steps": 50, "warmup_steps": 0, name: 1e30}
    if name == "adversarial_learning_rate":
        train = partial(train_tokenizer, replace(config, adversarial_weight=1.0, **diverging))
    else:
        prior = PriorTrainingConfig(
            tokenizer=config.folder / "tokenizer.safetensors",
            output=tmp_path / "out",
            prior=NetworkSettings(hidden_size=32, depth=1, num_heads=2),
            data=config.data,
            batch_size=8,
            is_compiled=False,
            num_threads=1,
            **diverging,
        )
        train = partial(train_prior, prior)
    with pytest.raises(TrainingError, match=rf"lower learning_rate \(now .*\) or {name} \(now 1e\+30\)"):
        train()


def test_a_loss_far_above_its_start_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    losses = Losses()
    for step, loss in enumerate((0.5, 0.2, 4.9, 5.1, 80.0)):
        assert losses.check({"step": step, "time": 1.0, "loss": loss}) is None
    said = [record.message for record in caplog.records]
    assert said == ["step 3: diverging? The loss is 5.1, and began at 0.5: a lower learning_rate may help"]
    assert losses.check({"step": 9, "time": 1.0, "loss": float("nan")}) == "by step 9, loss is nan"
    assert losses.last_finite == "80 at step 4"


# A run goes on from what is whole.


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _foreign(path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, path)


@pytest.mark.parametrize("damage", [_cut, _empty, _foreign])
def test_a_damaged_checkpoint_is_said_and_the_one_before_taken_to_the_same_end(
    config: TokenizerTrainingConfig, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    before = logged(config.folder)
    weights = config.folder / "tokenizer.safetensors"
    bytes_before = weights.read_bytes()
    weights.unlink()
    damage(config.folder / "checkpoint.pt")
    with (config.folder / "losses.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": null}\n{"step": 7, "lo')
    train_tokenizer(config, resume=True)
    assert any("going on from the one before, of step 7" in record.message for record in caplog.records)
    assert logged(config.folder) == before
    assert weights.read_bytes() == bytes_before


def test_a_shorter_run_ends_where_its_damaged_checkpoint_was_set_aside(
    config: TokenizerTrainingConfig,
) -> None:
    _empty(config.folder / "checkpoint.pt")
    shorter = replace(config, num_steps=NUM_STEPS - 1)
    assert train_tokenizer(shorter, resume=True) == config.folder / "tokenizer.safetensors"
    assert saved(config.folder / "checkpoint.previous.pt")["step"] == NUM_STEPS - 1


def test_where_no_checkpoint_is_whole_a_run_says_so(config: TokenizerTrainingConfig) -> None:
    _empty(config.folder / "checkpoint.pt")
    _cut(config.folder / "checkpoint.previous.pt")
    with pytest.raises(TrainingError, match=r"checkpoint.pt is empty; .*previous.pt is cut, .*new folder"):
        train_tokenizer(config, resume=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_the_run_goes_on_to_the_same_end(
    finished: TokenizerTrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    config = replace(finished, folder=tmp_path / "run", checkpoint_every_s=1000)
    take = Stepper.take

    def take_and_be_asked_to_stop(self: Stepper, images: object, codes: object, step: int) -> object:
        if step == 3:
            os.kill(os.getpid(), number)
        return take(self, images, codes, step)

    monkeypatch.setattr(Stepper, "take", take_and_be_asked_to_stop)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped, match=r"stopped after 4 of 8 steps.*--resume goes on") as raised:
        train_tokenizer(config)
    assert raised.value.status == 128 + number
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.undo()
    train_tokenizer(config, resume=True)
    assert logged(config.folder) == logged(finished.folder)


def test_ctrl_c_ends_the_command_with_one_line_and_130(
    finished: TokenizerTrainingConfig, tmp_path: Path
) -> None:
    path = tmp_path / "long.toml"
    path.write_text(
        f'folder = "{tmp_path / "run"}"\ndata = "{finished.data}"\nbatch_size = 8\nnum_steps = 100000\n'
        "is_compiled = false\nlog_every = 1\nnum_threads = 1\n"
        "[tokenizer]\nimage_size_px = 8\nhidden_channels = 8\nnum_blocks = 1\ncodebook_size = 8\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli.main", "train", "tokenizer", "--config", str(path)],
        stderr=subprocess.PIPE,
    )
    give_up = time.monotonic() + 60
    while not (tmp_path / "run" / "losses.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.02)
    with pytest.raises(TrainingError, match=f"being trained in by another process .{process.pid}."):
        train_tokenizer(replace(finished, folder=tmp_path / "run"), resume=True)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in said
    assert b"the same command with --resume goes on" in said.splitlines()[-1]
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_folder_is_held_by_one_run(tmp_path: Path) -> None:
    lock = hold(tmp_path)
    with pytest.raises(TrainingError, match="another process"):
        hold(tmp_path)
    os.close(lock)
    os.close(hold(tmp_path))


# A run is resumed with all that can't change its result.


def test_a_finished_run_says_so_and_computes_nothing(
    config: TokenizerTrainingConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("training.reconstruction.load_dataset", lambda *_, **__: pytest.fail("read data"))
    os.utime(config.folder / "tokenizer.safetensors")
    assert train_tokenizer(config, resume=True) == config.folder / "tokenizer.safetensors"
    assert "all 8 steps are taken; the weights are in" in caplog.text


def test_settings_that_dont_change_the_result_may_change(
    config: TokenizerTrainingConfig, tmp_path: Path
) -> None:
    (config.folder / "tokenizer.safetensors").unlink()
    moved = shutil.copytree(config.data, tmp_path / "elsewhere")
    other = {"log_every": 2, "checkpoint_every_s": 5, "max_bad_share": 0.5}
    train_tokenizer(replace(config, data=str(moved), **other), resume=True)
    assert (config.folder / "tokenizer.safetensors").exists()


def test_a_refusal_names_each_setting_with_both_values(
    config: TokenizerTrainingConfig, tmp_path: Path
) -> None:
    (config.folder / "tokenizer.safetensors").unlink()
    other = replace(config, batch_size=4, tokenizer=replace(config.tokenizer, codebook_size=16))
    with pytest.raises(
        TrainingError, match=r"batch_size was 8, now 4; tokenizer.codebook_size was 8, now 16"
    ):
        train_tokenizer(other, resume=True)
    changed = shutil.copytree(config.data, tmp_path / "changed")
    Image.new("L", (8, 8)).save(changed / "left" / "0.png")
    with pytest.raises(TrainingError, match=r"data: what is in .* has changed"):
        train_tokenizer(replace(config, data=str(changed)), resume=True)


def test_a_run_made_longer_before_its_rate_falls_is_the_longer_run(
    finished: TokenizerTrainingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Constant up to the end: what is taken before is what a run of 12 steps would have taken."""
    short = replace(finished, folder=tmp_path / "short", decay_fraction=0.0, num_steps=4, continuous_steps=2)
    train_tokenizer(short)
    state = saved(short.folder / "checkpoint.previous.pt")  # of step 3, from which on the rate falls
    shutil.copy(short.folder / "checkpoint.previous.pt", short.folder / "checkpoint.pt")
    assert state["step"] == 3
    longer = replace(short, num_steps=12)
    train_tokenizer(longer, resume=True)
    assert "num_steps was 4, now 12: nothing that depends on it has happened yet" in caplog.text
    train_tokenizer(replace(longer, folder=tmp_path / "whole"))
    assert logged(short.folder) == logged(tmp_path / "whole")


def test_a_run_made_longer_after_its_rate_fell_says_what_that_means(
    config: TokenizerTrainingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    train_tokenizer(replace(config, num_steps=12), resume=True)
    assert "is back at its height until step 6" in caplog.text
    assert logged(config.folder)[-1][0] == 11
    with pytest.raises(TrainingError, match="12 steps are taken already, got 10"):
        train_tokenizer(replace(config, num_steps=10), resume=True)


# Compiling is given up where it fails.


def test_without_a_working_compiler_a_step_is_taken_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Callable[..., object]:
        raise RuntimeError("C++ compile error\n" + 100 * "a long line\n")

    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_with(module, backend=broken))
    caplog.set_level("INFO")
    module = torch.nn.Linear(3, 2)
    x = torch.ones(1, 3)
    compiler = Compiler(is_on=True)
    compiled = compiler.compile(module)
    for _ in range(2):
        assert torch.equal(compiler.run(lambda: compiled(x)), module(x))
    first, second = [record.message for record in caplog.records]
    assert first.startswith(
        "the first step compiles Linear, forward and backward, which takes about a minute"
    )
    assert second.startswith("torch.compile failed, going on without it")
    assert "C++ compile error" in second
    assert len(second) < 300
    assert "\n" not in second


def test_an_error_that_isnt_the_compilers_is_raised_as_it_is() -> None:
    compiler = Compiler(is_on=True)
    with pytest.raises(RuntimeError, match=r"^out of memory$") as raised:
        compiler.run(lambda: (_ for _ in ()).throw(RuntimeError("out of memory")))
    assert raised.value.__context__ is None


def test_the_command_says_each_mistake_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("batch_size = 0\n")
    result = CliRunner().invoke(cli, ["train", "tokenizer", "--config", str(tmp_path / "a.toml")])
    assert isinstance(result.exception, TrainingError)
    said = [*result.stderr.splitlines(), str(result.exception)]
    assert len([line for line in said if "a.toml: " in line]) == 3  # tokenizer, folder, batch_size


def test_weights_are_checked_before_they_are_written(config: TokenizerTrainingConfig) -> None:
    tensors = Tokenizer.load(config.folder / "tokenizer.safetensors").exported()
    check_exported(tensors, Path("x"))
    tensors["latent_std"].fill_(float("nan"))
    with pytest.raises(TrainingError, match="x was not written: latent_std is not finite"):
        check_exported(tensors, Path("x"))
