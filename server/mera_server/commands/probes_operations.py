"""`mera probes push|pull|gc`: artifacts to a hub and back, and removing those that nobody needs."""

from __future__ import annotations

from typing import Annotated

import typer

from mera_server.commands.options import Config, Store, option, stores, table
from mera_server.settings import Settings
from merasteer.errors import InvalidInput

__all__ = ["COMMANDS"]

Repo = Annotated[str, typer.Argument(help="owner/name on the hub; HF_TOKEN is the token, HF_ENDPOINT another hub")]
Revision = Annotated[str | None, option("--revision", "branch, tag or commit (default: main)")]
KeepLatest = Annotated[bool, typer.Option("--keep-latest", help="leave `latest` as it is")]


def push(
    repo: Repo,
    digest: Annotated[str, typer.Argument(help="first digits")],
    public: Annotated[bool, typer.Option("--public", help="make a repository that is new public")] = False,
    keep_latest: KeepLatest = False,
    revision: Revision = None,
    store: Store = None,
    config: Config = None,  # noqa: ARG001 - read by its callback
) -> None:
    """Upload one artifact, and the `latest` that names it, in one commit to a repository of models."""
    from merasteer.store import push as push_artifact
    from merasteer.store import resolve_prefix, scan

    entry = resolve_prefix(scan(stores(store)), digest)
    typer.echo(push_artifact(entry.path, repo, public=public, default=not keep_latest, revision=revision))


def pull(
    repo: Repo,
    digest: Annotated[str | None, typer.Argument(help="first digits; none: all that a `latest` names")] = None,
    keep_latest: KeepLatest = False,
    revision: Revision = None,
    store: Store = None,
    config: Config = None,  # noqa: ARG001
) -> None:
    """Fetch artifacts into the store: all is verified before any of it is visible."""
    from merasteer.store import pull as pull_artifacts

    into = store or Settings().store
    for folder in pull_artifacts(into, repo, digest=digest, revision=revision, default=not keep_latest):
        typer.echo(str(folder))


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="remove them; without it they are only listed")] = False,
    keep: Annotated[int | None, option("--keep", "newest artifacts to keep beside the default (default: 3)")] = None,
    age: Annotated[
        float | None, option("--age", "hours in which what was published stays in any case (default: 24)")
    ] = None,
    store: Store = None,
    config: Config = None,  # noqa: ARG001
) -> None:
    """Remove artifacts that are superseded and what crashes left behind; without --yes only say which."""
    from merasteer.store import collect, verdicts
    from merasteer.store.collecting import AGE, KEEP

    where = store or Settings().store
    if not where.is_dir():
        raise InvalidInput(f"store: no such folder {str(where)!r}; name the store that mera run published to")
    judged = (collect if yes else verdicts)(where, keep=KEEP if keep is None else keep, age=AGE if age is None else age)
    word = "removed" if yes else "would go"
    table(
        ("folder", "task", "verdict", "reason"),
        ([one.path.name, one.task or None, word if one.removed else "stays", one.reason] for one in judged),
    )
    if not yes and any(one.removed for one in judged):
        typer.echo("nothing was removed: add --yes", err=True)


COMMANDS = (push, pull, gc)
