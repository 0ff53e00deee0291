"""Encode requests: from an image to its nearest codes at once, or to searched ones over many steps."""

import base64
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from models.code_search import CALLS_PER_SWEEP, CodeSearch
from models.pipeline import Pipeline
from workers.errors import ServiceError
from workers.images import load_image
from workers.messages import CodesInfo, EncodeRequest, Progress
from workers.row_batches import TOKENIZER_ROWS, RowBatches
from workers.work import Finished


@dataclass
class _Search:
    """A request with an effort: always of one image, so that its bits stay the same."""

    job_id: str
    pipeline: Pipeline
    image: Tensor  # (1, C, H, W) in [-1, 1]
    num_calls: int
    calls_done: int = 0
    search: CodeSearch | None = None  # from the first call on
    codes: Tensor | None = None  # (1, h, w), the best so far

    def improve(self) -> Tensor:
        """Return the codes (1, h, w) after the next call; whoever counts it keeps them."""
        if self.search is None:
            self.search = CodeSearch(self.pipeline.tokenizer, self.image)
        return self.search.improve(self.search.nearest if self.codes is None else self.codes, self.calls_done)


class Encoding:
    """The encode requests of all pipelines, each image of which takes a slot of the engine's."""

    def __init__(
        self, pipelines: Mapping[str, Pipeline], batches: Mapping[str, RowBatches], max_batch_size: int
    ) -> None:
        self._pipelines = pipelines
        self._batches = batches
        self._max_batch_size = max_batch_size
        self._waiting: deque[tuple[str, EncodeRequest]] = deque()
        self._searching: deque[_Search] = deque()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._searching)

    def admit(self, job_id: str, request: EncodeRequest) -> None:
        """Take a resolved request in."""
        self._waiting.append((job_id, request))

    def drop(self, job_ids: Collection[str]) -> None:
        """Forget jobs; of these nothing comes."""
        self._waiting = deque(item for item in self._waiting if item[0] not in job_ids)
        self._searching = deque(each for each in self._searching if each.job_id not in job_ids)

    def progress(self) -> dict[str, Progress]:
        """How far the searches are."""
        return {each.job_id: Progress(step=each.calls_done, total=each.num_calls) for each in self._searching}

    def step(self) -> list[Finished]:
        """Take a few searches a call further, encode a batch of images, and return the jobs that ended."""
        return self._search() + self._encode()

    def _search(self) -> list[Finished]:
        if not self._searching:
            return []
        pipeline = self._searching[0].pipeline
        of_pipeline = (each for each in self._searching if each.pipeline is pipeline)
        chosen = list(islice(of_pipeline, TOKENIZER_ROWS))
        name = pipeline.config.name
        codes, failures = self._batches[name].compute(
            lambda rows: torch.cat([chosen[row].improve() for row in rows]), len(chosen)
        )
        finished = []
        for row, each in enumerate(chosen):
            if row in failures:
                finished.append(Finished(each.job_id, name, error=failures[row]))
                continue
            assert codes is not None
            each.codes = codes[row, None]
            each.calls_done += 1
            if each.calls_done == each.num_calls:
                finished.append(Finished(each.job_id, name, codes=codes_info(pipeline, [codes[row].long()])))
        self.drop({each.job_id for each in finished})
        return finished

    def _encode(self) -> list[Finished]:
        """Turn a batch of images of one pipeline into codes, but those that a search begins for."""
        if not self._waiting:
            return []
        name = self._waiting[0][1].pipeline or ""
        pipeline = self._pipelines[name]
        of_pipeline = (item for item in self._waiting if item[1].pipeline == name)
        chosen = list(islice(of_pipeline, self._max_batch_size))
        config = pipeline.config.tokenizer
        self.drop({job_id for job_id, _ in chosen})
        finished, job_ids, images = [], [], []
        for job_id, request in chosen:
            try:
                data = base64.b64decode(request.image)
                pixels = load_image(data, config.image_size_px, config.image_channels)
            except ServiceError as error:
                finished.append(Finished(job_id, name, error=error))
                continue
            image = torch.tensor(pixels, device=pipeline.device).movedim(-1, 0).float() / 127.5 - 1
            if request.effort:
                num_calls = request.effort * CALLS_PER_SWEEP
                self._searching.append(_Search(job_id, pipeline, image[None], num_calls))
            else:
                job_ids.append(job_id)
                images.append(image)
        if not images:
            return finished
        batch = torch.stack(images)
        codes, failures = self._batches[name].compute(
            lambda rows: pipeline.tokenizer.quantize(pipeline.tokenizer.encode(batch[rows])).codes,
            len(images),
            TOKENIZER_ROWS,
        )
        for row, job_id in enumerate(job_ids):
            if row in failures:
                finished.append(Finished(job_id, name, error=failures[row]))
            elif codes is not None:
                finished.append(Finished(job_id, name, codes=codes_info(pipeline, [codes[row].long()])))
        return finished


def codes_info(pipeline: Pipeline, codes: list[Tensor]) -> CodesInfo:
    """Return grids of codes (h, w) as a client gets them."""
    config = pipeline.config
    return CodesInfo(
        codes=[grid.tolist() for grid in codes],
        grid=config.tokenizer.grid,
        codebook_size=config.tokenizer.codebook_size,
        tokenizer=config.tokenizer_fingerprint,
    )
