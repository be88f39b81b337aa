"""How far a run is: bars on a terminal; elsewhere a line for each stage and every half minute, to the log or to standard error."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["EVERY", "Bar", "Bars"]

log = logging.getLogger("merasteer.pipeline")
COLUMNS = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
EVERY = 30.0  # seconds between two lines
FEW = 10  # the first pass answers all at once what it answers: fewer tell nothing of the pace


class Bar:
    """One line: counts up to its total."""

    def __init__(self, bars: Bars, progress: Progress, title: str, total: int) -> None:
        self._bars, self._progress, self.id = bars, progress, progress.add_task(title, total=total)
        self.title, self.total, self.done, self._skipped = title, total, 0, 0
        self._start = self._told = time.monotonic()

    def advance(self, by: int = 1) -> None:
        """So many more done."""
        self.done += by
        self._progress.advance(self.id, by)
        now = time.monotonic()
        if now - self._told >= EVERY and self.done < self.total:
            self._told = now
            self._bars.say(f"{self.where}{self._pace(now)}")

    def skip(self, by: int) -> None:
        """So many had been done before: they count, and not for the rate."""
        self._skipped += by
        self.advance(by)

    def rename(self, title: str) -> None:
        """Another title for what is under way."""
        self.title = title
        self._progress.update(self.id, description=title)

    @property
    def where(self) -> str:
        return f"{self.title}: {self.done:,} of {self.total:,}"

    def _pace(self, now: float) -> str:
        """Rate and time left, once there is something to judge them by."""
        done = self.done - self._skipped
        if done < FEW:
            return ""
        rate = done / max(now - self._start, 1e-9)
        minutes, seconds = divmod(round((self.total - self.done) / rate), 60)
        return f", {rate:.3g} a second, {minutes}:{seconds:02d} left"


class Bars:
    """The bars of a run, one below the other, on standard error; they vanish at the end, so that the report stands alone.

    lines: without a terminal what is to be told goes to standard error, for who started a command; else to the log.
    """

    def __init__(self, console: Console | None = None, *, lines: bool = False) -> None:
        self._console, self._lines = console or Console(stderr=True), lines
        self._progress: Progress | None = None
        self._open: list[Bar] = []

    @property
    def live(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._console.is_terminal

    @property
    def where(self) -> str | None:
        """What is under way, and how far it is; None between two bars."""
        return self._open[-1].where if self._open else None

    def say(self, line: str) -> None:
        """Tells one line where no bar shows it."""
        if self._lines and not self.live:
            self._console.file.write(f"mera: {line}\n")
            self._console.file.flush()
        else:
            log.info("%s", line)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """A bar for `total` things; inside another one it stands below it."""
        if self._progress is not None:
            with self._opened(self._progress, title, total) as bar:
                try:
                    yield bar
                finally:
                    self._progress.remove_task(bar.id)
            return
        with Progress(*COLUMNS, console=self._console, transient=True, disable=not self.live) as self._progress:
            try:
                with self._opened(self._progress, title, total) as bar:
                    yield bar
            finally:
                self._progress = None

    @contextmanager
    def _opened(self, progress: Progress, title: str, total: int) -> Iterator[Bar]:
        bar = Bar(self, progress, title, total)
        self._open.append(bar)
        try:
            yield bar
        finally:
            self._open.remove(bar)
