"""What the console script runs: an interrupt is answered in one line from here on, while modules are imported and at the very end, too.

Inside an import a KeyboardInterrupt may be swallowed, or come out as another error or an abort: there the process ends at once.
Before the handler is there nothing is imported that is not built into the interpreter.
"""

from __future__ import annotations

import _signal as signals  # type: ignore[import-not-found]  # signal itself takes milliseconds
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

__all__ = ["INTERRUPTED", "main"]

INTERRUPTED = 130
_IMPORTING = "<frozen importlib"


def main() -> int:
    """The exit code of the process's command line."""
    ours = _set(_interrupt)
    try:
        from mera_server.cli import main as command

        return command()
    except KeyboardInterrupt:  # a second one, while the first was told
        return INTERRUPTED
    finally:
        if ours:
            _set(_leave)  # the interpreter's own end runs code that no interrupt should cut with a traceback


def _set(handler: object) -> bool:
    """Whether the handler is in force: not where interrupts are ignored, as behind a shell's &, and not off the main thread."""
    if signals.getsignal(signals.SIGINT) == signals.SIG_IGN:
        return False
    try:
        signals.signal(signals.SIGINT, handler)
    except ValueError:
        return False
    return True


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, as Python's own handler does, except where that is not safe."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTING):
            _leave(number, None)
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"mera: interrupted\n")
    os._exit(INTERRUPTED)
