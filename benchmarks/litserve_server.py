"""The same model behind LitServe with its dynamic batching: the answer to each request is a PNG."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve
import torch
from fastapi import Response

from models.media.image import IMAGE, Pixels
from models.options import requested
from models.pipeline import Pipeline
from models.stage import Sample, SampleSpec, run_path


class GenerateAPI(litserve.LitAPI):
    """Generates the images of a batch of requests together, those of the same number of steps."""

    def __init__(self, folder: Path, num_threads: int, max_batch_size: int, batch_timeout_s: float) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout_s, api_path="/generate")
        self.folder = folder
        self.num_threads = num_threads

    def setup(self, device: str) -> None:
        torch.set_num_threads(self.num_threads)
        self.pipeline = Pipeline.load(self.folder, device=device)
        for _ in range(2):
            self.predict([{"class_label": 0, "seed": 0}] * self.max_batch_size)

    def predict(self, requests: Sequence[dict[str, Any]]) -> list[Pixels]:
        default = requested(self.pipeline.spec.defaults)["num_steps"]
        of_steps: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            of_steps.setdefault(request.get("num_steps", default), []).append(index)
        images: dict[int, Pixels] = {}
        for num_steps, indices in of_steps.items():
            made = self.generate([requests[index] for index in indices], num_steps)
            images.update(zip(indices, made, strict=True))
        return [images[index] for index in range(len(requests))]

    @torch.inference_mode()
    def generate(self, requests: Sequence[dict[str, Any]], num_steps: int) -> list[Pixels]:
        """Return the images of requests for as many steps."""
        pipeline = self.pipeline
        assert pipeline.prior is not None
        options = pipeline.spec.defaults.changed({"num_steps": num_steps})
        null = pipeline.prior.null_conditions()
        samples = [
            Sample(
                SampleSpec(each["seed"], options, pipeline.conditions({"class": each["class_label"]}), null)
            )
            for each in requests
        ]
        run_path(pipeline.make_stages(len(samples)).path("generate"), samples)
        return [IMAGE.from_signal(each.value.cpu().numpy()) for each in samples if each.value is not None]

    def encode_response(self, pixels: Pixels) -> Response:
        return Response(IMAGE.save(pixels, "png"), media_type="image/png")


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", type=Path, help="the pipeline's folder")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-batch-size", type=int, default=32)
    parser.add_argument("--batch-timeout-s", type=float, default=0.05)
    arguments = parser.parse_args()
    api = GenerateAPI(
        arguments.pipeline, arguments.threads, arguments.max_batch_size, arguments.batch_timeout_s
    )
    serve(api, arguments.port, arguments.device)


def serve(api: litserve.LitAPI, port: int, device: str) -> None:
    """Serve until SIGTERM, by one process of HTTP and one that computes."""
    server = litserve.LitServer(api, accelerator=device.partition(":")[0], timeout=300, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        pretty_logs=False,
    )


if __name__ == "__main__":
    main()
