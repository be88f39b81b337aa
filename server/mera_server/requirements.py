"""What a server must have to be ready: a store that is there, and the artifacts that its operator names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mera_server.settings import Settings
from merasteer.errors import InvalidInput

if TYPE_CHECKING:
    from mera_server.catalog import Catalog

__all__ = ["check_store", "lacking"]


def check_store(settings: Settings) -> None:
    """Raises InvalidInput for a store that is no folder which can be read; makes it where that was asked for.

    The default one may be absent: then the built-in artifacts alone are served.
    """
    store = settings.store
    try:
        if settings.create_store:
            store.mkdir(parents=True, exist_ok=True)
        os.scandir(store).close()
    except FileNotFoundError:
        if store != Settings.model_fields["store"].default:
            raise InvalidInput(
                f"store: no such folder {str(store)!r}; mount it or correct its name, or give --create-store to begin with an empty one"
            ) from None
    except OSError as error:
        raise InvalidInput(f"store: {str(store)!r} cannot be read ({error.strerror}); give a folder that can") from None


def lacking(catalog: Catalog, required: Sequence[str], certified: bool) -> str | None:
    """Why the server does not have what is required; None where it does.

    required: `task` or `task@digest`, a prefix of the digest; certified: the certificates of these, or else of every task's default
    artifact that has one, and of one at least, must hold here.
    """
    for one in required:
        task, _, digest = one.partition("@")
        why = _lacks(catalog, task, digest, certified)
        if why is not None:
            return f"require: {one}: {why}"
    if not certified or required:
        return None
    of_tasks = {task: probe for task, probe in catalog.latest.items() if probe.certified}
    if not of_tasks:
        return "require-certified: no task has a certified artifact here"
    return next(
        (f"require-certified: {task}: {probe.mismatch}" for task, probe in of_tasks.items() if probe.mismatch), None
    )


def _lacks(catalog: Catalog, task: str, digest: str, certified: bool) -> str | None:
    probe = catalog.latest.get(task)
    if probe is None:
        refused = sum(entry.task == task and entry.status == "rejected" for entry in catalog.entries)
        also = f", {refused} refused (GET /probes has the reasons)" if refused else ""
        return f"no artifact of this task is served{also}; publish one to the store"
    if not probe.digest.startswith(digest):
        return f"{probe.digest[:12]} is this task's default artifact; publish the one that is required, or point latest at it"
    if certified and not probe.guaranteed:
        return (
            f"{probe.digest[:12]} is not certified here ({probe.mismatch or 'it passed no test'}); see mera recertify"
        )
    return None
