"""diffusers' ``DiTPipeline`` behind LitServe with its dynamic batching: each request gets a PNG."""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from fastapi import Response
from litserve_server import serve
from PIL import Image


class GenerateAPI(litserve.LitAPI):
    """Generates the images of a batch of requests together, those of the same number of steps."""

    def __init__(self, folder: Path, num_threads: int, max_batch_size: int, batch_timeout_s: float) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout_s, api_path="/generate")
        self.folder = folder
        self.num_threads = num_threads

    def setup(self, device: str) -> None:
        torch.set_num_threads(self.num_threads)
        self.pipeline = load(self.folder).to(device)
        self.pipeline.set_progress_bar_config(disable=True)

    def predict(self, requests: Sequence[dict[str, Any]]) -> list[Image.Image]:
        of_steps: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            of_steps.setdefault(request["num_steps"], []).append(index)
        images: dict[int, Image.Image] = {}
        for num_steps, indices in of_steps.items():
            chosen = [requests[index] for index in indices]
            made = self.pipeline(
                class_labels=[each["class_label"] for each in chosen],
                guidance_scale=4.0,
                generator=[torch.Generator().manual_seed(each["seed"]) for each in chosen],
                num_inference_steps=num_steps,
            ).images
            images.update(zip(indices, made, strict=True))
        return [images[index] for index in range(len(requests))]

    def encode_response(self, image: Image.Image) -> Response:
        written = io.BytesIO()
        image.save(written, "PNG")
        return Response(written.getvalue(), media_type="image/png")


def load(folder: Path) -> DiTPipeline:
    """Return a pipeline in bfloat16: its transformer, its scheduler, a decoder of the kind of TAESD."""
    return DiTPipeline(
        transformer=DiTTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16),
        vae=AutoencoderTiny.from_pretrained(folder / "vae", torch_dtype=torch.bfloat16),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
    )


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", type=Path, help="the folder that diffusers saved")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, required=True)
    parser.add_argument("--batch-timeout-s", type=float, default=0.05)
    asked = parser.parse_args()
    api = GenerateAPI(asked.pipeline, asked.threads, asked.max_batch_size, asked.batch_timeout_s)
    serve(api, asked.port, "cpu")


if __name__ == "__main__":
    main()
