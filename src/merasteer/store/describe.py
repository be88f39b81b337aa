"""An entry of the store in a few JSON-able facts, for `mera probes show` and GET /probes. Never a path."""

from __future__ import annotations

from typing import Any

from merasteer.store.certificate import certificate_of
from merasteer.store.scanning import Entry
from merasteer.types import own_method

__all__ = ["summary"]

TESTED = (
    "test", "p_value", "gain", "lower_bound", "epsilon", "delta", "level", "attempt", "n", "candidates",
    "collapse", "below_majority", "broken",
)  # fmt: skip


def summary(entry: Entry) -> dict[str, Any]:
    """One flat object with the same keys for every entry; what does not apply (rejected, nothing tested) is null.

    layers: the active ones. test ... candidates describe what was tested, see `certificate_of`.
    """
    facts: dict[str, Any] = {"digest": entry.digest, "task": entry.task, "status": entry.status, "reason": entry.reason}
    if entry.artifact is None:
        unknown = (
            "model",
            "certified",
            "method",
            "alpha",
            "hook_point",
            "direction",
            "layers",
            "positions",
            "report_layer",
            "family",
        )
        return facts | dict.fromkeys((*unknown, *TESTED))
    manifest = entry.artifact.manifest
    steering = manifest["steering"]
    tested = certificate_of(entry.artifact.calibration) or {}
    return facts | {
        "model": manifest["model"]["id"],
        "certified": entry.artifact.certified,
        "method": own_method(steering),
        "alpha": entry.artifact.alpha,
        "hook_point": steering["hook_point"],
        "direction": steering["direction"],
        "layers": steering["active_layers"],
        "positions": steering["positions"],
        "report_layer": steering["report_layer"],
        "family": manifest["probe"]["family"],
        **{name: tested.get(name) for name in TESTED},
    }
