"""`mera ledger`: which tests were made on which calibration rows of a store, and at which levels."""

from __future__ import annotations

from mera_server.commands.options import Config, Store, table
from mera_server.settings import Settings
from merasteer.errors import InvalidInput

__all__ = ["ledger"]

COLUMNS = ("attempt", "level", "delta", "kind", "task", "what", "test", "rows", "model", "time")


def ledger(
    store: Store = None,
    config: Config = None,  # noqa: ARG001 - read by its callback
) -> None:
    """Every test that was made on calibration rows of this store, in order; exit code 2 where a ledger was changed."""
    from merasteer.store.ledger import entries

    where = store or Settings().store
    if not where.is_dir():
        raise InvalidInput(f"store: no such folder {str(where)!r}; name the store that mera run published to")
    table(
        COLUMNS,
        (
            (
                one.attempt,
                f"{one.level / one.parts:.4g}",
                one.delta,
                one.kind,
                one.task,
                one.what,
                one.test,
                len(one.rows),
                one.model[:12],
                one.time,
            )
            for one in entries(where)
        ),
    )
