"""Tensors under the publisher's names to the house's: all of them, none left over, each of its shape."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from models.importers.base import ImportFailed

Rename = Mapping[str, str] | Callable[[str], str | None]

_MAX_NAMES_TOLD = 3
_MAX_NAME_CHARS = 100


def take(
    tensors: Mapping[str, Tensor], rename: Rename, expected: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Return ``tensors`` by the house's names: exactly those of ``expected``, of the shapes there.

    rename: the publisher's name → ours, as a table or a function; what is in no table, or what a function
    returns None for, is left over. Drop what isn't wanted (a loss, say) before, and note it. expected: our
    name → shape, of a network on the meta device, say: ``shapes_of``.

    Raises: ImportFailed with the first few that are missing, left over, of another shape, or twice there.
    """
    ours = rename if callable(rename) else rename.get
    taken: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    left_over: list[str] = []
    twice: list[str] = []
    misshapen: list[str] = []
    for theirs, tensor in tensors.items():
        name = ours(theirs)
        if name is None or name not in expected:
            left_over.append(_described(theirs, tensor.shape))
        elif name in taken:
            twice.append(f"{_short(theirs)} and {_short(origins[name])}")
        else:
            taken[name], origins[name] = tensor, theirs
            if tuple(tensor.shape) != tuple(expected[name]):
                misshapen.append(f"{_described(theirs, tensor.shape)}, expected {tuple(expected[name])}")
    theirs_of = {} if callable(rename) else {name: theirs for theirs, name in rename.items()}
    missing = [
        _described(theirs_of.get(name, name), shape) for name, shape in expected.items() if name not in taken
    ]
    wrong = [
        _first(found, what)
        for found, what in (
            (missing, "missing"),
            (left_over, "left over"),
            (misshapen, "of another shape"),
            (twice, "there twice"),
        )
        if found
    ]
    if wrong:
        raise ImportFailed(
            f"the tensors don't fit the configuration: {len(tensors)} were found, {len(expected)} expected; "
            + "; ".join(wrong)
        )
    return taken


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by name: of ``network.state_dict()``, say."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def without(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with none of ``prefixes``."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, by what follows it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _first(found: Sequence[str], what: str) -> str:
    more = f" and {len(found) - _MAX_NAMES_TOLD} more" if len(found) > _MAX_NAMES_TOLD else ""
    return f"{len(found)} {what} ({', '.join(found[:_MAX_NAMES_TOLD])}{more})"


def _described(name: str, shape: Iterable[int]) -> str:
    return f"{_short(name)} {tuple(shape)}"


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME_CHARS else name[:_MAX_NAME_CHARS] + "…"
