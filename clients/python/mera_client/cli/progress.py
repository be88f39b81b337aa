"""A progress bar on one line of a terminal; silent anywhere else. Thirty lines are less than a dependency."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

WIDTH = 30


class Progress:
    """`with Progress(total, done) as show: show(done)`. done: what was there before; it does not count towards the rate."""

    def __init__(
        self, total: int, done: int = 0, *, to: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._first, self._clock, self._start = total, done, clock, clock()
        self._to = sys.stderr if to is None else to
        self._shown = self._to.isatty()

    def __enter__(self) -> Callable[[int], None]:
        self.show(self._first)
        return self.show

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._to.write("\n")

    def show(self, done: int) -> None:
        if self._shown:
            self._to.write(f"\r{self.line(done)}\x1b[K")
            self._to.flush()

    def line(self, done: int) -> str:
        """The bar without cursor control."""
        share = done / self._total
        seconds, made = self._clock() - self._start, done - self._first
        rate = made / seconds if made and seconds > 0 else 0.0
        left = f"{rate:.1f} rows/s, {(self._total - done) / rate:.0f} s left" if rate else "…"
        return f"{'█' * int(WIDTH * share):░<{WIDTH}} {share:4.0%} {done}/{self._total} {left}"
