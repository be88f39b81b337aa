"""What a command does around a run: Ctrl-C ends it at once, and the libraries keep their remarks to themselves. Not for library users."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from merasteer.pipeline.progress import Bars

__all__ = ["INTERRUPTED", "attended", "quiet"]

INTERRUPTED = 130
_SHOW_CURSOR = "\x1b[?25h\n"  # a progress bar hides it


@contextmanager
def attended(bars: Bars) -> Iterator[None]:
    """Inside, an interrupt says where the run stopped and ends the process with 130.

    At once: a forward pass of a real model takes seconds, and whatever is worth keeping is on the disk before anything builds on it.
    Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        where = f"stopped in {bars.where}" if bars.where else "stopped"
        line = f"{_SHOW_CURSOR * bars.live}mera: {where}; the same command goes on from there\n"
        os.write(2, line.encode())
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, warnings of libraries and their progress bars are not shown; behind it everything is as it was."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging

    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hidden = are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        disable_progress_bars()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if shown:
                logging.enable_progress_bar()
            if not hidden:
                enable_progress_bars()
