"""Progress bars on a terminal; nothing anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Bar", "Bars"]

COLUMNS = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


class Bar:
    """One line: counts up to its total."""

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self._progress, self.id = progress, progress.add_task(title, total=total)

    def advance(self, by: int = 1) -> None:
        """So many more done."""
        self._progress.advance(self.id, by)

    def rename(self, title: str) -> None:
        """Another title for what is under way."""
        self._progress.update(self.id, description=title)


class Bars:
    """The bars of a run, one below the other, on standard error; they vanish at the end, so that the report stands alone."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress: Progress | None = None

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """A bar for `total` things; inside another one it stands below it."""
        if self._progress is not None:
            bar = Bar(self._progress, title, total)
            try:
                yield bar
            finally:
                self._progress.remove_task(bar.id)
            return
        quiet = not self._console.is_terminal
        with Progress(*COLUMNS, console=self._console, transient=True, disable=quiet) as self._progress:
            try:
                yield Bar(self._progress, title, total)
            finally:
                self._progress = None
