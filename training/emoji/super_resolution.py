"""Measure a pipeline that draws small emoji larger, beside what takes no model: interpolation.

The pictures are those that training never showed, made small by means over areas.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.autoencoders.enlarging import enlarge
from models.conditioning import Conditions, stack_conditions
from models.media.image import ImageSpec
from models.pipeline import Pipeline
from training.data.dataset import scale_to_unit
from training.emoji.dataset import EmojiDataset, load_emoji
from training.emoji.judge import JudgeTraining, judge_images, load_or_train_judge
from training.emoji.retrieval import Gallery, Retrieval, other_style_queries, split_queries
from training.emoji.super_resolution_card import render_super_resolution, save_enlarged
from training.evaluation.images import generate, reconstruct
from training.evaluation.lite0_scores import mean_perceptual_distance
from training.evaluation.metrics import measure_squared_errors, psnr_db
from training.evaluation.options import EvaluationOptions
from training.evaluation.preflight import load_pipeline
from training.evaluation.scores import Report, score_reconstructions
from training.evaluation.verdict import Verdict
from training.lite0 import Lite0
from training.small_pictures import shrink

BICUBIC, LANCZOS = "bicubic", "Lanczos"
DRAWN, DRAWN_AS_TOLD = "**drawn** from the picture alone", "**drawn**, told its name and style"
RECONSTRUCTED = "real, through the tokenizer"
_FILTERS = {BICUBIC: Image.Resampling.BICUBIC, LANCZOS: Image.Resampling.LANCZOS}


@dataclass(frozen=True)
class EnlargedScores:
    """Of pictures that were made larger, against the real ones; means over all.

    source_psnr_db: of these, made small again, against the small pictures. perceptual_distance: see
    ``lite0.perceptual_distance``. retrieval: whether the judge finds the emoji among all real pictures of its
    style, of which the true one is one.
    """

    psnr_db: float
    source_psnr_db: float
    perceptual_distance: float
    retrieval: Retrieval


@dataclass(frozen=True, kw_only=True)
class SuperResolutionEvaluation(Report):
    """All that ``evaluate_super_resolution`` measures; scores by how pictures were made larger."""

    num_images: int
    source_size_px: int
    scores: dict[str, EnlargedScores]
    judge_verdict: Verdict


def evaluate_super_resolution(
    folder: Path, options: EvaluationOptions, judge_training: JudgeTraining | None = None
) -> SuperResolutionEvaluation:
    """Measure the pipeline in ``folder`` and write metrics.json, samples.png and the model card there.

    Raises: ConfigError when the pipeline can't be measured; DataError when the data set has labels that it
    doesn't know.
    """
    lite0 = Lite0.load()
    pipeline = load_pipeline(folder, options)
    spec = pipeline.spec.takes["source"]
    assert isinstance(spec, ImageSpec)
    channels, image_size_px, _ = pipeline.tokenizer.signal_shape
    data = load_emoji(
        Path(options.data), image_size_px=image_size_px, channels=channels, label_names=pipeline.spec.labels
    )
    training = judge_training or JudgeTraining()
    judge = load_or_train_judge(
        data.where("train"), training, folder=options.classifier_folder, device=options.device
    )
    real = judge_images(judge, data.images)
    gallery, others = Gallery(data, real), other_style_queries(data, real)
    new = data.where("held_out", "unseen")
    small = shrink(new.images, spec.width_px)
    made = {name: interpolate(small, image_size_px, filter) for name, filter in _FILTERS.items()}
    started = time.perf_counter()
    made[DRAWN] = draw_larger(pipeline, small, options)
    seconds_per_image = (time.perf_counter() - started) / len(new)
    made[DRAWN_AS_TOLD] = draw_larger(pipeline, small, options, new)
    reconstructed = reconstruct(pipeline.tokenizer, new.images, options)
    made[RECONSTRUCTED] = reconstructed.images

    def score(images: Tensor) -> EnlargedScores:
        judged = judge_images(judge, images)
        queries = [query for split in ("held_out", "unseen") for query in split_queries(new, split, judged)]
        again = shrink(_as_bytes(images), spec.width_px)
        return EnlargedScores(
            psnr_db=_mean_psnr_db(scale_to_unit(images), scale_to_unit(new.images)),
            source_psnr_db=_mean_psnr_db(scale_to_unit(again), scale_to_unit(small)),
            perceptual_distance=mean_perceptual_distance(lite0, images, new.images),
            retrieval=gallery.retrieve(queries),
        )

    found = gallery.retrieve(others)
    report = Report.begin(
        pipeline,
        options,
        seconds_per_image=seconds_per_image,
        tokenizer=score_reconstructions(
            new.images, reconstructed.images, reconstructed.codes, pipeline.tokenizer.config.codebook_size
        ),
        searched=None,
    )
    evaluation = SuperResolutionEvaluation(
        **vars(report),
        num_images=len(new),
        source_size_px=spec.width_px,
        scores={name: score(images) for name, images in made.items()},
        judge_verdict=Verdict.of(found.recall_at_1, 1 / max(1, found.num_candidates), found.num_queries),
    )
    columns = {"source": made[BICUBIC], BICUBIC: made[BICUBIC], "drawn": made[DRAWN], "real": new.images}
    columns["source"] = interpolate(small, image_size_px, Image.Resampling.NEAREST)
    save_enlarged(folder / "samples.png", new, columns)
    evaluation.save(folder, render_super_resolution(evaluation))
    return evaluation


def draw_larger(
    pipeline: Pipeline, small: Tensor, options: EvaluationOptions, told: EmojiDataset | None = None
) -> Tensor:
    """Return pictures (N, C, H, W) float in [-1, 1] drawn from small ones, uint8, as the service does.

    told: the emoji that they show, whose names and styles the pipeline is to be told.
    """

    @torch.inference_mode()
    def conditions_of(rows: slice) -> Conditions:
        signals = enlarge(scale_to_unit(small[rows]).to(options.device), pipeline.tokenizer.signal_shape[1:])
        asked = pipeline.conditions().expand(len(signals))
        if told is not None:
            pairs = zip(told.names[rows], told.styles[rows].tolist(), strict=True)
            asked = stack_conditions([pipeline.conditions({"style": style}, name) for name, style in pairs])
        return replace(asked, source=pipeline.tokenizer.encode(signals))

    return generate(pipeline, len(small), conditions_of, options)


def interpolate(small: Tensor, size_px: int, filter: Image.Resampling) -> Tensor:
    """Return pictures (N, C, H, W) uint8 of ``size_px`` a side, as Pillow enlarges small ones."""

    def one(picture: Tensor) -> Tensor:
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        return torch.from_numpy(np.array(image.resize((size_px, size_px), filter))).permute(2, 0, 1)

    return torch.stack([one(picture) for picture in small])


def _mean_psnr_db(images: Tensor, others: Tensor) -> float:
    return psnr_db(measure_squared_errors(images, others)).mean().item()


def _as_bytes(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
