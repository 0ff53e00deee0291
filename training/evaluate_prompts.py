"""Measure a pipeline that takes prompts on a data set with captions, with a judge that had no part in it.

Two questions that memory can't answer: does it draw an emoji in a style in which it never saw that emoji
(held-out pairs), and does it draw emoji that it never saw in any style (unseen)? A generated image counts if
the judge finds the true emoji's real picture nearest to it, among all real pictures of the style asked for.
"""

import json
import logging
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from models.code_search import search_codes
from models.conditioning import stack_conditions
from models.config import ConfigError, Sampling
from models.pipeline import Pipeline
from training.classifier import (
    ClassifierTraining,
    classify,
    load_or_train_classifiers,
)
from training.data.captioned import Caption, CaptionedDataset, CaptionSplit, load_captioned
from training.data.dataset import ImageDataset, scale_to_unit
from training.evaluate import EvaluationOptions, reconstruct
from training.judge import Judgement, JudgeTraining, judge_images, load_or_train_judge
from training.metrics import frechet_distance, measure_statistics, nearest_distances
from training.model_card import write_card_section
from training.precision import autocast
from training.prompt_card import render_prompt_evaluation, save_pairs, save_prompts
from training.scores import TokenizerMetrics, score_reconstructions

logger = logging.getLogger(__name__)

STYLE_TRAINING = ClassifierTraining(
    architecture="residual", seed=1, num_epochs=30, batch_size=128, crop_padding_px=4, is_flipped=False
)
_SEARCHED_AT_ONCE = 16
FREE_PROMPTS = (
    "a blue apple", "a robot cat", "a smiling pizza", "a green heart", "a sad cloud", "a red car",
    "a golden crown", "a purple dragon", "a penguin with a hat", "a house in the snow", "a flying pig",
    "a pink elephant", "a cup of coffee", "a rocket in space", "an angry tomato", "a yellow flower",
    "a dog with sunglasses", "a blue book", "a happy sun", "a ghost", "a slice of cake", "a black cat",
    "a boat on the sea", "a treasure chest", "a wizard", "a strawberry ice cream", "a sleeping face",
    "a thumbs up", "a birthday cake", "a guitar on fire", "a frog prince", "a mountain at night",
    "a crying banana", "a white rabbit", "a broken heart", "a pirate", "a snowman", "a clock",
    "an astronaut dog", "the letter A",
)  # fmt: skip


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
class StyleScores:
    """Of one style: retrieval of held-out pairs, style accuracies of held-out pairs and unseen emoji.

    style_accuracy is of generated images, reconstructed_ of real ones through the tokenizer.
    """

    generated: Retrieval
    real_in_other_styles: Retrieval
    style_accuracy: float
    real_style_accuracy: float
    reconstructed_style_accuracy: float


@dataclass(frozen=True)
class PromptEvaluation:
    """All that ``evaluate_prompts`` measures.

    tokenizer and searched are of unseen images: of the codes nearest to their latents, and of those that were
    searched for with ``effort``.
    held_out and unseen are of generated images; real_in_other_styles has real pictures of the held-out pairs'
    emoji in the styles of training as queries. Fréchet distances are to the real held-out and unseen images:
    of as many real training images, of the same images through the tokenizer, and of generated ones. Nearest
    training images: the median distance of generated images over that of real held-out and unseen ones.
    """

    pipeline: str
    tokenizer_fingerprint: str
    data: str
    sampling: Sampling
    seed: int
    num_threads: int
    batch_size: int
    seconds_per_image: float
    tokenizer: TokenizerMetrics
    effort: int
    searched: TokenizerMetrics | None
    held_out: Retrieval
    real_in_other_styles: Retrieval
    unseen: Retrieval
    by_style: dict[str, StyleScores]
    style_accuracy: float
    real_style_accuracy: float
    reconstructed_style_accuracy: float
    frechet_distance: float
    frechet_distance_of_reconstructions: float
    frechet_distance_of_real: float
    nearest_train_ratio: float


