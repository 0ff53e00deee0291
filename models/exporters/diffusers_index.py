"""``model_index.json``, by which diffusers loads the parts of a pipeline at once."""

import json
from pathlib import Path

from models.importers.sources import MODEL_INDEX
from models.spec import PipelineSpec

_PIPELINE = "DiTPipeline"
_PARTS = {"scheduler": "scheduler_config.json", "transformer": "config.json", "vae": "config.json"}
_LABEL_SET = "class"


def write_index(spec: PipelineSpec, folder: Path) -> None:
    """Write the index where the parts in ``folder`` are those of a ``DiTPipeline``; else they stand alone."""
    if not all((folder / part / config).is_file() for part, config in _PARTS.items()):
        return
    classes = {part: json.loads((folder / part / config).read_text()) for part, config in _PARTS.items()}
    index = {
        "_class_name": _PIPELINE,
        "_diffusers_version": classes["transformer"].get("_diffusers_version"),
        "id2label": {str(number): name for number, name in enumerate(spec.labels.get(_LABEL_SET, ()))},
        **{part: ["diffusers", said["_class_name"]] for part, said in classes.items()},
    }
    (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
