"""Which batches get the next places in the queue."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """A batch that has rows to do: how many wait for a place, and how many have one."""

    batch_id: str
    owner: str
    num_waiting: int
    num_outstanding: int


def share(num_places: int, needs: Sequence[Need]) -> dict[str, int]:
    """Return how many places each batch gets: API keys come to have equally many, and so do a key's batches.

    needs: those that have had to wait longer first, which get what can't be divided.
    """
    given: Counter[str] = Counter()
    of_owner: Counter[str] = Counter()
    for need in needs:
        of_owner[need.owner] += need.num_outstanding
    for _ in range(num_places):
        hungry = [need for need in needs if given[need.batch_id] < need.num_waiting]
        if not hungry:
            break
        least = min(
            hungry, key=lambda need: (of_owner[need.owner], need.num_outstanding + given[need.batch_id])
        )
        given[least.batch_id] += 1
        of_owner[least.owner] += 1
    return dict(given)
