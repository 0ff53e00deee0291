"""Every change of a job in Redis, each a Lua script in ``lua/``. Differences from RQ's own worker, and why:

- A script is atomic, so no death of a process, at any moment, leaves a job lost or with two results. RQ pops
  a job and registers it in two steps, and repairs what falls between.
- A claim has a number (``execution``) and a lease. A worker that no longer holds the number can't change the
  job.
- Leases are kept in a sorted set of ours; RQ's ``wip`` entries never expire, because RQ's own clean-up,
  which any reader of RQ's registries triggers, takes no lock and would run a job twice.
- Times that are compared come from the server's clock; the machines' clocks may differ.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from rq.defaults import RQ_KEY_PREFIX

from workers.metrics import WAIT_SECONDS
from workers.queue.records import PREFIX

ScriptName = Literal[
    "submit", "position", "claim", "finish", "release", "heartbeat",
    "end_overdue", "reap", "cancel", "progress", "preview", "wanted",
    "enqueue_webhook", "claim_webhooks", "settle_webhook",
]  # fmt: skip

_MORE: Mapping[str, Sequence[str]] = {"submit": ("rate",)}


@cache
def load_script(name: ScriptName) -> str:
    """Return a script's source, after what all share."""
    folder = Path(__file__).with_name("lua")
    source = "\n".join(
        (folder / f"{part}.lua").read_text() for part in ("waiting", "prelude", *_MORE.get(name, ()), name)
    )
    bounds = ",".join(f"'{bound}'" for bound in WAIT_SECONDS.buckets)
    source = source.replace("WAIT_BOUNDS", bounds)
    return source.replace("RQ:", f"{RQ_KEY_PREFIX}:").replace("OUR:", f"{PREFIX}:")
