"""Progress bars on a terminal; nothing anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Bar", "Bars"]


class Bar:
    """One line: counts up to its total."""

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self._progress, self._id = progress, progress.add_task(title, total=total)

    def advance(self) -> None:
        """One more done."""
        self._progress.advance(self._id)


class Bars:
    """The bars of a run, on standard error; they vanish at the end, so that the report stands alone."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """A bar for `total` things."""
        columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        quiet = not self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=quiet) as progress:
            yield Bar(progress, title, total)
