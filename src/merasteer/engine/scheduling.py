"""Which prompts are computed next: short ones do not wait for long ones, and long ones do not wait for ever.

The library's scheduler fills each forward pass up to a budget of tokens: running requests first, one token each, then prompts in the
order of their arrival, cut where the budget ends. One long prompt so holds up every short one behind it. Here the prompt with the
fewest tokens left goes first, and each pass that it waits counts as `AGING` tokens fewer. Passes are counted, not seconds: the same
requests are batched in the same way each time.
"""

from __future__ import annotations

from typing import Any

from transformers.generation.continuous_batching.requests import RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

__all__ = ["AGING", "FAIR", "FairScheduler"]

FAIR = "mera_fair"
AGING = 64  # what comes more than N / AGING passes after a prompt of N tokens does not overtake it


class FairScheduler(FIFOScheduler):
    """The library's first-come scheduler with another order among prompts; budgets, cache and evictions stay its own."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._passes = 0
        self._since: dict[str, int] = {}  # request -> the pass in which its prompt first stood here

    def _process_candidates(self, candidates: list[Any], *given: Any, **named: Any) -> Any:
        self._passes += 1
        prompts = [state for state in candidates if state.status != RequestStatus.DECODING]
        # Those that wait while nobody is admitted (after an eviction) are no candidates, and keep their turn.
        kept = {name: since for name, since in self._since.items() if name in self.waiting_requests}
        self._since = kept | {state.request_id: self._since.get(state.request_id, self._passes) for state in prompts}
        running = [state for state in candidates if state.status == RequestStatus.DECODING]
        return super()._process_candidates([*running, *sorted(prompts, key=self._turn)], *given, **named)

    def _turn(self, state: Any) -> int:
        waited = self._passes - self._since[state.request_id]
        return len(state.remaining_prefill_tokens) - AGING * waited


SCHEDULER_MAPPING[FAIR] = FairScheduler
