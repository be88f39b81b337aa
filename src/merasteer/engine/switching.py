"""What the requests of a batch need of a step, found out on the host so that a step leaves the rest out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from merasteer.engine.run import Run
from merasteer.engine.switches import Switches
from merasteer.engine.tables import OPEN
from merasteer.types import HookPoint

__all__ = ["Switching"]


class Switching:
    """Remembers the pass before: nothing has to be found out again about the same requests."""

    def __init__(self) -> None:
        self._switches = Switches()
        self._decoding: list[Run] | None = None  # of the pass before, where their next tokens are acted on alike

    def of(self, runs: list[Run], *, decoding: bool) -> Switches:
        """The switches of the next pass. decoding: each run has one token in it and gets another."""
        if decoding and runs == self._decoding:
            self._switches = replace(self._switches, steady=True)
            return self._switches
        self._switches = _switches(runs)
        # Which tokens a policy acts on may change from token to token unless it acts on all that is generated.
        steady = decoding and all(
            run.request.policy is None or (run.request.policy.positions in OPEN and not run.acting) for run in runs
        )
        self._decoding = runs if steady else None
        return self._switches


def _switches(runs: Sequence[Run]) -> Switches:
    requests = [run.request for run in runs]
    rows: dict[HookPoint, set[int]] = {}
    for run in runs:
        if run.resident is not None:
            rows.setdefault(run.resident.hook_point, set()).add(run.resident.row)
    return Switches(
        rows={point: tuple(sorted(used)) for point, used in rows.items()},
        strength=any(request.policy is not None and request.policy.strength != 0.0 for request in requests),
        sampling=any(
            not request.sampling.greedy and (request.choice is None or request.max_new_tokens is not None)
            for request in requests
        ),
        choice=any(run.request.choice is not None and not run.tokens for run in runs),
        points=any(request.choice is not None and bool(request.choice.path) for request in requests),
        forced=any(request.choice is not None for request in requests),
        classes=any(request.variants is not None for request in requests),
        bias=any(request.label_bias is not None and request.choice is None for request in requests),
        logprobs=any(request.logprobs for request in requests),
        trace=any(request.trace for request in requests),
    )
