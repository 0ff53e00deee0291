"""A fair share of the time for every stage, however long its calls are."""

import time
from collections.abc import Sequence

from models.stage import Stage
from workers.engine.jobs import Running


def call_stages(groups: Sequence[tuple[Stage, Sequence[Running]]]) -> None:
    """Give the samples of each stage a call, and those of a cheap one more, up to what the dearest took.

    So codes that are drawn in hundreds of short calls don't wait for a long call of others each time. A
    stage has no more calls once one of its samples is done, so that the next can join.
    """
    spent_s = [_call(stage, group) for stage, group in groups]
    for (stage, group), call_s in zip(groups, spent_s, strict=True):
        total_s = call_s
        while total_s + call_s <= max(spent_s) and all(running.is_under_way for running in group):
            total_s += _call(stage, group)


def _call(stage: Stage, group: Sequence[Running]) -> float:
    """Give a stage one call; return how long it took, in seconds."""
    began_s = time.perf_counter()
    stage.step([running.sample for running in group], group[0].job.served.run)
    for running in group:
        running.job.num_turns += 1
        running.job.num_together += len(group)
    return time.perf_counter() - began_s