def evaluate_prompts(
    folder: Path,
    options: EvaluationOptions,
    judge_training: JudgeTraining | None = None,
    style_training: ClassifierTraining | None = None,
) -> PromptEvaluation:
    """Measure the pipeline in ``folder`` and write metrics.json, the pictures and the model card there.

    Raises: ConfigError when the data set has other styles than the pipeline.
    """
    pipeline = Pipeline.load(folder, device=options.device)
    data = load_captioned(Path(options.data))
    if data.style_names != pipeline.config.style_names:
        raise ConfigError(
            f"the styles of {options.data} {data.style_names} are not the pipeline's "
            f"{pipeline.config.style_names}"
        )
    train, new = data.where("train"), data.where("held_out", "unseen")
    (style_classifier,) = load_or_train_classifiers(
        f"{Path(options.data).name}-styles",
        ImageDataset(train.images, train.styles, train.style_names),
        ImageDataset(new.images, new.styles, new.style_names),
        [style_training or STYLE_TRAINING],
        folder=options.classifier_folder,
        device=options.device,
    )
    judge = load_or_train_judge(
        train,
        judge_training or JudgeTraining(),
        folder=options.classifier_folder,
        device=options.device,
    )
    started = time.perf_counter()
    generated = generate_captions(pipeline, new.captions, new.style_names, options)
    seconds_per_image = (time.perf_counter() - started) / len(new)

    def is_in_style(images: Tensor) -> Tensor:
        return classify(style_classifier.model, images).logits.argmax(1) == new.styles  # (N,)

    real, made = judge_images(judge, data.images), judge_images(judge, generated)
    gallery = _Gallery(data, real)
    held_out, others = _queries(new, "held_out", made), _other_styles(data, real)
    train_rows, new_rows = data.rows("train"), data.rows("held_out", "unseen")
    generator = torch.Generator().manual_seed(options.seed)
    drawn = torch.tensor(train_rows)[torch.randperm(len(train_rows), generator=generator)[: len(new_rows)]]
    target = measure_statistics(real.features[new_rows])
    reconstructions = reconstruct(pipeline.tokenizer, data.images, options)
    reconstructed = judge_images(judge, reconstructions.images[drawn])
    in_style, real_in_style = is_in_style(generated), is_in_style(new.images)
    reconstructed_in_style = is_in_style(reconstructions.images[new_rows])
    unseen_rows = data.rows("unseen")
    evaluation = PromptEvaluation(
        pipeline=pipeline.config.name,
        tokenizer_fingerprint=pipeline.config.tokenizer_fingerprint,
        data=Path(options.data).name,
        sampling=options.sampling(pipeline.config.defaults),
        seed=options.seed,
        num_threads=torch.get_num_threads(),
        batch_size=options.batch_size,
        seconds_per_image=seconds_per_image,
        tokenizer=score_reconstructions(
            scale_to_unit(data.images[unseen_rows]),
            reconstructions.images[unseen_rows],
            reconstructions.codes,  # of all images: usage is of the whole set
            pipeline.tokenizer.config.codebook_size,
        ),
        effort=options.effort,
        searched=_score_searched(pipeline, data.images[unseen_rows], options) if options.effort else None,
        held_out=gallery.retrieve(held_out),
        real_in_other_styles=gallery.retrieve(others),
        unseen=gallery.retrieve(_queries(new, "unseen", made)),
        by_style={
            style: StyleScores(
                gallery.retrieve([query for query in held_out if query.style == style]),
                gallery.retrieve([query for query in others if query.style == style]),
                _share(in_style[new.styles == number]),
                _share(real_in_style[new.styles == number]),
                _share(reconstructed_in_style[new.styles == number]),
            )
            for number, style in enumerate(data.style_names)
            if any(query.style == style for query in others)
        },
        style_accuracy=_share(in_style),
        real_style_accuracy=_share(real_in_style),
        reconstructed_style_accuracy=_share(reconstructed_in_style),
        frechet_distance=frechet_distance(measure_statistics(made.features), target),
        frechet_distance_of_reconstructions=frechet_distance(
            measure_statistics(reconstructed.features), target
        ),
        frechet_distance_of_real=frechet_distance(measure_statistics(real.features[drawn]), target),
        nearest_train_ratio=_median_ratio(made.features, real.features[new_rows], real.features[train_rows]),
    )
    (folder / "metrics.json").write_text(json.dumps(asdict(evaluation), indent=2) + "\n")
    save_pairs(folder / "samples.png", new, generated)
    save_prompts(folder / "prompts.png", FREE_PROMPTS, *_generate_free(pipeline, options))
    write_card_section(folder / "README.md", evaluation.pipeline, render_prompt_evaluation(evaluation))
    logger.info("evaluated pipeline=%s", evaluation.pipeline)
    return evaluation


