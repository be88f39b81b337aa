"""What commands share: options that also come from `MERA_*` and from one TOML file, and how results are shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mera_server.settings import PREFIX, Settings, read_config
from merasteer.errors import InvalidInput

__all__ = ["Config", "Store", "all_options", "autoencoders", "indices", "option", "several", "show", "stores", "table"]


def option(name: str, about: str, *also: str, variable: str | None = None) -> Any:
    """A typer option that `MERA_<NAME>` sets too, or `variable`; `also` are other names of it, each with its variable."""
    variables = (
        [variable]
        if variable
        else [PREFIX + flag.removeprefix("--").replace("-", "_").upper() for flag in (name, *also)]
    )
    return typer.Option(name, *also, envvar=variables, help=about, show_envvar=False)


def all_options(command: Any) -> Iterator[str]:
    """Names of the options of a command and of all below it: what one configuration file may hold."""
    yield from (parameter.name for parameter in command.params if parameter.name != "config")
    for child in getattr(command, "commands", {}).values():
        yield from all_options(child)


def _from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the file's values the defaults of this command: below the command line and the environment."""
    if path is not None:
        names = [context.info_name]
        parent = context.parent
        while parent is not None:
            names.append(parent.info_name)
            parent = parent.parent
        known = set(all_options(context.find_root().command)) | set(Settings.model_fields)
        context.default_map = read_config(path, str(names[-2]), known)
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar=PREFIX + "CONFIG",
        help="TOML file of options",
        is_eager=True,
        callback=_from_file,
        show_envvar=False,
    ),
]
Store = Annotated[
    Path | None, option("--store", f"folder of artifacts (default: {Settings().store}, and the demo's own)")
]


def stores(given: Path | None) -> list[Path]:
    """The store that was named, alone; else the default one and the demo's. A name that is wrong must not look like an empty store."""
    from merasteer import demo

    if given is not None and not given.is_dir():
        raise InvalidInput(f"store: no such folder {str(given)!r}; name the store that mera run published to")
    return [given] if given is not None else [Settings().store, demo.store_dir()]


def several(value: str | None) -> tuple[str, ...] | None:
    """What stands between commas or blanks."""
    return None if value is None else tuple(value.replace(",", " ").split())


def indices(value: str | None) -> str | tuple[int, ...] | None:
    """A name as it stands, and "0,2,3" as indices."""
    parts = several(value)
    return tuple(map(int, parts)) if parts and all(part.isdecimal() for part in parts) else value


def autoencoders(value: str | None) -> tuple[tuple[int, str], ...] | None:
    """ "3=a,5=b" as (layer, folder)."""
    found = []
    for part in several(value) or ():
        layer, _, folder = part.partition("=")
        if not layer.isdecimal() or not folder or not Path(folder).is_dir():
            raise InvalidInput(f"sae: {part!r} is not layer=folder with a folder that is there; give such as 3=my_sae")
        found.append((int(layer), folder))
    return tuple(found) or None


def show(value: Mapping[str, Any]) -> None:
    """Prints JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Prints aligned columns."""
    lines = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
