"""`mera keys`: the API keys of a server. One that runs takes a changed file up by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mera_server.commands.options import Config, option, table
from mera_server.keys import SCOPES, Key, change, generate, read
from merasteer.errors import InvalidInput

__all__ = ["app"]

app = typer.Typer(help="API keys: add, list, remove.", rich_markup_mode=None)
File = Annotated[Path, option("--keys-file", "file of the keys, the one that mera serve is given")]
Name = Annotated[str, typer.Argument(help="whose key it is; shown in the log")]


@app.command()
def add(
    name: Name,
    keys_file: File,
    scope: Annotated[str, option("--scope", f"{', '.join(SCOPES)}; each takes in those before it")] = "generate",
    config: Config = None,  # noqa: ARG001 - read by its callback
) -> None:
    """Make a key and print it: this once, it is kept nowhere."""
    token, made = generate(name, scope)

    def added(keys: Sequence[Key]) -> list[Key]:
        if any(key.name == name for key in keys):
            raise InvalidInput(f"name: {name!r} has a key already; remove it first, or give another name")
        return [*keys, made]

    change(keys_file, added)
    typer.echo(token)


@app.command("list")
def list_(keys_file: File, config: Config = None) -> None:  # noqa: ARG001
    """Names, scopes and when they were made."""
    table(("name", "scope", "created"), ([key.name, key.scope, key.created] for key in read(keys_file)))


@app.command()
def remove(name: Name, keys_file: File, config: Config = None) -> None:  # noqa: ARG001
    """Withdraw a key; a server that runs refuses it within its --reload-seconds."""

    def kept(keys: Sequence[Key]) -> list[Key]:
        rest = [key for key in keys if key.name != name]
        if len(rest) == len(keys):
            raise InvalidInput(f"name: {name!r} has no key; see mera keys list")
        return rest

    if not keys_file.exists():
        read(keys_file)
    change(keys_file, kept)
