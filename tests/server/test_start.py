"""Interrupts from the first line of the console script to the last: one line and exit code 130, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..forking import Forker

# Interrupts the process as soon as a module is looked for, which is inside an import; how far it came is not up to the clock.
INTERRUPTING = """
import os, signal, sys
module = sys.argv.pop(1)
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Watch())
from mera_server.start import main
sys.exit(main())
"""
RUN = ["run", "--model", "demo", "--task", "demo_spam"]
SERVE = ["serve", "--port", "0"]


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("mera_server.cli", SERVE), ("typer", RUN), ("pydantic", SERVE), ("merasteer", RUN), ("mera_server.commands.keys", ["methods"]),
    ],
)  # fmt: skip
def test_while_modules_are_imported(module: str, command: list[str], tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", INTERRUPTING, module, *command],
        capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    *logged, told = found.stderr.splitlines()
    assert (found.returncode, found.stdout, told) == (130, "", "mera: interrupted")
    assert all(" INFO " in line for line in logged)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "command"), [("torch", RUN), ("numpy", RUN), ("transformers", RUN), ("fastapi", SERVE)]
)
def test_while_large_libraries_are_imported(module: str, command: list[str], tmp_path: Path) -> None:
    test_while_modules_are_imported(module, command, tmp_path)


WAITING = """
import sys, time
from mera_server import cli, start
def main():
    print("there", file=sys.stderr, flush=True)
    time.sleep(30)
cli.main = main
class Slow:
    def __del__(self, sleep=time.sleep, flush=sys.stderr.flush, write=sys.stderr.write):
        write("ending\\n")
        flush()
        sleep(30)
if sys.argv[1:] == ["end"]:
    import atexit
    cli.main = lambda: 0
    atexit.register(Slow().__del__)
sys.exit(start.main())
"""


@pytest.mark.parametrize(("where", "line"), [("inside", "there\n"), ("end", "ending\n")])
def test_inside_a_command_and_while_the_interpreter_ends(forker: Forker, where: str, line: str) -> None:
    process = forker.start(WAITING, [where], dict(os.environ))
    assert process.stderr.readline() == line
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(10)
    assert process.returncode == 130
    assert told in ("mera: interrupted\n", "")  # the command's own line is that of cli.main, which stands aside here


def test_an_interrupt_that_is_ignored_stays_so(forker: Forker) -> None:
    """As behind a shell's `&`, or nohup."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WAITING.replace("sleep(30)", "sleep(0.4)")
    process = forker.start(code, [], dict(os.environ))
    assert process.stderr.readline() == "there\n"
    process.send_signal(signal.SIGINT)
    process.communicate(10)
    assert process.returncode == 0


def test_the_console_script_begins_there() -> None:
    assert 'mera = "mera_server.start:main"' in (Path(__file__).parents[2] / "pyproject.toml").read_text(
        encoding="utf-8"
    )
