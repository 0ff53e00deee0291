"""Which numbers of rows a pipeline's calls may have, so that bytes don't depend on the batch.

Until the check of a pipeline has ended, every call is padded to the same full number of rows; from then on,
to the next number that was proven to agree with it. Verdicts are kept on disk, so that later starts cost
nothing.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import models
from models.pipeline import Pipeline
from models.stage import Caching, Stage
from workers.engine.lanes import Lanes
from workers.engine.memory import SHARE, free_bytes
from workers.engine.probes import bounded_probes, probe_calls
from workers.engine.seed_check import SeedCheck, Verdict, VerdictStore, verdict_key
from workers.messages import SeedVerdict

logger = logging.getLogger(__name__)

NUM_PROBES = 256  # rows, of every kind of calls: a number that differs does so in one of twelve or more
ROWS_PER_SAMPLE = 2  # of a prior, where guidance is applied


class SeedPromise:
    """Keeps the promise for the stages of one worker. One thread uses it.

    folder: where verdicts are kept. candidates: the numbers of rows to check; those of ``numbers_to_check``
    if left out.
    """

    def __init__(
        self,
        mode: Literal["on", "off"],
        folder: Path | None = None,
        *,
        num_probes: int = NUM_PROBES,
        candidates: Sequence[int] = (),
    ) -> None:
        self._mode = mode
        self._num_probes = num_probes
        self._candidates = tuple(candidates)
        self._store = None if folder is None else VerdictStore(folder)
        self._checks: dict[str, _PipelineCheck] = {}
        self._pending: list[str] = []

    def watch(self, name: str, pipeline: Pipeline, stage: Stage, full_rows: int, lanes: Lanes) -> None:
        """See to it that a stage's calls have numbers of rows that agree; ``full_rows`` is the largest."""
        is_captured = pipeline.device.type == "cuda"
        candidates = self._candidates or numbers_to_check(full_rows, is_captured=is_captured)
        check = _PipelineCheck(pipeline, stage, full_rows, lanes, self._num_probes, candidates)
        self._checks[name] = check
        if self._mode == "off":
            stage.fixed_rows = candidates if is_captured else None
            logger.warning("pipeline=%s seed promise off: bytes may depend on the batch", name)
            return
        found = self._store.read(check.key) if self._store else None
        if found is not None:
            self._settle(name, found)
            return
        stage.fixed_rows = (full_rows,)
        if name not in self._pending:
            self._pending.append(name)
        logger.info("pipeline=%s seed promise unchecked: full batches of %d rows until then", name, full_rows)

    def forget(self, name: str) -> None:
        """Let go of a pipeline."""
        self._checks.pop(name, None)
        if name in self._pending:
            self._pending.remove(name)

    @property
    def needs_check(self) -> bool:
        """Whether there is a pipeline without a verdict."""
        return bool(self._pending)

    @property
    def share_done(self) -> float:
        """How much of all checks is over, from 0 to 1."""
        shares = [each.share_done if name in self._pending else 1.0 for name, each in self._checks.items()]
        return sum(shares) / len(shares) if shares else 1.0

    def advance(self, budget_s: float) -> None:
        """Go on with the check of the first pipeline without a verdict, for about so long."""
        if not self._pending:
            return
        name = self._pending[0]
        check = self._checks[name]
        if not check.fits:
            self._pending.remove(name)
            logger.warning(
                "pipeline=%s seed promise unchecked: its %d probes want %s bytes, which are not free;"
                " full batches of %d rows",
                name, check.num_probes, f"{check.num_bytes:,}", check.full_rows,
            )  # fmt: skip
            return
        verdict = check.advance(budget_s)
        if verdict is not None:
            if self._store:
                self._store.write(check.key, verdict)
            self._settle(name, verdict)
        elif check.agreeing:
            check.stage.fixed_rows = check.agreeing  # what is proven so far serves already

    def verdicts(self) -> Mapping[str, SeedVerdict]:
        """Return what is known of each pipeline; the worker's name is for its caller to fill in."""
        return {name: self._verdict(name, check) for name, check in self._checks.items()}

    def _settle(self, name: str, verdict: Verdict) -> None:
        check = self._checks[name]
        check.verdict = verdict
        check.stage.fixed_rows = verdict.agreeing if verdict.is_kept else (check.full_rows,)
        if name in self._pending:
            self._pending.remove(name)
        level = logging.INFO if verdict.is_kept else logging.ERROR
        what = "kept" if verdict.is_kept else "BROKEN: full calls disagree with each other"
        differing = {rows: num for rows, num in verdict.num_differing.items() if num}
        logger.log(
            level, "pipeline=%s seed promise %s, with %s rows a call; others differ: %s",
            name, what, _ranges(verdict.agreeing), differing or "none",
        )  # fmt: skip

    def _verdict(self, name: str, check: "_PipelineCheck") -> SeedVerdict:
        rows = tuple(check.stage.fixed_rows or ())
        if self._mode == "off":
            return SeedVerdict(worker="", is_kept=False, how="off", rows=rows)
        if check.verdict is None:
            return SeedVerdict(worker="", is_kept=True, how="full_batches", rows=rows)
        return SeedVerdict(worker="", is_kept=check.verdict.is_kept, how="checked", rows=rows)


