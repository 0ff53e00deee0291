"""What the service answers. Fields that a newer server adds are kept, and none of them is refused."""

import base64
import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from smalti.errors import MissingPackage, NoBytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

Data = bytes  # what a class with a method of that name calls them
ENDS = frozenset({"succeeded", "failed", "cancelled"})


class Model(BaseModel):
    """Immutable, and open to fields that this version doesn't know."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ErrorInfo(Model):
    """Why a job, or one of its samples, failed: ``code`` is stable, ``message`` is for people."""

    code: str
    message: str


class Viewable(ABC):
    """Something with a file's bytes that a person can look at."""

    @abstractmethod
    def bytes(self) -> Data:
        """Return the file's bytes."""

    def image(self) -> "Image":
        """Return a Pillow image.

        Raises: MissingPackage where Pillow is not installed.
        """
        return image_of(self.bytes())

    def show(self) -> None:
        """Open the picture in the system's viewer, or show it in a notebook.

        Raises: MissingPackage where it is neither a notebook nor is Pillow installed.
        """
        if not _show_in_notebook(self):
            self.image().show()

    def _repr_png_(self) -> Data | None:  # notebooks call it
        media_type = str(getattr(self, "media_type", None))
        try:
            if media_type == "image/png":
                return self.bytes()
            return png_of(self.image()) if media_type.startswith("image/") else None
        except (NoBytes, MissingPackage):
            return None


class Output(Model, Viewable):
    """One output of a job: what it is and, once fetched, its bytes; or the ``error`` that it has instead."""

    sample: int
    medium: str
    url: str | None = None
    media_type: str | None = None
    num_bytes: int | None = None
    sha256: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    duration_s: float | None = None
    sample_rate_hz: int | None = None
    num_frames: int | None = None
    text: str | None = None
    psnr_db: float | None = None
    error: ErrorInfo | None = None

    _data: Data | None = PrivateAttr(default=None)

    def bytes(self) -> Data:
        """Return the file's bytes.

        Raises: NoBytes where the output failed, has none, or was not fetched.
        """
        if self._data is not None:
            return self._data
        if self.error is not None:
            raise NoBytes(f"sample {self.sample} failed: {self.error.message} ({self.error.code})")
        if self.url is None:
            raise NoBytes(f"sample {self.sample} has no file: an answer to encode has codes alone")
        raise NoBytes(f"sample {self.sample} was not fetched: call client.fetch(result) first")

    @property
    def is_fetched(self) -> bool:
        """Whether its bytes are here."""
        return self._data is not None

    def take(self, data: Data) -> None:
        """Keep the bytes that were fetched for it."""
        self._data = data

    def save(self, path: str | Path) -> Path:
        """Write the file, and return where it is. A path without a suffix gets that of its format.

        Raises: NoBytes; OSError.
        """
        path = Path(path)
        if not path.suffix and self.media_type:
            path = path.with_suffix("." + self.media_type.rpartition("/")[2])
        path.write_bytes(self.bytes())
        return path


class Codes(Model):
    """Codes and all that is needed to read them: keep it whole, ``decode`` takes it back.

    codes: (sample, *grid), or (sample, codebook, *grid) with several codebooks; None for a failed sample.
    """

    codes: list[Any] | None = None
    grid: tuple[int, ...]
    num_codebooks: int = 1
    codebook_size: int
    tokenizer: str
    precision: str = "float32"
    lengths: list[int | None] | None = None

    def numpy(self) -> "npt.NDArray[np.unsignedinteger[Any]]":
        """Return the codes of all samples as one array, uint16 where the codebook allows it.

        Raises: MissingPackage where NumPy is not installed; NoBytes naming samples that failed.
        """
        try:
            import numpy
        except ImportError:
            raise MissingPackage("numpy", "codes as arrays") from None
        codes = self.codes or []
        failed = [index for index, each in enumerate(codes) if each is None]
        if failed:
            raise NoBytes(f"samples {failed} failed and have no codes: read .codes, which has None for them")
        return numpy.asarray(codes, "uint16" if self.codebook_size <= 2**16 else "uint32")


class Latents(Model):
    """Latents of all samples, of a pipeline without codes; ``decode`` takes them back.

    shape: (sample, d, *grid), NaN for a failed sample. url: None where several jobs made them.
    """

    url: str | None = None
    shape: tuple[int, ...]
    dtype: str = "float32"
    tokenizer: str
    lengths: list[int | None] | None = None

    _data: Data | None = PrivateAttr(default=None)

    def bytes(self) -> Data:
        """Return the NumPy file of all samples.

        Raises: NoBytes where it was not fetched.
        """
        if self._data is None:
            raise NoBytes("these latents were not fetched: call client.fetch(result) first")
        return self._data

    @property
    def is_fetched(self) -> bool:
        """Whether they are here."""
        return self._data is not None

    def take(self, data: Data) -> None:
        """Keep the file that was fetched."""
        self._data = data

    def numpy(self) -> "npt.NDArray[np.float32]":
        """Return the latents of all samples as one array.

        Raises: NoBytes; MissingPackage where NumPy is not installed.
        """
        try:
            import numpy
        except ImportError:
            raise MissingPackage("numpy", "latents as arrays") from None
        array: npt.NDArray[np.float32] = numpy.load(io.BytesIO(self.bytes()), allow_pickle=False)
        return array