def _score_searched(pipeline: Pipeline, images: Tensor, options: EvaluationOptions) -> TokenizerMetrics:
    codes = []
    for batch in tqdm(scale_to_unit(images).split(_SEARCHED_AT_ONCE), desc="search codes", unit="batch"):
        with autocast(pipeline.device):
            codes.append(search_codes(pipeline.tokenizer, batch.to(pipeline.device), options.effort))
    decoded = torch.cat([pipeline.tokenizer.decode_codes(batch).cpu() for batch in codes])
    size = pipeline.tokenizer.config.codebook_size
    return score_reconstructions(scale_to_unit(images), decoded, torch.cat(codes), size)


def generate_captions(
    pipeline: Pipeline,
    captions: tuple[Caption, ...],
    style_names: tuple[str, ...],
    options: EvaluationOptions,
) -> Tensor:
    """Generate an image (N, C, H, W) float in [-1, 1] for each caption: its name, in its style."""
    asked = [(caption.name, style_names.index(caption.style)) for caption in captions]
    return _generate(pipeline, asked, options)


def _generate_free(pipeline: Pipeline, options: EvaluationOptions) -> tuple[Tensor, tuple[str, ...]]:
    """Return images of FREE_PROMPTS, each in the next style, and the styles' names."""
    names = pipeline.config.style_names
    styles = [number % len(names) for number in range(len(FREE_PROMPTS))]
    images = _generate(pipeline, list(zip(FREE_PROMPTS, styles, strict=True)), options)
    return images, tuple(names[style] for style in styles)


def _generate(pipeline: Pipeline, asked: list[tuple[str, int]], options: EvaluationOptions) -> Tensor:
    images = []
    starts = range(0, len(asked), options.batch_size)
    for index, start in enumerate(tqdm(starts, desc="generate", unit="batch")):
        batch = asked[start : start + options.batch_size]
        rows = [pipeline.conditions(prompt=prompt, style=style) for prompt, style in batch]
        made = pipeline.generate(
            stack_conditions(rows),
            seed=options.seed + index,
            sampling=options.sampling(pipeline.config.defaults),
            cache_interval=options.cache_interval or 1,
        )
        images.append(made.float().cpu())
    return torch.cat(images)


@dataclass(frozen=True)
class _Query:
    """An image, by its row in a judgement, that should find an emoji among the real ones of a style."""

    row: int
    code_point: str
    style: str
    judgement: Judgement


class _Gallery:
    """The real images of every style."""

    def __init__(self, data: CaptionedDataset, real: Judgement) -> None:
        self._rows: dict[str, list[int]] = defaultdict(list)
        self._place: dict[tuple[str, str], int] = {}
        for row, caption in enumerate(data.captions):
            self._place[caption.style, caption.code_point] = len(self._rows[caption.style])
            self._rows[caption.style].append(row)
        self._real = real

    def retrieve(self, queries: list[_Query]) -> Retrieval:
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
            recall_at_1=_share(found < 1),
            recall_at_5=_share(found < 5),
        )


def _queries(data: CaptionedDataset, split: CaptionSplit, judgement: Judgement) -> list[_Query]:
    """Return the images judged, one for each caption of ``data``, of one of its splits."""
    asked = ((row, data.captions[row]) for row in data.rows(split))
    return [_Query(row, caption.code_point, caption.style, judgement) for row, caption in asked]


def _other_styles(data: CaptionedDataset, real: Judgement) -> list[_Query]:
    """Return the training images of each held-out pair's emoji as queries for the pair."""
    rows_of = defaultdict(list)
    for row in data.rows("train"):
        rows_of[data.captions[row].code_point].append(row)
    return [
        _Query(row, caption.code_point, caption.style, real)
        for caption in data.where("held_out").captions
        for row in rows_of[caption.code_point]
    ]


def _median_ratio(features: Tensor, like: Tensor, train: Tensor) -> float:
    return float(nearest_distances(features, train).median() / nearest_distances(like, train).median())


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()
