"""`mera-client`: a mera-server from the command line.

Exit code 0 done, 2 bad usage or input, 1 no server or one that failed, 130 interrupted; errors are one line on stderr.
"""

from __future__ import annotations

import os
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, get_args

import httpx

from mera_client._client import Client
from mera_client._errors import InvalidInput, MeraError
from mera_client._options import BASE_URL
from mera_client._retries import Retries
from mera_client._types import MeraDetails, Method
from mera_client.cli import commands

__all__ = ["Parser", "main", "say"]


def main(arguments: Sequence[str] | None = None, transport: httpx.BaseTransport | None = None) -> int:
    """The exit code of one command line (default: the process's). transport: as `Client` takes it."""
    try:
        options = parser().parse_args(arguments)
        with client_of(options, transport) as client:
            code: int = options.run(client, options, say)
            return code
    except KeyboardInterrupt as error:
        return say("interrupted", error, 130)
    except MeraError as error:
        return say(str(error), error, exit_code(error))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nobody is left to tell
        return 1
    except OSError as error:
        return say(f"{error.filename or 'output'}: {error.strerror or error}", error, 2)


def say(message: str, error: BaseException | None = None, code: int = 0) -> int:
    """Writes one line to stderr, the error's notes with it; gives the code back."""
    parts = [message, *getattr(error, "__notes__", ())]
    sys.stderr.write(f"mera-client: {' '.join('; '.join(parts).split())}\n")
    return code


def exit_code(error: MeraError) -> int:
    """2 where the caller can mend it, 1 where the server is absent, busy or broken."""
    refused = error.status is not None and 400 <= error.status < 500
    return 2 if refused and error.code not in ("overloaded", "rate_limited", "cancelled") else 1


def client_of(options: Namespace, transport: httpx.BaseTransport | None) -> Client:
    """The client that the common options describe."""
    timeout = httpx.Timeout(options.timeout, connect=min(5.0, options.timeout))
    retries = Retries(attempts=options.attempts) if options.attempts > 1 else None
    key = os.environ.get("MERA_API_KEY")
    return Client(options.url, timeout=timeout, api_key=key, retries=retries, transport=transport)


class Parser(ArgumentParser):
    """Bad usage is one line, as every error is."""

    def error(self, message: str) -> NoReturn:
        raise InvalidInput(f"{message}. Try {self.prog} --help")


def parser() -> ArgumentParser:
    """The whole command line."""
    url = os.environ.get("MERA_URL", BASE_URL)
    root = Parser(
        prog="mera-client",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[_common(url, {"url": url, "timeout": 60.0, "attempts": 4})],
    )
    root.add_argument("--version", action="version", version=f"mera-client {version('mera-client')}")
    verbs = root.add_subparsers(required=True, metavar="COMMAND")

    def verb(name: str, about: str) -> ArgumentParser:
        again = _common(
            url, {}
        )  # behind the command, too: what was given in front of it stays unless it is given again
        made = verbs.add_parser(name, help=about, description=about, parents=[again], allow_abbrev=False)
        made.set_defaults(run=getattr(commands, name))
        return made

    _generate(verb("generate", "continue a prompt; the text on stdout, what steering did on stderr"))
    _classify(verb("classify", "label the rows of a .csv or .jsonl file; a run that was cut off goes on"))
    for name, about in (
        ("probes", "list the artifacts"),
        ("health", "tell whether the server is ready (0) or not (1)"),
    ):
        _json(verb(name, about))
    return root


def _common(url: str, defaults: Mapping[str, Any]) -> Parser:
    """The options of every command. An option without a default leaves no trace unless it is given."""
    common = Parser(add_help=False)
    add = common.add_argument
    add("--url", default=defaults.get("url", SUPPRESS), help=f"of the server (MERA_URL; now {url.replace('%', '%%')})")
    add(
        "--timeout",
        type=seconds,
        default=defaults.get("timeout", SUPPRESS),
        metavar="S",
        help="seconds without a byte (60)",
    )
    add(
        "--attempts",
        type=int,
        default=defaults.get("attempts", SUPPRESS),
        metavar="N",
        help="requests in all where it is busy (4)",
    )
    return common


def _generate(command: ArgumentParser) -> None:
    add = command.add_argument
    add("prompt", nargs="?", help="the prompt; - reads it from standard input")
    add("--field", type=field, action="append", default=[], metavar="NAME=VALUE", help="a field of the task's template")
    add("--task", help="steer as this task's artifact says")
    add("--max-new-tokens", type=int, metavar="N")
    add("--temperature", type=float, metavar="T", help="0, the default: greedy")
    add("--top-p", type=float, metavar="P")
    add("--top-k", type=int, metavar="K")
    add("--stop", action="append", default=[], metavar="TEXT", help="end there; may be given several times")
    add("--seed", type=int)
    add("--mera-details", choices=get_args(MeraDetails), default="summary")
    add("--stream", action="store_true", help="print tokens as they come; with --json, one event a line")
    _steering(command)
    _json(command)


def _classify(command: ArgumentParser) -> None:
    add = command.add_argument
    add("file", type=Path, help=".csv or .jsonl; its columns are the fields of the task's template")
    add("--task", required=True)
    add("-o", "--out", type=Path, required=True, help=".csv or .jsonl: the rows with what was answered")
    add("--column", action="append", default=[], metavar="[FIELD=]COLUMN", help="one alone: its text; several: fields")
    add("--label", metavar="COLUMN", help="of the true labels, for accuracy and confusion (label, where there is one)")
    add("--chunk", type=int, default=64, metavar="N", help="rows of one request (64)")
    add("--fresh", action="store_true", help="forget what an earlier run has left in OUT.part")
    _steering(command)


def _steering(command: ArgumentParser) -> None:
    add = command.add_argument
    add("--probe", metavar="DIGEST", help="an artifact other than the latest")
    add("--method", choices=get_args(Method))
    add("--alpha", type=float, help="threshold on the predicted error; an override is never certified")
    add("--strength", type=float, help="of additive and contrastive")


def _json(command: ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def field(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not (name and found):
        raise ValueError(text)
    return name, value
