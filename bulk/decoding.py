"""Pictures read and decoded ahead of the tokenizer: a thread that reads, and processes that decode."""

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from bulk.items import Item
from bulk.pictures import Box, crop_boxes, read_picture, unpack
from models.media.base import InvalidMedia
from models.media.image import ImageSpec
from models.media.isolated import Call, IsolatedProcess, Limits
from models.media.pixels import Pixels

logger = logging.getLogger(__name__)

_MAX_CHUNK_BYTES = 16 * 2**20  # of files; one more may come on top
_CHUNKS_AHEAD_PER_PROCESS = 2
_TICK_S = 0.2
_MAX_FAILURES_IN_A_ROW = 3


@dataclass(frozen=True)
class Crop:
    """What was cut out of a picture, and its pixels (H, W, C)."""

    box: Box
    pixels: Pixels


@dataclass(frozen=True)
class Picture:
    """A picture that was read: its crops, or why there are none.

    size: of the upright picture. sha256: of its file's bytes; None where they could not be read.
    """

    id: str
    sha256: bytes | None = None
    size: tuple[int, int] | None = None
    crops: Sequence["Crop"] = ()
    error: str | None = None


@dataclass(frozen=True)
class Chunk:
    """Pictures of one shard that follow each other; first: the number of the first among all items."""

    first: int
    pictures: Sequence[Picture]


@dataclass
class Times:
    """Seconds that stages were busy: reading in one thread, decoding in all processes together."""

    reading_s: float = 0.0
    decoding_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _Read:
    item_id: str
    data: bytes
    error: str | None = None


class Prefetch:
    """Chunks of decoded pictures, in order, some of them ahead; memory stays within bounds.

    items: numbers and items, read in this order. A chunk has at most ``chunk_size`` of them, and none of two
    shards of ``shard_size`` items.
    """

    def __init__(
        self,
        items: Iterable[tuple[int, Item]],
        spec: ImageSpec,
        *,
        chunk_size: int,
        shard_size: int,
        num_processes: int,
        num_crops: int = 1,
    ) -> None:
        self._items = items
        self._spec = spec
        self._num_crops = num_crops
        self._chunk_size = chunk_size
        self._shard_size = shard_size
        self._free: queue.SimpleQueue[IsolatedProcess] = queue.SimpleQueue()
        self._processes = [IsolatedProcess(Limits()) for _ in range(num_processes)]
        for process in self._processes:
            self._free.put(process)
        self._threads = ThreadPoolExecutor(num_processes, "decode")
        self._ahead: queue.Queue[Future[Chunk] | BaseException | None] = queue.Queue(
            _CHUNKS_AHEAD_PER_PROCESS * num_processes
        )
        self._is_stopped = False
        self._reader = threading.Thread(target=self._read, name="read", daemon=True)
        self.times = Times()

    def __enter__(self) -> "Prefetch":
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopped = True
        for process in self._processes:
            process.end()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._reader.join()

    def __iter__(self) -> Iterator[Chunk]:
        """Raises: what reading the sources raises."""
        while (ahead := self._ahead.get()) is not None:
            if isinstance(ahead, BaseException):
                raise ahead
            yield ahead.result()

    def _read(self) -> None:
        try:
            for first, reads in self._chunks():
                self._put(self._threads.submit(self._decode, first, reads))
            self._put(None)
        except _Stopped:
            pass
        except BaseException as error:  # told where the chunks are waited for
            self._put_last(error)

    def _chunks(self) -> Iterator[tuple[int, list[_Read]]]:
        """Yield the bytes of files, as many as a chunk takes."""
        reads: list[_Read] = []
        first = num_bytes = 0
        began_s = time.perf_counter()
        for number, item in self._items:
            is_next = number == first + len(reads) and number % self._shard_size
            if reads and (not is_next or len(reads) == self._chunk_size or num_bytes > _MAX_CHUNK_BYTES):
                self.times.reading_s += time.perf_counter() - began_s
                yield first, reads
                reads, num_bytes, began_s = [], 0, time.perf_counter()
            if not reads:
                first = number
            try:
                read = _Read(item.id, item.read())
            except InvalidMedia as error:
                read = _Read(item.id, b"", str(error))
            num_bytes += len(read.data)
            reads.append(read)
        self.times.reading_s += time.perf_counter() - began_s
        if reads:
            yield first, reads

    def _put(self, ahead: "Future[Chunk] | None") -> None:
        while not self._is_stopped:
            try:
                return self._ahead.put(ahead, timeout=_TICK_S)
            except queue.Full:
                continue
        raise _Stopped

    def _put_last(self, error: BaseException) -> None:
        while not self._is_stopped:
            try:
                return self._ahead.put(error, timeout=_TICK_S)
            except queue.Full:
                continue

    def _decode(self, first: int, reads: Sequence[_Read]) -> Chunk:
        spec = self._spec
        shape = (spec.width_px, spec.height_px, spec.channels, self._num_crops)
        calls = [(read_picture, (read.data, *shape)) for read in reads if read.error is None]
        process = self._free.get()
        began_s = time.perf_counter()
        try:
            results = iter(list(self._results(process, calls)))  # to its end, or the process is ended
            pictures = [self._picture(read, results) for read in reads]
        finally:
            self._free.put(process)
            with self.times.lock:
                self.times.decoding_s += time.perf_counter() - began_s
        return Chunk(first, pictures)

    def _picture(self, read: _Read, results: Iterator[Pixels | InvalidMedia]) -> Picture:
        if read.error is not None:
            return Picture(read.item_id, error=read.error)
        sha256 = hashlib.sha256(read.data).digest()
        result = next(results)
        if isinstance(result, InvalidMedia):
            return Picture(read.item_id, sha256, error=str(result).removeprefix("image: "))
        spec = self._spec
        size, pixels = unpack(result, spec.width_px, spec.height_px, spec.channels)
        boxes = crop_boxes(size, spec.width_px, spec.height_px, sha256, self._num_crops)
        return Picture(read.item_id, sha256, size, list(map(Crop, boxes, pixels)))

    def _results(self, process: IsolatedProcess, calls: Sequence[Call]) -> Iterator[Pixels | InvalidMedia]:
        """Yield the results of calls; one that fails in an unforeseen way fails alone, too.

        Raises: RuntimeError when several in a row do, or the decoders were ended.
        """
        num_done = num_failed = 0
        while num_done < len(calls):
            try:
                for result in process.results(calls[num_done:]):
                    num_done, num_failed = num_done + 1, 0
                    yield result
            except RuntimeError:
                num_failed += 1
                if self._is_stopped or num_failed == _MAX_FAILURES_IN_A_ROW:
                    raise
                logger.exception("a picture failed alone")
                num_done += 1
                yield InvalidMedia("the decoder failed on it")


class _Stopped(Exception):
    """Nobody waits for chunks any more."""
