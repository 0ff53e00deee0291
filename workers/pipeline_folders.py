"""Pipelines that come into the weights folder, change or go while the service runs. Without torch."""

import hashlib
import logging
import os
import time
from pathlib import Path

from models.options import ConfigError
from models.spec import SPEC_FILE, PipelineSpec
from workers.catalog import Catalog, CatalogEntry, in_order

logger = logging.getLogger(__name__)

SCAN_EVERY_S = 1.0
_MAX_REASON_CHARS = 400
_TENSORS = ".safetensors"


class PipelineFolders:
    """Keeps a catalog as the folder of pipeline folders is. One thread uses it.

    A folder is taken up once it looked the same twice, so that one that is being copied is let alone. Where
    pipelines were named, only these count. Those that came later stand behind those that were there, so what
    a request gets that names no pipeline stays the same until the next start.
    """

    def __init__(self, catalog: Catalog, weights_dir: Path, names: tuple[str, ...] = ()) -> None:
        self._catalog = catalog
        self._weights_dir = weights_dir
        self._names = names
        self._seen: dict[Path, str] = {}
        self._taken: dict[Path, str] = {}
        self._scanned_at = -SCAN_EVERY_S
        self._is_first = True

    @classmethod
    def load(cls, weights_dir: Path, names: tuple[str, ...] = ()) -> "PipelineFolders":
        """Read the folder; one that can't be used is left out, unless pipelines were named.

        Raises: ConfigError when there is none that can, or a named one can't.
        """
        if names:
            return cls(Catalog.load(weights_dir, names), weights_dir, names)
        try:
            entries, refused = _read(_stamps(weights_dir), ())
        except OSError:
            entries, refused = [], {}
        if not entries:
            return cls(Catalog.load(weights_dir), weights_dir)  # which says why
        catalog = Catalog(in_order(entries))
        folders = cls(catalog, weights_dir)
        folders._tell(refused)
        catalog.replace(catalog.entries, refused)
        return folders

    @property
    def catalog(self) -> Catalog:
        return self._catalog

    def refresh(self, now: float | None = None) -> bool:
        """Look at the folder, at most once in SCAN_EVERY_S, and say whether the catalog has changed."""
        now = time.monotonic() if now is None else now
        if now - self._scanned_at < SCAN_EVERY_S:
            return False
        self._scanned_at = now
        try:
            stamps = _stamps(self._weights_dir)
        except OSError as error:  # which takes nothing away
            logger.warning("the weights folder can't be read: %s", error.strerror)
            return False
        steady = {
            folder: stamp
            for folder, stamp in stamps.items()
            if self._is_first or self._seen.get(folder) == stamp
        }
        # What changes at the moment counts as it was until it has come to rest; what is gone is gone.
        steady |= {
            folder: stamp
            for folder, stamp in self._taken.items()
            if folder in stamps and folder not in steady
        }
        self._seen, self._is_first = stamps, False
        if steady == self._taken:
            return False
        self._taken = steady
        before = {entry.folder: entry for entry in self._catalog.entries}
        entries, refused = _read(steady, self._names, before)
        first = {name: number for number, name in enumerate(self._names or self._catalog.names)}
        entries = sorted(in_order(entries), key=lambda entry: first.get(entry.spec.name, len(first)))
        was = {entry.spec.name: entry.stamp for entry in before.values()}
        self._catalog.replace(entries, self._tell(refused))
        now_there = {entry.spec.name: entry.stamp for entry in entries}
        for name in sorted(was.keys() | now_there.keys()):
            if name not in now_there:
                logger.info("pipeline=%s its folder is gone", name)
            elif name not in was:
                logger.info("pipeline=%s found", name)
            elif was[name] and was[name] != now_there[name]:
                logger.info("pipeline=%s its folder has changed", name)
        return was != now_there

    def _tell(self, refused: dict[str, str]) -> dict[str, str]:
        """Log what is newly refused."""
        for folder, reason in refused.items():
            if self._catalog.refused.get(folder) != reason:
                logger.error("the pipeline in %s is refused: %s", folder, reason)
        return refused


def without_paths(message: str, folder: Path) -> str:
    """Return a message about a folder that tells clients no path, in one line of bounded length."""
    for path in (folder.absolute(), folder):
        message = message.replace(str(path.parent) + os.sep, "")
    return " ".join(message.split())[:_MAX_REASON_CHARS]


def _read(
    stamps: dict[Path, str], names: tuple[str, ...], before: dict[Path, CatalogEntry] | None = None
) -> tuple[list[CatalogEntry], dict[str, str]]:
    """Return the pipelines in these folders, and why others can't be had, by the folder's name.

    Of two of one name, the one that was there before stays.
    """
    entries: dict[str, CatalogEntry] = {}
    refused: dict[str, str] = {}
    known = before or {}
    for folder in sorted(stamps, key=lambda folder: (folder not in known, folder)):
        entry = known.get(folder)
        try:
            if entry is None or entry.stamp != stamps[folder]:
                entry = CatalogEntry(PipelineSpec.load(folder / SPEC_FILE), folder, stamps[folder])
        except ConfigError as error:
            refused[folder.name] = without_paths(str(error), folder)
            if entry is None:
                continue  # otherwise it stays what it was, for as long as it is in memory
        name = entry.spec.name
        if names and name not in names:
            continue
        if name in entries:
            refused[folder.name] = f"its name {name} is that of the one in {entries[name].folder.name}, too"
            continue
        entries[name] = entry
    return list(entries.values()), refused


def _stamps(weights_dir: Path) -> dict[Path, str]:
    """Return by folder a digest of what its files are, by name, size and time.

    Raises: OSError.
    """
    found = {}
    with os.scandir(weights_dir) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    for folder in (weights_dir / name for name in names):
        digest = hashlib.sha256()
        try:
            with os.scandir(folder) as files:
                named = sorted((file.name, file) for file in files)
            for name, file in named:
                if name == SPEC_FILE or name.endswith(_TENSORS):
                    status = file.stat()
                    digest.update(f"{name} {status.st_ino} {status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:  # it goes at this moment
            continue
        if any(name == SPEC_FILE for name, _ in named):
            found[folder] = digest.hexdigest()[:16]
    return found
