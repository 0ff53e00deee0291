"""Measure any pipeline: ``smalti evaluate weights/fashion-mnist``."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from models.config import ConfigError, PipelineConfig
from training.evaluate import EvaluationOptions, evaluate
from training.evaluate_prompts import evaluate_prompts
from training.model_card import render_evaluation
from training.prompt_card import render_prompt_evaluation


def measure(folder: Path, asked: dict[str, Any]) -> str:
    """Measure the pipeline in ``folder`` by its kind, write the results there, return the card's section.

    asked: the fields of ``EvaluationOptions`` that are not to be the defaults; a pipeline that takes prompts
    is measured on runs/emoji by default.
    Raises: ConfigError when the folder holds no pipeline or an option is bad.
    """
    takes_prompt = PipelineConfig.load(folder / "pipeline.json").prior.takes_prompt
    defaults = {"data": "runs/emoji"} if takes_prompt else {}
    try:
        options = TypeAdapter(EvaluationOptions).validate_python(defaults | asked)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc'])) or 'options'}: {first['msg']}") from error
    if takes_prompt:
        return render_prompt_evaluation(evaluate_prompts(folder, options))
    return render_evaluation(evaluate(folder, options))
