"""`mera report`: a report that `mera run` wrote, said again for people, or as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mera_server.commands.options import option

__all__ = ["report"]


def report(
    file: Annotated[Path, typer.Argument(help="what mera run --report wrote")],
    html: Annotated[Path | None, option("--html", "write one self-contained page there instead")] = None,
) -> None:
    """Print the summary of a report, or write it as a page with its figures."""
    from merasteer import pipeline

    found = pipeline.read_report(file)
    if html is None:
        typer.echo(pipeline.summary(found))
        return
    pipeline.write_page(html, found)
    typer.echo(f"written to {html}")
