"""Which importer reads a source: by its own account, or as a person says."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

from models.importers.base import Imported, Importer, ImportFailed, Source
from models.registry import IMPORTERS, load_kind

_MAX_NAMES_TOLD = 5


def read_source(
    source: Source, settings: Mapping[str, str], format_name: str | None = None
) -> tuple[list[Imported], str]:
    """Return what a source holds, in the house's form, and the name of its format.

    A pipeline of diffusers gives a prior and its autoencoder, where there are importers of both.

    Raises: ImportFailed when no importer knows it, one finds that it doesn't fit, or a setting is of none.
    """
    given = _Settings(settings)
    read: list[Imported] = []
    names: list[str] = []
    for each in (source, *source.parts.values()):
        name = _recognised(each, format_name)
        if name is None:
            continue
        imported = _importer(name).read(each, given)
        if imported.role not in {earlier.role for earlier in read}:
            read.append(replace(imported, notes=(*each.notes, *imported.notes)))
            names.append(name)
    if not read:
        raise ImportFailed(_unknown(source, format_name))
    if unused := [name for name in settings if name not in given.asked]:
        raise ImportFailed(f"--set {unused[0]}: {' and '.join(names)} have no such setting")
    return read, " and ".join(names)


class _Settings(dict[str, str]):
    """Settings that know which of them were asked for."""

    def __init__(self, given: Mapping[str, str]) -> None:
        super().__init__(given)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self.asked.add(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self.asked.update(super().__iter__())
        return super().__iter__()


def _importer(name: str) -> Importer:
    from importlib import import_module

    return cast(Importer, import_module(IMPORTERS[name]))


def _recognised(source: Source, format_name: str | None) -> str | None:
    """Return the format of a source, or None; the one that was named has to know it, too."""
    if format_name is not None and format_name not in IMPORTERS:
        load_kind(IMPORTERS, format_name)  # which tells the formats there are
    for name in IMPORTERS if format_name is None else (format_name,):
        if _importer(name).recognises(source):
            return name
    return None


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
