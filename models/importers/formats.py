"""Which importer reads a source: by its own account, or as a person says."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import cast

from models.importers.base import Imported, Importer, ImportFailed, Source
from models.registry import IMPORTERS

_MAX_NAMES_TOLD = 5


def read_source(
    source: Source, settings: Mapping[str, str], format_name: str | None = None
) -> tuple[list[Imported], str]:
    """Return what a source holds, in the house's form, and the name of its format.

    A pipeline of diffusers gives a prior and its autoencoder, where there are importers of both; a note tells
    which of its parts were left out. A setting "FORMAT.key" goes to that format alone.

    Raises: ImportFailed when no importer knows it, one finds that it doesn't fit, or a setting is of none.
    """
    if format_name is not None and format_name not in IMPORTERS:
        raise ImportFailed(f"--format: known are {', '.join(IMPORTERS)}, got {format_name!r:.60}")
    given = {name: _Settings(settings, name) for name in IMPORTERS}
    read: dict[str, Imported] = {}  # by role
    names: list[str] = []
    parts_read: set[str] = set()
    for part, each in (("", source), *source.parts.items()):
        for name in IMPORTERS if format_name is None else (format_name,):
            importer = cast(Importer, import_module(IMPORTERS[name]))
            if name in names or not importer.recognises(each):
                continue
            imported = importer.read(each, given[name])
            if imported.role not in read:
                read[imported.role] = imported
                names.append(name)
                parts_read |= {part, *imported.parts}
    if not read:
        raise ImportFailed(_unknown(source, format_name))
    asked = {name for each in names for name in given[each].asked}
    if unused := [name for name in settings if name not in asked]:
        raise ImportFailed(f"--set {unused[0]}: there is no such setting of {' and '.join(names)}")
    first, *others = read.values()
    left_out = [
        f"{part} ({str(each.config.get('_class_name', 'of no class'))[:60]})"
        for part, each in source.parts.items()
        if each.tensors and part not in parts_read
    ]
    if left_out:
        note = f"Left out, as no importer that was tried reads it: {', '.join(left_out)}."
        first = replace(first, notes=(*first.notes, note))
    return [first, *others], " and ".join(names)


class _Settings(dict[str, str]):
    """The settings for one format, which know, by the names that a person gave, which were asked for."""

    def __init__(self, given: Mapping[str, str], format_name: str) -> None:
        own = f"{format_name}."
        self._given_as: dict[str, str] = {}
        for name in given:
            if name.startswith(own):
                self._given_as[name.removeprefix(own)] = name
            elif name.partition(".")[0] not in IMPORTERS:
                self._given_as.setdefault(name, name)
        super().__init__({key: given[name] for key, name in self._given_as.items()})
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> str:
        self._ask(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._ask(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self._ask(key)
        return super().get(key, default)

    def _ask(self, key: str) -> None:
        self.asked.add(self._given_as.get(key, key))


def _unknown(source: Source, format_name: str | None) -> str:
    what = f"is not of the format {format_name}" if format_name else "is of no format that is known"
    tensors = next(
        (each.tensors for each in (source, *source.parts.values()) if each.tensors), source.tensors
    )
    names = ", ".join(name[:80] for name in list(tensors)[:_MAX_NAMES_TOLD])
    found = f"{len(tensors)} tensors, the first {names}" if tensors else "no tensors"
    fields = ", ".join(str(name)[:40] for name in list(source.config)[:_MAX_NAMES_TOLD])
    config = f"a configuration of {fields}" if fields else "no configuration (--config FILE gives one)"
    return f"{source.path} {what}: it has {found}, and {config}; known are {', '.join(IMPORTERS) or 'none'}"
