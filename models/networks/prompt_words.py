"""A prompt as the tokens of a text encoder, and what of it the encoder has no words for."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer as WordTokenizer

from models.networks.symbol_names import spell_symbols


@dataclass(frozen=True)
class ReadPrompt:
    """Ids of tokens, its end marks among them; whether any were cut; and what was not understood.

    is_understood: whether anything else is in it; also of a blank prompt, which asks for nothing.
    """

    ids: tuple[int, ...] = ()
    is_cut: bool = False
    not_understood: tuple[str, ...] = ()
    is_understood: bool = True


class PromptReader:
    """Splits prompts into at most ``max_tokens`` tokens of an English vocabulary."""

    def __init__(self, words: WordTokenizer, max_tokens: int) -> None:
        words.no_truncation()
        words.no_padding()
        self.words = words
        self._max_tokens = max_tokens
        self._unknown = words.token_to_id(getattr(words.model, "unk_token", None) or "")

    def read(self, prompt: str) -> ReadPrompt:
        """Return what a prompt says; of one too long, the last tokens before its end mark are cut.

        Symbols stand for their names where the prompt has something unknown. What has words for everything
        is read as it stands, so that its bytes stay what they were.
        """
        prompt = prompt.strip()
        if not prompt:
            return ReadPrompt()
        found = self.words.encode(prompt)
        if self._unknown in found.ids:
            prompt = spell_symbols(prompt, lambda symbol: self.words.token_to_id(symbol) is not None)
            found = self.words.encode(prompt)
        ids, places, limit = found.ids, found.offsets, self._max_tokens
        if is_cut := len(ids) > limit:
            ids, places = [*ids[: limit - 1], ids[-1]], places[: limit - 1]
        return ReadPrompt(tuple(ids), is_cut, *self._understand(prompt, ids, places))

    def _understand(
        self, prompt: str, ids: Sequence[int], places: Sequence[tuple[int, int]]
    ) -> tuple[tuple[str, ...], bool]:
        """Return what of a prompt was not understood, and whether anything else is in it.

        Letters of other scripts are in an English vocabulary, but their words are not.
        """
        spans: list[tuple[int, int]] = []
        has_tokens = is_understood = False
        for token, (start, end) in zip(ids, places, strict=False):
            part = prompt[start:end]
            has_tokens |= bool(part)  # an end mark has none
            if token != self._unknown and not any(map(_is_foreign, part)):
                is_understood |= any(unicodedata.category(each)[0] in "LNS" for each in part)
            elif spans and not any(map(str.isalnum, prompt[spans[-1][1] : start])):
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
        if not has_tokens:
            return (prompt,), False
        return tuple(prompt[start:end] for start, end in spans), is_understood or not spans


def _is_foreign(character: str) -> bool:
    """Whether a character is a letter, or a mark on one, of another script than English has."""
    is_of_a_word = character.isalpha() or unicodedata.category(character).startswith("M")
    return character > "\u036f" and is_of_a_word and "LATIN" not in unicodedata.name(character, "")
