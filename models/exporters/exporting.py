"""A pipeline in another project's format: whole, or not at all."""

import shutil
import tempfile
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError

from models.exporters.base import Exporter, ExportFailed
from models.exporters.diffusers_index import write_index
from models.pipeline import Pipeline
from models.registry import EXPORTERS, load_kind
from models.spec import SPEC_FILE, PipelineSpec


def export_pipeline(folder: Path, out: Path, format_name: str = "diffusers", only: str | None = None) -> None:
    """Write the autoencoder and the prior of the pipeline in ``folder`` to the new folder ``out``.

    only: "autoencoder" or "prior", where the format can't hold both.

    Raises: ConfigError where there is no exporter of a kind, or one finds what its format can't hold; then
    nothing is written.
    """
    if out.exists():
        raise ExportFailed(f"--out: {out} is there already; take another name")
    exporters = _exporters(PipelineSpec.load(folder / SPEC_FILE), format_name, only)
    pipeline = Pipeline.load(folder, dtype=torch.float32)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            built = Path(scratch) / out.name
            built.mkdir()
            for exporter in exporters:
                exporter(pipeline, built)
            if format_name == "diffusers":
                write_index(pipeline.spec, built)
            built.rename(out)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(out.parent).free if out.parent.is_dir() else 0
        reason = " ".join(str(error).split())
        raise ExportFailed(
            f"{out} was not written, and nothing of it is left: {reason}; {free:,} bytes are free there"
        ) from error


def _exporters(spec: PipelineSpec, format_name: str, only: str | None) -> list[Exporter]:
    """Return the exporters of a pipeline's kinds.

    Raises: ConfigError naming the kinds that the format holds.
    """
    if format_name not in EXPORTERS:
        raise ExportFailed(f"--format: known are {', '.join(EXPORTERS)}, got {format_name!r:.60}")
    held = EXPORTERS[format_name]
    kinds = {"autoencoder": spec.autoencoders[spec.medium.medium], "prior": spec.prior}
    wanted = {part: kind for part, kind in kinds.items() if kind is not None and only in (None, part)}
    if not wanted:
        raise ExportFailed(f"--only: the pipeline {spec.name} has no {only}")
    for part, kind in wanted.items():
        if kind not in held:
            others = [other for other, its in kinds.items() if its in held]
            more = f"; --only {others[0]} leaves it out" if others and only is None else ""
            raise ExportFailed(
                f"{format_name} has no layout for the {part}, which is of the kind {kind!r}, only for"
                f" {', '.join(held) or 'none'}{more}"
            )
    return [cast(Exporter, load_kind(held, kind)) for kind in wanted.values()]
