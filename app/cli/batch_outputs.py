"""The folder of a batch: a file for each output, and `results.jsonl` in the order of the input."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.terminal import CommandError
from models.media.base import MEDIA, medium_of

if TYPE_CHECKING:
    from smalti import BatchRow, Result

RESULTS, ABOUT = "results.jsonl", "batch.json"
_SUFFIXES = {kind: suffix for name in MEDIA for suffix, kind in medium_of(name).formats.items()}
_MAX_NAME_CHARS = 100


def names_of(row_ids: Iterable[str]) -> dict[str, str]:
    """Return a file name, without suffix, for each row: its id where that is safe and no other's.

    Else a digest of the id makes it so: the same for the same file, in whichever order rows end.
    """
    ids = list(row_ids)
    plain = {row_id: re.sub(r"[^A-Za-z0-9._-]", "_", row_id).lstrip(".")[:_MAX_NAME_CHARS] for row_id in ids}
    taken = Counter(name.casefold() for name in plain.values())  # some file systems don't know case

    def is_own(row_id: str) -> bool:
        name = plain[row_id].casefold()
        stem = re.sub(r"-[0-9]+$", "", name)  # which "stem" has for its outputs, if they are several
        return plain[row_id] == row_id and taken[name] == 1 and (stem == name or stem not in taken)

    return {
        row_id: name if is_own(row_id) else f"{name}-{hashlib.sha256(row_id.encode()).hexdigest()[:12]}"
        for row_id, name in plain.items()
    }


class BatchFolder:
    """Where a batch's outputs go; it belongs to one file of rows. batch_id: of an earlier run, or "".

    Raises: CommandError where it is another file's, or can't be written.
    """

    def __init__(self, folder: Path, source: bytes) -> None:
        self._folder = folder
        self.digest = hashlib.sha256(source).hexdigest()
        self._names = names_of(_row_ids(source))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            about = self._about()
            self.batch_id = str(about.get("batch", ""))
            if about.get("sha256", self.digest) != self.digest:
                raise CommandError(f"--out {folder} has the outputs of another file; name another folder")
            for left in folder.glob(".*.part"):  # of a run that was killed
                left.unlink()
        except OSError as error:
            raise CommandError(f"--out {folder}: {error.strerror}") from error

    def remember(self, batch_id: str, url: str) -> None:
        """Write down which batch this is."""
        about = {"batch": batch_id, "url": url, "sha256": self.digest}
        self._write(ABOUT, [json.dumps(about).encode() + b"\n"])

    def files_of(self, row: "BatchRow") -> dict[int, str]:
        """Return the name of the file of each output of a row that has one, by the output's place."""
        outputs = [] if row.result is None else row.result.outputs
        name = self._names.get(str(row.id), f"line-{row.line}")
        return {
            place: f"{name}{f'-{place}' if len(outputs) > 1 else ''}.{_suffix(output.media_type)}"
            for place, output in enumerate(outputs)
            if output.url
        }

    def save(self, row: "BatchRow", fetch: Callable[["Result"], object]) -> int:
        """Fetch the outputs of a row that are not here yet; return how many were fetched.

        Raises: CommandError; what ``fetch`` raises.
        """
        if row.result is None:
            return 0
        outputs = row.result.outputs
        missing = {
            name: outputs[place]
            for place, name in self.files_of(row).items()
            if not self._has(name, outputs[place].sha256)
        }
        fetch(row.result.model_copy(update={"outputs": list(missing.values())}))
        for name, output in missing.items():
            self._write(name, [output.bytes()])
        return len(missing)

    def write_results(self, rows: Iterable["BatchRow"]) -> Counter[str]:
        """Write the rows' results, each with the names of its files; return how many ended in which way."""
        counts: Counter[str] = Counter()

        def lines() -> Iterable[bytes]:
            for row in rows:
                counts[row.status] += 1
                told = row.model_dump(mode="json", exclude_unset=True)
                told["files"] = list(self.files_of(row).values())
                yield json.dumps(told, ensure_ascii=False).encode() + b"\n"

        self._write(RESULTS, lines())
        return counts

    def _about(self) -> dict[str, Any]:
        try:
            about = json.loads((self._folder / ABOUT).read_text())
        except FileNotFoundError:
            return {}
        except ValueError:
            about = None
        if not isinstance(about, dict):
            raise CommandError(f"{self._folder / ABOUT} is not a batch's; name another folder")
        return about

    def _has(self, name: str, sha256: str | None) -> bool:
        try:
            return sha256 == hashlib.sha256((self._folder / name).read_bytes()).hexdigest()
        except FileNotFoundError:
            return False

    def _write(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a file, whole or not at all.

        Raises: CommandError.
        """
        part = self._folder / f".{name}.part"
        try:
            with part.open("wb") as file:
                file.writelines(parts)
            part.replace(self._folder / name)
        except OSError as error:
            raise CommandError(f"{self._folder / name} can't be written: {error.strerror}") from error


def _suffix(media_type: str | None) -> str:
    return _SUFFIXES.get(media_type or "", "bin")


def _row_ids(source: bytes) -> Iterable[str]:
    for line in source.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # an error row, which has no outputs
        if isinstance(row, dict) and isinstance(row.get("id"), str):
            yield row["id"]
