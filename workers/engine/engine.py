"""Continuous batching: samples of many jobs, each at its own step, advanced together.

A job is a list of samples; each walks a path of stages; ``step`` gives every stage that has samples one
batched call. Samples start and end between steps, so no request waits for the end of another. What a stage
computes is the model's business (``models/stage.py``), what a file looks like its medium's
(``models/media``); the engine knows neither.

No sample's bytes depend on the batch it was computed in: its noise comes from (seed, index) alone, and calls
have numbers of rows that were proven to agree bit for bit (``workers/engine/seed_promise.py``).
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import get_args

import torch

from models.pipeline import Pipeline
from models.stage import Capturing, Stage
from workers.compute import Finished, Preview, Slots, Work
from workers.engine.jobs import Job, Running, Served, finish, make_job
from workers.engine.lanes import Lanes
from workers.engine.memory import FEW, measure_fit, slots_that_fit
from workers.engine.previews import PreviewTimer
from workers.engine.rows import RowBatches
from workers.engine.seed_promise import ROWS_PER_SAMPLE, SeedPromise
from workers.engine.shares import call_stages
from workers.engine.warm_up import first_request, start_and_step, walk
from workers.messages import Priority, Progress, SeedVerdict

logger = logging.getLogger(__name__)

PRIORITIES: tuple[Priority, ...] = get_args(Priority)
_SHARE_OF_PARKED = 4  # once they have been parked for long, batch jobs get one in so many steps


class Engine:
    """Computes jobs of all pipelines, at most ``max_batch_size`` samples at once. One thread uses it.

    While there are interactive jobs, the samples of batch jobs are parked where they are; but when they have
    been for ``ageing_s``, they get every fourth step. Without a ``promise``, calls have whatever number of
    rows is at hand.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        max_batch_size: int = 32,
        *,
        promise: SeedPromise | None = None,
        lanes: Lanes | None = None,
        previews: PreviewTimer | None = None,
        ageing_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_batch_size = max_batch_size
        self._promise = promise or SeedPromise("off")
        self._lanes_given = lanes
        self._lanes: dict[torch.device, Lanes] = {}
        self._served: dict[str, Served] = {}
        for name, pipeline in pipelines.items():
            self._serve(name, pipeline)
        self._jobs: dict[str, Job] = {}
        self._starting: dict[Priority, deque[Job]] = {priority: deque() for priority in PRIORITIES}
        self._running: list[Running] = []
        self._timer = previews or PreviewTimer()
        self._previews: dict[str, Preview] = {}
        self._ageing_s = ageing_s
        self._clock = clock
        self._parked_at: float | None = None
        self._num_steps_shared = 0

    @property
    def device(self) -> str:
        """What it computes on."""
        return ", ".join(sorted(map(str, self._lanes)))

    @property
    def free_slots(self) -> Slots:
        """How many samples could start now."""
        num_taken = Counter(running.priority for running in self._running)
        for priority, starting in self._starting.items():
            num_taken[priority] += sum(len(job.samples) - job.num_started for job in starting)
        capacity = min(self._max_batch_size, sum(served.num_slots for served in self._served.values()))
        if not self._served:  # what comes is only to be refused
            capacity = self._max_batch_size
        return Slots(*(max(0, capacity - num_taken[priority]) for priority in PRIORITIES))

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._jobs

    @property
    def needs_check(self) -> bool:
        """Whether the seed promise is still to be checked for a pipeline."""
        return self._promise.needs_check

    @property
    def check_progress(self) -> float:
        """How much of the check of the seed promise is over, from 0 to 1."""
        return self._promise.share_done

    def check_seeds(self, budget_s: float) -> None:
        """Go on with the check of the seed promise, for about so long."""
        self._promise.advance(budget_s)

    def seed_verdicts(self) -> Mapping[str, SeedVerdict]:
        """What the check has found, by pipeline."""
        return self._promise.verdicts()

    def warm_up(self) -> None:
        """Measure how many samples of each pipeline fit in memory, and compute what requests will ask for.

        So the first request is as quick as the next.
        """
        for name in list(self._served):
            for _ in self._warm_up(name):
                pass

    def add(self, name: str, pipeline: Pipeline) -> Iterator[None]:
        """Take a pipeline in while others run, in slices that go between steps; it serves after the last.

        Where there is one of this name, jobs that it has begun end with it.
        Raises: what its first calls raise; then there is none of this name.
        """
        try:
            self._serve(name, pipeline)
            yield
            yield from self._warm_up(name)
        except Exception:
            self.remove(name)
            raise

    def remove(self, name: str) -> None:
        """Let go of a pipeline; jobs that it has begun keep it until they have ended."""
        self._served.pop(name, None)
        self._promise.forget(name)

    def _serve(self, name: str, pipeline: Pipeline) -> None:
        if pipeline.device not in self._lanes:
            self._lanes[pipeline.device] = self._lanes_given or Lanes.for_device(pipeline.device)
        kinds = len(PRIORITIES)  # samples of one kind may be parked
        stage = pipeline.prior.make_stage(1) if pipeline.prior is not None else None
        num_slots = slots_that_fit(stage, pipeline.device, self._max_batch_size, kinds)
        self._served[name] = Served(
            pipeline,
            pipeline.make_stages(kinds * num_slots),
            RowBatches(ROWS_PER_SAMPLE * num_slots, self._lanes[pipeline.device]),
            num_slots,
        )
        self._watch(name)

    def _warm_up(self, name: str) -> Iterator[None]:
        served = self._served[name]
        pipeline = served.pipeline
        if pipeline.prior is None:
            return
        probe = partial(start_and_step, pipeline)
        few = 2 if self._jobs else FEW  # which those that run wait for
        num_slots = yield from measure_fit(probe, pipeline.device, served.num_slots, few)
        if num_slots != served.num_slots:
            served = self._served[name] = Served(pipeline, served.stages, served.run, num_slots)
            self._watch(name)
        logger.info("pipeline=%s up to %d samples at once", name, num_slots)
        yield
        if isinstance(served.stages.sample, Capturing):
            served.stages.sample.capture()
            yield
        job = make_job(Work("warm-up", first_request(pipeline)), served)
        yield from walk(job.path, job.samples, served.run)

    def _watch(self, name: str) -> None:
        """Let the calls of a pipeline's prior have numbers of rows that keep the seed promise."""
        served = self._served[name]
        stage = served.stages.sample
        if stage is not None:
            lanes = self._lanes[served.pipeline.device]
            full_rows = ROWS_PER_SAMPLE * -(-served.num_slots // lanes.count)
            self._promise.watch(name, served.pipeline, stage, full_rows, lanes)

    @torch.inference_mode()
    def admit(self, work: Sequence[Work]) -> None:
        """Take jobs in, also more than there are free slots. Their pipelines must be the engine's."""
        for item in work:
            job = make_job(item, self._served[item.request.pipeline])
            self._jobs[job.id] = job
            self._starting[job.priority].append(job)

    def drop(self, job_ids: Collection[str]) -> None:
        """Forget jobs; of these nothing comes."""
        for job_id in job_ids:
            job = self._jobs.pop(job_id, None)
            self._previews.pop(job_id, None)
            if job is not None:
                self._timer.forget(job_id, job.samples)
        for priority, starting in self._starting.items():
            self._starting[priority] = deque(job for job in starting if job.id not in job_ids)
        kept = []
        for running in self._running:
            if running.job.id in job_ids:
                running.stage.release(running.sample)
            else:
                kept.append(running)
        self._running = kept

    def progress(self) -> Mapping[str, Progress]:
        """How far the jobs are whose progress is worth telling: calls of all of their samples."""
        done = {job.id: job.calls_before for job in self._jobs.values()}
        for running in self._running:
            if running.stage.reports_progress:
                done[running.job.id] += running.sample.calls_done
        return {
            job.id: Progress(step=done[job.id], total=len(job.samples) * job.num_calls // job.num_counted)
            for job in self._jobs.values()
            if job.num_calls
        }

    def previews(self) -> Mapping[str, Preview]:
        """Return what running jobs that asked for it are on the way to, as made since the last call."""
        previews, self._previews = self._previews, {}
        return previews

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Give every stage that has samples one call, and return the jobs that have ended.

        Paths are lined up at their ends, so that one that begins with a stage more still shares the others.
        """
        turn = self._whose_turn()
        self._start_waiting(turn)
        longest = max((running.num_left for running in self._active(turn)), default=0)
        for num_left in range(longest, 0, -1):
            call_stages(list(self._by_stage(turn, num_left)))
            # What is done here goes on to the next stage at once.
            self._running = [
                each for each in self._running if each.priority != turn or not self._has_ended(each, num_left)
            ]
        self._make_previews(turn)
        ended = [job for job in self._jobs.values() if job.has_ended]
        finished = [finish(job) for job in ended]
        self.drop({job.id for job in ended})
        return finished

    def _whose_turn(self) -> Priority:
        """Return whose samples the next step is for."""
        if len({job.priority for job in self._jobs.values()}) < len(PRIORITIES):
            self._parked_at = None
            return next((job.priority for job in self._jobs.values()), "interactive")
        now = self._clock()
        if self._parked_at is None:
            self._parked_at = now
        if now - self._parked_at < self._ageing_s:
            return "interactive"
        self._num_steps_shared += 1
        return "batch" if self._num_steps_shared % _SHARE_OF_PARKED == 0 else "interactive"

    def _active(self, turn: Priority) -> list[Running]:
        return [running for running in self._running if running.priority == turn]

    def _start_waiting(self, turn: Priority) -> None:
        """Fill free slots, one sample of each waiting job in turn, so that small jobs pass large ones."""
        active, starting = self._active(turn), self._starting[turn]
        num_active = len(active)
        num_running = Counter(running.job.request.pipeline for running in active)
        of_full_pipelines = []
        while starting and num_active < self._max_batch_size:
            job = starting.popleft()
            name = job.request.pipeline
            if num_running[name] >= job.served.num_slots:
                of_full_pipelines.append(job)
                continue
            num_running[name] += 1
            num_active += 1
            running = Running(job, job.samples[job.num_started])
            _start(running)
            self._running.append(running)
            job.num_started += 1
            if job.num_started < len(job.samples):
                starting.append(job)
        starting.extendleft(reversed(of_full_pipelines))

    def _by_stage(self, turn: Priority, num_left: int) -> Iterator[tuple[Stage, list[Running]]]:
        """Yield each stage at this place of a path with the samples there, as many as it takes at once."""
        groups: dict[int, list[Running]] = {}
        for running in self._active(turn):
            if running.num_left != num_left:
                continue
            group = groups.setdefault(id(running.stage), [])
            if len(group) < running.stage.max_samples:
                group.append(running)
        for group in groups.values():
            yield group[0].stage, group

    def _has_ended(self, running: Running, num_left: int) -> bool:
        """Move a sample on that is done with its stage there; say whether that was its last."""
        job, sample, stage = running.job, running.sample, running.stage
        is_done = sample.error is not None or sample.calls_done == stage.num_calls(sample)
        if running.num_left != num_left or not is_done:
            return False
        if stage.reports_progress:
            job.calls_before += sample.calls_done
        stage.release(sample)
        if sample.error is None and num_left > 1:
            running.position += 1
            sample.calls_done = 0
            _start(running)
            return False
        job.num_ended += 1
        return True

    def _make_previews(self, turn: Priority) -> None:
        """Show what some samples are on the way to. Nothing here changes or fails a job."""
        asked = [
            (running.job.id, running.sample)
            for running in self._active(turn)
            if running.job.request.preview and running.is_under_way
        ]
        chosen = {sample: job_id for job_id, sample in self._timer.choose(asked)} if asked else {}
        if not chosen:
            return
        began_s = self._timer.clock()
        longest = max(running.num_left for running in self._active(turn))
        stages = chain.from_iterable(self._by_stage(turn, num_left) for num_left in range(longest, 0, -1))
        for stage, group in stages:
            shown = [running for running in group if running.sample in chosen]
            latents = stage.preview([running.sample for running in shown]) if shown else None
            if latents is None:
                continue
            served = shown[0].job.served
            signals = served.stages.decode.decode_latents(latents, served.run)
            if signals is None:
                logger.warning("pipeline=%s no previews this time", served.pipeline.spec.name)
                continue
            for running, signal in zip(shown, signals.cpu().numpy(), strict=True):
                array = served.medium.from_signal(signal)
                sample = running.sample
                self._previews[chosen[sample]] = Preview(
                    sample.index, sample.calls_done, served.medium.name, array
                )
        self._timer.spent(self._timer.clock() - began_s)


def _start(running: Running) -> None:
    """Let a sample into its stage, and count its calls where they are told."""
    running.stage.start(running.sample)
    if running.stage.reports_progress:
        running.job.num_calls += running.stage.num_calls(running.sample)
        running.job.num_counted += 1
