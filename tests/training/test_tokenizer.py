"""Training a tokenizer against VQGAN's discriminator, and going on from a finished one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.autoencoders.code_search import search_codes
from models.autoencoders.vq import Tokenizer, TokenizerConfig
from models.checkpoint import load_checkpoint
from tests.tiny import TOKENIZER
from training.data.dataset import scale_to_unit
from training.data.sources import load_dataset
from training.discriminator import Adversary, PatchDiscriminator
from training.run import TrainingError
from training.tokenizer import train_tokenizer
from training.tokenizer_config import TokenizerTrainingConfig


@pytest.fixture
def config(captioned: Path, tmp_path: Path) -> TokenizerTrainingConfig:
    return TokenizerTrainingConfig(
        tokenizer=replace(TOKENIZER, codebook_size=16),
        folder=tmp_path / "run",
        data=str(captioned),
        batch_size=10,
        num_steps=40,
        continuous_steps=10,
        warmup_steps=5,
        is_compiled=False,
        num_threads=1,
        log_every=1,
    )


def logged(folder: Path) -> list[dict[str, float]]:
    entries = map(json.loads, (folder / "losses.jsonl").read_text().splitlines())
    return [{name: value for name, value in entry.items() if name != "time"} for entry in entries]


def test_a_discriminator_learns_to_tell_real_from_made() -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adversary = Adversary(PatchDiscriminator(3, hidden_channels=8, num_halvings=2), 1e-3)
    real = torch.rand(16, 3, 16, 16, generator=generator) * 2 - 1
    losses = [float(adversary.learn(real, real * 0.5)) for _ in range(60)]
    assert losses[0] == pytest.approx(2, abs=0.5)
    assert losses[-1] < 1


def test_the_adversarial_loss_pulls_as_hard_as_the_reconstruction_loss() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adversary = Adversary(PatchDiscriminator(1, hidden_channels=8, num_halvings=2), 1e-3)
        layer = torch.nn.Conv2d(1, 1, 3, padding=1)
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    made = layer(images)
    reconstruction = (made - images).square().mean()
    adversarial = adversary.loss_for(made, reconstruction, layer.weight)
    pulls = [
        torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].norm()
        for loss in (reconstruction, adversarial)
    ]
    torch.testing.assert_close(pulls[1], pulls[0], rtol=0.05, atol=0)  # up to what keeps it from 1/0
    assert all(parameter.requires_grad for parameter in adversary.discriminator.parameters())


def test_adversarial_training_resumes_to_the_same_losses(
    config: TokenizerTrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, adversarial_weight=0.5, adversarial_start=20, checkpoint_every_s=0)
    train_tokenizer(config)
    whole = logged(config.folder)
    assert [entry["step"] for entry in whole if "discriminator" in entry] == list(range(20, 40))

    stopped = replace(config, folder=config.folder.parent / "stopped")
    learn, calls = Adversary.learn, iter(range(100))

    def learn_for_a_while(self: Adversary, *images: torch.Tensor) -> torch.Tensor:
        if next(calls) == 8:
            raise KeyboardInterrupt
        return learn(self, *images)

    monkeypatch.setattr(Adversary, "learn", learn_for_a_while)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(stopped)
    monkeypatch.undo()
    train_tokenizer(stopped, resume=True)
    assert logged(stopped.folder) == whole


def test_weights_rounded_to_half_are_half_the_file_and_the_same_when_loaded(
    config: TokenizerTrainingConfig,
) -> None:
    whole = train_tokenizer(replace(config, num_steps=4, continuous_steps=1))
    half = train_tokenizer(
        replace(
            config, num_steps=4, continuous_steps=1, folder=config.folder / "half", in_half_precision=True
        )
    )
    assert {tensor.dtype for tensor in load_file(whole).values()} == {torch.float32}
    assert {tensor.dtype for tensor in load_file(half).values()} == {torch.float16}
    loaded = Tokenizer.load(half).exported()
    for name, tensor in Tokenizer.load(whole).exported().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor.half().float())


def test_codes_that_are_kept_are_not_rounded(config: TokenizerTrainingConfig, tmp_path: Path) -> None:
    (tmp_path / "finished").touch()
    wanted = replace(config, finetune_decoder=tmp_path / "finished", in_half_precision=True)
    with pytest.raises(TrainingError, match="in_half_precision would change the codes"):
        train_tokenizer(wanted)


@pytest.mark.ci
def test_a_decoder_trained_on_draws_better_from_the_same_codes(
    config: TokenizerTrainingConfig, captioned: Path
) -> None:
    first = train_tokenizer(config)
    better = train_tokenizer(
        replace(config, folder=config.folder.parent / "better", finetune_decoder=first, num_steps=100)
    )
    images = scale_to_unit(load_dataset(captioned, "train").images)
    errors, codes = [], []
    for path in (first, better):
        tokenizer = Tokenizer.load(path)
        codes.append(tokenizer.quantize(tokenizer.encode(images)).codes)
        errors.append((tokenizer.decode_codes(codes[-1]) - images).square().mean())
    assert torch.equal(codes[0], codes[1])
    assert errors[1] < 0.9 * errors[0]
    tensors = [load_checkpoint(path, TokenizerConfig)[0] for path in (first, better)]
    changed = {
        name.split(".")[0] for name in tensors[0] if not torch.equal(tensors[0][name], tensors[1][name])
    }
    assert changed == {"decoder"}

    other = replace(config.tokenizer, codebook_size=8)
    with pytest.raises(TrainingError, match=r"finetune_decoder: .* has another shape"):
        train_tokenizer(
            replace(config, folder=config.folder.parent / "x", finetune_decoder=first, tokenizer=other)
        )


@pytest.mark.ci
def test_a_decoder_also_learns_from_searched_codes(
    config: TokenizerTrainingConfig, captioned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train_tokenizer(config)
    images = scale_to_unit(load_dataset(captioned, "train").images)
    codes = search_codes(Tokenizer.load(first), images, 1)
    errors = []
    for name, num_searched_images in (("without", 0), ("with", len(images))):
        trained_on = replace(
            config,
            folder=config.folder.parent / name,
            finetune_decoder=first,
            num_steps=100,
            num_searched_images=num_searched_images,
        )
        tokenizer = Tokenizer.load(train_tokenizer(trained_on))
        errors.append((tokenizer.decode_codes(codes) - images).square().mean())
    assert errors[1] < 0.9 * errors[0]

    with monkeypatch.context() as patched:
        patched.setattr(
            "training.searched_codes.search_codes", lambda *_, **__: pytest.fail("searched again")
        )
        (trained_on.folder / "tokenizer.safetensors").unlink()  # or the run is finished
        train_tokenizer(trained_on, resume=True)
    with pytest.raises(TrainingError, match="give finetune_decoder"):
        train_tokenizer(replace(config, folder=config.folder.parent / "x", num_searched_images=2))
    with pytest.raises(TrainingError, match="batch_size of at least 2"):
        train_tokenizer(replace(trained_on, folder=config.folder.parent / "x", batch_size=1))


@pytest.mark.ci
def test_a_tokenizer_trained_on_with_more_blocks_begins_as_the_finished_one(
    config: TokenizerTrainingConfig, captioned: Path
) -> None:
    first = train_tokenizer(config)
    deeper = replace(
        config,
        tokenizer=replace(config.tokenizer, num_blocks=config.tokenizer.num_blocks + 1),
        folder=config.folder.parent / "deeper",
        start_from=first,
        continuous_steps=0,
        warmup_steps=0,
        num_steps=60,
    )
    images = scale_to_unit(load_dataset(captioned, "train").images)
    errors = []
    for path in (
        first,
        train_tokenizer(
            replace(deeper, folder=config.folder.parent / "same", learning_rate=1e-9, num_steps=1)
        ),
        train_tokenizer(deeper),
    ):
        tokenizer = Tokenizer.load(path)
        made = tokenizer.decode_codes(tokenizer.quantize(tokenizer.encode(images)).codes)
        errors.append((made - images).square().mean().item())
    assert errors[1] == pytest.approx(errors[0], rel=0.05)  # the codebook moves a little in a step
    assert errors[2] < 0.9 * errors[0]

    folder = config.folder.parent
    wider = replace(deeper.tokenizer, hidden_channels=48)
    with_fewer_blocks = replace(config, start_from=folder / "deeper/tokenizer.safetensors")
    for refused, said in (
        (replace(deeper, tokenizer=wider), r"start_from: .* has another shape"),
        (with_fewer_blocks, r"start_from: .* has another shape"),
        (replace(deeper, finetune_decoder=first), r"give one of them"),
    ):
        with pytest.raises(TrainingError, match=said):
            train_tokenizer(replace(refused, folder=folder / "refused"))
