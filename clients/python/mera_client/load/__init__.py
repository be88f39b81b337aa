"""`python -m mera_client.load`: what a mera-server bears, and what it decides under load. The last line on stdout is JSON.

Exit code 0 measured, 1 nothing was answered, 2 bad usage, 130 interrupted (what was measured is printed all the same).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import httpx

from mera_client._async_client import AsyncClient
from mera_client._errors import InvalidInput, MeraError
from mera_client._options import BASE_URL
from mera_client._types import Method
from mera_client.cli import Parser, say
from mera_client.load.drive import Load, Run, drive
from mera_client.load.mix import Entry, Kind, entry_of, read_mix
from mera_client.load.report import figures, in_words

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None, transport: httpx.AsyncBaseTransport | None = None) -> int:
    """The exit code of one command line (default: the process's). transport: as `AsyncClient` takes it."""
    try:
        options = parser().parse_args(arguments)
        load, mix = load_of(options), mix_of(options)
        run = asyncio.run(_run(options, mix, load, transport))
    except MeraError as error:
        return say(str(error), error, 2)
    except KeyboardInterrupt as error:
        return say("interrupted", error, 130)
    found = figures(run, load)
    sys.stdout.write(f"{in_words(found)}\n{json.dumps(found)}\n")
    return 130 if run.interrupted else 0 if found["answered"] else 1


async def _run(
    options: Namespace, mix: tuple[Entry, ...], load: Load, transport: httpx.AsyncBaseTransport | None
) -> Run:
    if transport is None:  # the load alone limits the connections
        transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))
    key = os.environ.get("MERA_API_KEY")
    # Retries would hide the errors and stretch the latencies that are to be measured.
    async with AsyncClient(
        options.url, timeout=options.timeout, api_key=key, retries=None, transport=transport
    ) as client:
        return await drive(client, mix, load)


def load_of(options: Namespace) -> Load:
    names = ("rate", "count", "duration", "in_flight", "grace", "seed")
    concurrency = 8 if options.concurrency is None and options.rate is None else options.concurrency
    return Load(concurrency=concurrency, **{name: getattr(options, name) for name in names})


def mix_of(options: Namespace) -> tuple[Entry, ...]:
    """The entries of --mix, or one for each --method on the same prompts."""
    given = {name: getattr(options, name) for name in ("kind", "max_new_tokens", "task", "batch", "columns")}
    table = {name: value for name, value in given.items() if value is not None}
    if options.mix is not None:
        if options.prompt or options.file or options.method or table:
            raise InvalidInput(
                "--mix: says all that is asked; leave out --prompt, --file, --method, --kind and their like"
            )
        return read_mix(options.mix)
    if options.prompt:
        table["prompts"] = options.prompt
    if options.file is not None:
        table["file"] = str(options.file.resolve())
    methods = [{"method": method, "name": method} for method in options.method]
    return tuple(entry_of(table | method, "requests") for method in methods or [{}])


def parser() -> Parser:
    made = Parser(prog="python -m mera_client.load", description=(__doc__ or "").partition("\n")[0])
    add = made.add_argument
    add("--url", default=os.environ.get("MERA_URL", BASE_URL), help="of the server (MERA_URL; now %(default)s)")
    add("--timeout", type=float, default=60.0, metavar="S", help="seconds without a byte (60)")
    add("--mix", type=Path, metavar="FILE.toml", help="what is asked; or, instead of it:")
    add("--prompt", action="append", default=[], help="may be given several times")
    add("--file", type=Path, help=".csv or .jsonl, its columns the fields of the template")
    add("--column", dest="columns", action="append", metavar="[FIELD=]COLUMN", help="of --file (all)")
    add("--kind", choices=get_args(Kind), help="generate (the default), stream or classify")
    add("--task")
    add("--method", choices=get_args(Method), action="append", default=[], help="given several times: mixed evenly")
    add("--max-new-tokens", type=int, metavar="N")
    add("--batch", type=int, metavar="N", help="inputs of one classify request (8)")
    add("--concurrency", type=int, metavar="N", help="closed loop: callers that ask again when answered (8)")
    add("--rate", type=float, metavar="R", help="open loop: arrivals per second")
    add("--in-flight", type=int, default=256, metavar="N", help="open loop: open requests at most (256)")
    add("--count", type=int, default=200, metavar="N", help="requests at most (200)")
    add("--duration", type=float, default=60.0, metavar="S", help="seconds at most (60)")
    add("--grace", type=float, default=10.0, metavar="S", help="seconds for what is open at the end (10)")
    add("--seed", type=int, default=0, help="of prompts, mix, arrivals and sampling (0)")
    return made
