"""Measure any pipeline: ``smalti evaluate weights/fashion-mnist``."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from models.options import ConfigError
from models.spec import SPEC_FILE, PipelineSpec
from training.data.captioned import is_captioned, read_info
from training.evaluation.caption_card import render_caption_evaluation
from training.evaluation.evaluate import evaluate
from training.evaluation.evaluate_captions import evaluate_captions
from training.evaluation.model_card import render_evaluation
from training.evaluation.options import EvaluationOptions


def measure(folder: Path, given: dict[str, Any]) -> str:
    """Measure the pipeline in ``folder`` by its kind, write the results there, return the card's section.

    given: the fields of ``EvaluationOptions`` that are not to be the defaults.

    Raises: ConfigError when the folder holds no pipeline, or an option or the data set is bad.
    """
    spec = PipelineSpec.load(folder / SPEC_FILE)
    try:
        options = TypeAdapter(EvaluationOptions).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc'])) or 'options'}: {first['msg']}") from error
    is_of_emoji = is_captioned(Path(options.data)) and read_info(Path(options.data)).kind == "emoji"
    if spec.needs_source:
        from training.emoji.super_resolution import evaluate_super_resolution
        from training.emoji.super_resolution_card import render_super_resolution

        if not is_of_emoji:
            raise ConfigError(
                f"data: {spec.name} draws pictures larger, which is measured on emoji: give the folder of"
                f" `smalti data emoji`, got {options.data}"
            )
        return render_super_resolution(evaluate_super_resolution(folder, options))
    if not spec.takes_prompt:
        return render_evaluation(evaluate(folder, options))
    if not is_captioned(Path(options.data)):
        raise ConfigError(f"data: {spec.name} takes prompts: give a folder with captions, got {options.data}")
    if is_of_emoji:
        from training.emoji.card import render_emoji_evaluation
        from training.emoji.evaluate import evaluate_emoji

        return render_emoji_evaluation(evaluate_emoji(folder, options))
    return render_caption_evaluation(evaluate_captions(folder, options))
