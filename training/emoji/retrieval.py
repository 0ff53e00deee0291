"""Whether the judge finds an image's emoji among the real pictures of a style."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.data.caption_line import CaptionSplit
from training.emoji.dataset import EmojiDataset
from training.emoji.judge import Judgement


@dataclass(frozen=True)
class Retrieval:
    """Share of num_queries whose emoji comes first, and among the first five, of num_candidates."""

    num_queries: int
    num_candidates: float
    recall_at_1: float
    recall_at_5: float

    @property
    def chance_at_5(self) -> float:
        return min(1.0, 5 / self.num_candidates)


@dataclass(frozen=True)
class Query:
    """An image, by its row in a judgement, that should find an emoji among the real ones of a style."""

    row: int
    code_point: str
    style: str
    judgement: Judgement


class Gallery:
    """The real images of every style."""

    def __init__(self, data: EmojiDataset, real: Judgement) -> None:
        self._rows: dict[str, list[int]] = defaultdict(list)
        self._place: dict[tuple[str, str], int] = {}
        for row, code_point in enumerate(data.code_points):
            style = data.style_of(row)
            self._place[style, code_point] = len(self._rows[style])
            self._rows[style].append(row)
        self._real = real

    def retrieve(self, queries: Sequence[Query]) -> Retrieval:
        """Rank all real images of each query's style by their likeness to it."""
        ranks, sizes = [], []
        for query in queries:
            candidates = self._real.embeddings[self._rows[query.style]]  # (M, E)
            likeness = candidates @ query.judgement.embeddings[query.row]  # (M,)
            true = likeness[self._place[query.style, query.code_point]]
            ranks.append(int((likeness > true).sum()))
            sizes.append(len(candidates))
        found = torch.tensor(ranks or [10**9]).double()
        return Retrieval(
            num_queries=len(queries),
            num_candidates=sum(sizes) / max(1, len(sizes)),
            recall_at_1=(found < 1).double().mean().item(),
            recall_at_5=(found < 5).double().mean().item(),
        )


def split_queries(data: EmojiDataset, split: CaptionSplit, judgement: Judgement) -> list[Query]:
    """Return the images judged, one for each caption of ``data``, of one of its splits."""
    return [Query(row, data.code_points[row], data.style_of(row), judgement) for row in data.rows(split)]


def other_style_queries(data: EmojiDataset, real: Judgement) -> list[Query]:
    """Return the training images of each held-out pair's emoji as queries for the pair."""
    rows_of = defaultdict(list)
    for row in data.rows("train"):
        rows_of[data.code_points[row]].append(row)
    return [
        Query(row, data.code_points[pair], data.style_of(pair), real)
        for pair in data.rows("held_out")
        for row in rows_of[data.code_points[pair]]
    ]
