"""How far a job, or a list of them, is: a bar where tqdm is installed, else a line on standard error."""

import sys
from types import TracebackType
from typing import Any, Self

from smalti.models import Event


class Bar:
    """Shows how far something is; nothing while it is off."""

    def __init__(self, title: str, *, is_on: bool, total: int | None = None) -> None:
        self._title = title
        self._bar: Any = None
        self._is_line_open = False
        self._has_tqdm = False
        self._num_done = 0
        self._total = total
        if is_on:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                self._show_line("waiting")
            else:
                self._bar = tqdm(desc=title, total=total, leave=False)
                self._has_tqdm = True
        self._is_on = is_on

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._has_tqdm:
            self._bar.close()
        elif self._is_line_open:
            sys.stderr.write("\n")

    def show(self, event: Event) -> None:
        """Show what an event of a job tells."""
        if event.progress is not None:
            self._show(event.progress.step, event.progress.total)
        elif self._is_on and not self._has_tqdm:
            self._show_line(event.status)

    def count(self, number: int = 1) -> None:
        """Show that so many more are done."""
        self._num_done += number
        self._show(self._num_done, self._total)

    def show_counts(self, num_done: int, total: int) -> None:
        """Show that so many of so many are done."""
        self._show(num_done, total or None)

    def _show(self, num_done: int, total: int | None) -> None:
        if not self._is_on:
            return
        if self._has_tqdm:
            self._bar.total = total
            self._bar.update(num_done - self._bar.n)
        else:
            self._show_line(f"{num_done} of {total}" if total else str(num_done))

    def _show_line(self, text: str) -> None:
        sys.stderr.write(f"\r{self._title}: {text:<20}")
        sys.stderr.flush()
        self._is_line_open = True