class Result(Model):
    """What came of a job. ``seed`` is None where nothing was sampled."""

    operation: str
    pipeline: str
    seed: int | None = None
    outputs: list[Output] = []
    codes: Codes | None = None
    latents: Latents | None = None
    warnings: list[str] = []


class Progress(Model):
    """Calls of the model, done and to do, over all samples of a job."""

    step: int
    total: int


class JobMetrics(Model):
    """What a job that has ended took.

    queue_s, compute_s: until a worker took it, and with that worker. num_steps: calls of the model over all
    samples. batch_size: how many samples, of all jobs, shared a call in the mean; None where none ran.
    """

    queue_s: float
    compute_s: float
    total_s: float
    num_steps: int
    batch_size: float | None = None


class WebhookState(Model):
    """How far the telling of a job's end is: pending, delivered, or failed, where it was given up."""

    status: str
    attempts: int = 0


class Preview(Model, Viewable):
    """What an output would be if it ended now. ``image`` is a small file in base64."""

    index: int
    step: int
    media_type: str
    image_base64: str = Field(alias="image")

    def bytes(self) -> Data:
        """Return the file's bytes."""
        return base64.b64decode(self.image_base64)


class JobInfo(Model):
    """A job as the service last told it. metrics, expires_at: once it has ended."""

    id: str
    operation: str
    status: str
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    num_tries: int = 0
    queue_position: int | None = None
    progress: Progress | None = None
    seconds_left: float | None = None
    events_url: str | None = None
    result: Result | None = None
    error: ErrorInfo | None = None
    metrics: JobMetrics | None = None
    expires_at: datetime | None = None
    webhook: WebhookState | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDS


class File(Model):
    """A file on the service, which requests may name instead of having it in them."""

    id: str
    name: str = ""
    media_type: str = ""
    num_bytes: int = 0
    sha256: str = ""
    created_at: datetime | None = None
    expires_at: datetime | None = None


class RowCounts(Model):
    """How many rows of a batch are in each state."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


class BatchInfo(Model):
    """A batch as the service last told it."""

    id: str
    status: str
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    num_rows: int = 0
    counts: RowCounts = RowCounts()
    rows_per_s: float | None = None
    seconds_left: float | None = None
    error: ErrorInfo | None = None
    waiting: str | None = None
    webhook: WebhookState | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDS

    @property
    def num_ended(self) -> int:
        """Rows that have ended, however that was."""
        return self.counts.succeeded + self.counts.failed + self.counts.cancelled


class BatchRow(Model):
    """A row of a batch that has ended: its ``result``, or the ``error`` that it has instead.

    id: the one that it was sent with; None for a line that names none. line: of the input, from 1. seq: which
    one it was to end.
    """

    id: str | None = None
    line: int
    seq: int
    status: str
    result: Result | None = None
    error: ErrorInfo | None = None


class Event(Model):
    """Something that happened to a job: ``kind`` is status, progress or preview.

    job: the whole job, in the event that ends it.
    """

    id: str = ""
    kind: str
    status: str
    progress: Progress | None = None
    preview: Preview | None = None
    job: JobInfo | None = None


class MediumInfo(Model):
    """A medium that a pipeline makes or takes."""

    medium: str
    formats: tuple[str, ...] = ()
    sizes: Mapping[str, Any] = {}


class OptionInfo(Model):
    """An option of a pipeline: its default, and its type and bounds as JSON Schema."""

    default: Any = None
    json_schema: Mapping[str, Any] = {}


class PipelineLoad(Model):
    """Whether a worker has a pipeline in memory."""

    worker: str = ""
    state: str = ""
    num_bytes: int = 0
    error: str | None = None


class Pipeline(Model):
    """What a pipeline takes and makes, and where it is loaded."""

    name: str
    makes: tuple[MediumInfo, ...] = ()
    takes: Mapping[str, MediumInfo] = {}
    needs_source: bool = False
    labels: Mapping[str, tuple[str, ...]] = {}
    takes_prompt: bool = False
    options: Mapping[str, OptionInfo] = {}
    grid: tuple[int, ...] = ()
    codebook_size: int | None = None
    num_codebooks: int | None = None
    tokenizer: str | None = None
    latents: tuple[int, ...] | None = None
    has_posterior: bool = False
    is_pinned: bool = False
    loads: tuple[PipelineLoad, ...] = ()
    example: Mapping[str, Any] | None = None


class Health(Model):
    """Whether a job would be worked on now, and why not."""

    is_ready: bool = True
    detail: str = ""
    num_ready_workers: int = 0
    num_draining_workers: int = 0
    queue_length: int = 0
    is_paused: bool = False


def image_of(data: bytes) -> "Image":
    """Return a file as a Pillow image, read whole.

    Raises: MissingPackage where Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingPackage("pillow", "pictures as images") from None
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def png_of(image: "Image") -> bytes:
    """Return a Pillow image as a PNG: quickly, without loss."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _show_in_notebook(viewable: Viewable) -> bool:
    """Show it where a notebook runs this process, and say whether one does."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython.display import display

    display(viewable)
    return True
