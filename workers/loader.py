"""Which pipelines are in a worker's memory: a thread of its own loads them and lets go of them.

A pipeline is loaded at the start, because an administrator asked for it (then it is pinned), or because a job
waits for it. Jobs are claimed only for what is loaded: so one that waits for a load is any worker's, and a
worker that dies while it loads loses none. When memory is full, the least recently used goes: never a pinned
one, and never one with jobs in flight. It is closed first, so that these end and no more come; of one that is
always busy only once a job has waited TURN_S for another.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import redis

from models.options import ConfigError
from workers.backoff import Backoff
from workers.catalog import CatalogEntry
from workers.compute import Models
from workers.in_flight import InFlight
from workers.metrics import LOAD_SECONDS, LOADS, UNLOADS
from workers.pipeline_folders import PipelineFolders, without_paths
from workers.queue.consumer import Consumer, Wanted
from workers.residents import MAX_TRIES, Resident, next_to_go

logger = logging.getLogger(__name__)

TICK_S = 0.25
TURN_S = 5.0  # what a job waits at most while another worker, or another pipeline's jobs, could go first


Compute = Callable[[Iterator[None]], None]


class LoadError(Exception):
    """A pipeline that can't be loaded; the message is for clients."""


class Loader:
    """Keeps in memory what is wanted. ``start`` and ``stop`` are its owner's; the rest is its thread's.

    compute: runs slices on the compute thread to their end, and raises what they raise. loaded: what the
    engine has already, with its bytes; failed: why others could not be loaded.
    """

    def __init__(
        self,
        consumer: Consumer,
        in_flight: InFlight,
        models: Models,
        folders: PipelineFolders,
        compute: Compute,
        *,
        max_bytes: int | None = None,
        loaded: dict[str, tuple[CatalogEntry, int]],
        failed: dict[str, str],
    ) -> None:
        self._consumer = consumer
        self._in_flight = in_flight
        self._models = models
        self._folders = folders
        self._compute = compute
        self._max_bytes = max_bytes
        self._orders: dict[str, int] | None = None  # the last that was heeded, by pipeline
        self._residents = {entry.spec.name: Resident(entry) for entry in folders.catalog.entries}
        for name, (entry, num_bytes) in loaded.items():
            self._residents[name].loaded, self._residents[name].num_bytes = entry, num_bytes
        for name, reason in failed.items():
            self._residents[name].failed(reason)
        self._refused: set[str] = set()  # pipelines whose jobs this worker takes to fail them
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._tell()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Load nothing more; what is being read at the moment is forgotten."""
        self._has_ended.set()

    def _run(self) -> None:
        backoff = Backoff()
        while not self._has_ended.wait(TICK_S):
            try:
                self.tick()
                backoff.reset()
            except redis.RedisError as error:
                logger.warning("can't see which pipelines are wanted: %s", type(error).__name__)
                backoff.wait()
            except Exception:
                logger.exception("loader")
                backoff.wait()

    def tick(self) -> None:
        """Take up what has changed; then let go of what must go, and load at most one pipeline."""
        self._folders.refresh()
        self._take_up(self._folders.catalog.entries)
        self._heed(self._consumer.orders())
        for claim in self._in_flight.all():
            if claim.request.pipeline in self._residents:
                self._residents[claim.request.pipeline].used_at = time.monotonic()
        self._tell()
        self._let_go()
        self._load_next()

    # --- what is wanted --------------------------------------------------------------------------------

    def _take_up(self, entries: Iterable[CatalogEntry]) -> None:
        """Follow the folder."""
        there = {entry.spec.name: entry for entry in entries}
        for name, entry in there.items():
            resident = self._residents.setdefault(name, Resident(entry))
            if resident.entry.stamp != entry.stamp or resident.is_gone:
                resident.entry, resident.is_gone = entry, False
                resident.forget_failures()
        for name, resident in list(self._residents.items()):
            resident.is_gone = name not in there
            if resident.is_gone and resident.loaded is None:
                del self._residents[name]

    def _heed(self, orders: dict[str, tuple[str, int]]) -> None:
        """Follow orders. Those that stood before the start only pin: it has followed the others."""
        is_first, heeded = self._orders is None, self._orders or {}
        is_new = {name: number for name, (_, number) in orders.items()} != heeded
        self._orders = {name: number for name, (_, number) in orders.items()}
        for name, resident in self._residents.items():
            what, number = orders.get(name, ("", 0))
            resident.is_pinned = what == "load"
            if is_new and resident.has_failed and not is_first:  # there may be room for it now
                resident.forget_failures()
            if is_first or heeded.get(name, 0) == number:
                continue
            if what == "load":
                resident.is_closed = False
                if resident.loaded is None:
                    resident.forget_failures()
                    self._consumer.end_load(name, resident.entry.stamp, is_loaded=True)
            elif what == "unload":
                resident.is_closed = resident.loaded is not None

    def _load_next(self) -> None:
        """Load one that is wanted: changed, pinned, or by a job that waits."""
        now = time.monotonic()
        missing = [each for each in self._residents.values() if each.loaded is None and not each.is_gone]
        wanted: dict[str, Wanted] = {}
        if missing and self._consumer.phase == "ready":
            names = [each.name for each in missing]
            wanted = {each.pipeline: each for each in self._consumer.wanted(names, TURN_S)}
        self._refused = {
            each.name
            for each in missing
            if each.has_failed and each.name in wanted and not wanted[each.name].is_taken
        }
        self._tell()
        changed = [each for each in self._residents.values() if each.is_stale and not each.is_gone]
        pinned = [each for each in missing if each.is_pinned]
        asked = [self._residents[name] for name in wanted]
        for resident in (*changed, *pinned, *asked):
            if resident.has_failed or now < resident.try_at:
                continue
            wait = wanted.get(resident.name)  # for one that has changed, jobs may wait that are not told
            is_urgent = resident.is_pinned or wait is None or wait.waited_s >= TURN_S
            if self._load(resident, is_urgent=is_urgent):
                return

    # --- loading ---------------------------------------------------------------------------------------

    def _load(self, resident: Resident, *, is_urgent: bool) -> bool:
        """Load a pipeline, unless there is no room for it yet; say whether it was tried."""
        entry, name = resident.entry, resident.name
        began_s = time.monotonic()
        is_begun = False
        try:
            if not self._make_room(resident, self._models.estimated_bytes(entry), is_urgent=is_urgent):
                return False
            is_begun = True
            num_died = self._consumer.begin_load(name, entry.stamp)
            if num_died >= MAX_TRIES:
                raise LoadError(f"{num_died} workers died while they loaded it")
            resident.is_loading = True
            self._tell()
            logger.info("pipeline=%s loading", name)
            model = self._models.read(entry)
            # It may be larger than its files; of free memory, it has taken its share by now.
            has_room = self._max_bytes is None or self._make_room(
                resident, model.num_bytes, is_urgent=is_urgent
            )
            if not has_room:
                resident.try_at = time.monotonic() + TURN_S
                return True
            resident.loaded, resident.num_bytes = None, 0  # one of before is not served any more
            self._compute(self._models.add(name, model))
        except redis.RedisError:
            raise
        except Exception as error:  # the boundary of a pipeline: no other is harmed
            self._note_failure(resident, error)
        else:
            resident.loaded, resident.num_bytes = entry, model.num_bytes
            resident.is_closed, resident.used_at = False, time.monotonic()
            resident.forget_failures()
            seconds = time.monotonic() - began_s
            self._consumer.meter.count(LOADS, 1, name, "loaded")
            self._consumer.meter.observe(LOAD_SECONDS, seconds)
            logger.info("pipeline=%s loaded: %d bytes in %.2f s", name, resident.num_bytes, seconds)
        finally:
            resident.is_loading = False
            self._tell()
            if is_begun:
                self._consumer.end_load(name, entry.stamp, is_loaded=resident.loaded is not None)
        self._consumer.wake_up()
        return True

    def _note_failure(self, resident: Resident, error: Exception) -> None:
        is_told = isinstance(error, LoadError | ConfigError)
        reason = (
            str(error) if is_told else f"{type(error).__name__} while it was loaded; see the worker's log"
        )
        resident.failed(without_paths(reason, resident.entry.folder), for_good=isinstance(error, LoadError))
        if resident.num_tries >= MAX_TRIES:
            resident.is_closed = resident.loaded is not None  # it has changed: what was before goes
        self._consumer.meter.count(LOADS, 1, resident.name, "failed")
        told = "given up" if resident.num_tries >= MAX_TRIES else "to be tried again"
        logger.error(
            "pipeline=%s could not be loaded, %s: %s",
            resident.name,
            told,
            error,
            exc_info=None if is_told else error,
        )

    def _make_room(self, resident: Resident, num_bytes: int, *, is_urgent: bool) -> bool:
        """Let go of others until so many bytes fit, and say whether they do by now.

        Raises: LoadError when they never will.
        """
        others = [each for each in self._residents.values() if each is not resident]
        while not self._fits(resident, num_bytes):
            busy = {claim.request.pipeline for claim in self._in_flight.all()}
            going = next_to_go(others, busy, may_close_busy=is_urgent)
            if going is None:
                loaded = [each for each in others if each.loaded is not None]
                if any(not each.is_pinned for each in loaded):
                    return False  # they have jobs
                if self._max_bytes is None:
                    return True  # nothing is left but to try
                kept = sum(each.num_bytes for each in loaded)
                raise LoadError(
                    f"it takes {num_bytes} bytes of the {self._max_bytes} that SMALTI_MAX_LOADED_BYTES"
                    f" allows, and pinned pipelines have {kept} of them"
                )
            going.is_closed = True
            self._tell()
            self._let_go()
            if going.loaded is not None:
                return False  # its jobs end first
        return True

    def _fits(self, resident: Resident, num_bytes: int) -> bool:
        if self._max_bytes is not None:
            held = sum(each.num_bytes for each in self._residents.values() if each is not resident)
            return held + num_bytes <= self._max_bytes
        free = self._models.free_bytes()
        return free is None or num_bytes <= free

    # --- letting go ------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        """Remove what is closed, or gone from the folder, and has no jobs any more."""
        for resident in list(self._residents.values()):
            if resident.loaded is None or not (resident.is_closed or resident.is_gone):
                continue
            if any(claim.request.pipeline == resident.name for claim in self._in_flight.all()):
                continue
            self._compute(self._models.remove(resident.name))
            resident.loaded, resident.num_bytes, resident.is_closed = None, 0, False
            self._consumer.meter.count(UNLOADS, 1, resident.name)
            logger.info("pipeline=%s unloaded", resident.name)
            if resident.is_gone:
                del self._residents[resident.name]
            self._tell()

    # --- telling ---------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Say what this worker takes jobs for; once back, none is claimed that isn't in flight by now."""
        served = [each for each in self._residents.values() if not (each.has_failed or each.is_gone)]
        open_now = [each.name for each in self._residents.values() if each.is_open]
        loads: dict[str, Any] = {each.name: each.load for each in self._residents.values()}
        with self._in_flight.claiming:
            self._consumer.pipelines = tuple(each.name for each in served)
            self._consumer.open = (*open_now, *sorted(self._refused))
        if loads != self._consumer.loads:
            self._consumer.loads = loads