class _PipelineCheck:
    """The check of one pipeline: of every kind of calls that its stage makes."""

    def __init__(
        self,
        pipeline: Pipeline,
        stage: Stage,
        full_rows: int,
        lanes: Lanes,
        num_probes: int,
        candidates: Sequence[int],
    ) -> None:
        self.stage = stage
        self.full_rows = full_rows
        self.verdict: Verdict | None = None
        self._pipeline = pipeline
        self._lanes = lanes
        self.num_probes = bounded_probes(max(num_probes, 2 * full_rows), stage)
        self._candidates = candidates
        self._checks: list[SeedCheck] | None = None

    @property
    def key(self) -> str:
        """The name under which the verdict is kept."""
        assert self._pipeline.prior is not None
        settings: dict[str, str | int] = {
            "dtype": str(self._pipeline.dtype),
            "full_rows": self.full_rows,
            "num_probes": self.num_probes,
            "candidates": str(self._candidates),
            "code": _code_digest(),
        }
        return verdict_key(
            self._pipeline.prior_fingerprint,
            self._lanes.num_threads,
            self._pipeline.device,
            settings,
        )

    @property
    def num_bytes(self) -> int:
        """What the probes keep while they are checked, as far as it is much."""
        return self.num_probes * self.stage.bytes_per_sample if isinstance(self.stage, Caching) else 0

    @property
    def fits(self) -> bool:
        """Whether the probes have been made, or there is memory for them."""
        if self._checks is not None or not self.num_bytes:
            return True
        free = free_bytes(self._pipeline.device)
        return free is None or self.num_bytes <= SHARE * free

    @torch.inference_mode()
    def advance(self, budget_s: float) -> Verdict | None:
        if self._checks is None:
            self._checks = [
                SeedCheck(partial(_call, call), num_rows, self.full_rows, self._candidates, self._lanes)
                for call, num_rows in probe_calls(
                    self._pipeline, self.num_probes, (*self._candidates, self.full_rows)
                )
            ]
        *others, last = self._checks
        pending = next((check for check in others if check.verdict is None), last)
        pending.advance(budget_s)
        if last.verdict is None:
            return None
        verdict = _joined([check.verdict for check in self._checks])
        self._checks = None  # with the probes' memory
        return verdict

    @property
    def share_done(self) -> float:
        """How much of the check is over, from 0 to 1."""
        shares = [check.share_done for check in self._checks or ()]
        return sum(shares) / len(shares) if shares else 0.0

    @property
    def agreeing(self) -> tuple[int, ...]:
        """The numbers of rows that are proven so far, in calls of every kind."""
        found = [set(check.agreeing) for check in self._checks or ()]
        return tuple(sorted(set.intersection(*found))) if found else ()


def numbers_to_check(full_rows: int, *, is_captured: bool = False) -> tuple[int, ...]:
    """Return the numbers of rows to check: all up to 32, and from there on eight for each doubling.

    Where each is captured as a graph, fewer: two for each doubling.
    """
    num_dense, per_doubling = (2, 2) if is_captured else (32, 8)
    rows, found = 1, []
    while rows < full_rows:
        found.append(rows)
        rows += 1 if rows < num_dense else (1 << rows.bit_length()) // (2 * per_doubling)
    return (*found, full_rows)


def _call(call: Callable[[list[int]], Tensor], indices: Tensor) -> Tensor:
    return call(indices.tolist())


@cache
def _code_digest() -> str:
    """Return a digest of the sources of ``models``: another code may have other bits."""
    digest = hashlib.sha256()
    for path in sorted(Path(models.__file__ or "").parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _joined(verdicts: Sequence[Verdict | None]) -> Verdict:
    """Return the verdict of several checks: what agrees in all of them."""
    found = [verdict for verdict in verdicts if verdict is not None]
    first = found[0]
    return Verdict(
        agreeing=tuple(rows for rows in first.agreeing if all(rows in each.agreeing for each in found)),
        full_rows=first.full_rows,
        num_probes=sum(each.num_probes for each in found),
        num_differing={
            rows: sum(each.num_differing.get(rows, 0) for each in found) for rows in first.num_differing
        },
        seconds=round(sum(each.seconds for each in found), 2),
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Return "1-4, 6" for 1, 2, 3, 4, 6."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
