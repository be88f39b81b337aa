"""What the console script runs: an interrupt is answered in one line from here on, while modules are imported and at the very end, too.

Inside an import a KeyboardInterrupt may be swallowed, or come out as another error: there the process ends at once.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

__all__ = ["INTERRUPTED", "main"]

INTERRUPTED = 130
_IMPORTING = "<frozen importlib"


def main() -> int:
    """The exit code of the process's command line."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)  # unless it is ignored, as behind a shell's &
    try:
        from mera_server.cli import main as command

        return command()
    except KeyboardInterrupt:  # a second one, while the first was told
        return INTERRUPTED
    finally:
        _end_at_once_from_here()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, as Python's own handler does, except where that is not safe."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTING):
            _leave(number, None)
        frame = frame.f_back
    raise KeyboardInterrupt


def _end_at_once_from_here() -> None:
    """The interpreter's own end runs code that no interrupt should cut with a traceback."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, _leave)


def _leave(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"mera: interrupted\n")
    os._exit(INTERRUPTED)
