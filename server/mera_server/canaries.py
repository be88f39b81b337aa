"""Canaries replayed before the first answer under a certificate: does the model behave here as it was tested?

Each artifact's are replayed once for as long as the engine runs, by whoever comes first; others wait for it. One that is off ends the
certificate on this server: the catalog says so from then on, and who relied on it abstains (`acting.withdrawn`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from mera_server.acting import withdrawn
from mera_server.catalog import Catalog, Probe
from merasteer.engine import Engine
from merasteer.engine.canaries import asked, read
from merasteer.errors import InvalidInput, NonFinite
from merasteer.types import Generation

if TYPE_CHECKING:
    from mera_server.resolve import Plan

__all__ = ["State", "Watch", "relies", "without"]

log = logging.getLogger("mera.canaries")
UNANSWERED = (InvalidInput, NonFinite)  # what keeps a canary from an answer, however often it is asked
State = Literal["pending", "passed", "failed"]


class Watch:
    """What is known of each artifact's canaries on one engine. `settle` is for one event loop; the rest for any thread."""

    def __init__(self, engine: Engine, withdraw: Callable[[str, str], None]) -> None:
        self._engine, self._withdraw = engine, withdraw
        self._found: dict[str, str | None] = {}  # digest -> what is off, None where nothing is
        self._locks: dict[str, asyncio.Lock] = {}

    def state(self, digest: str) -> State:
        """Whether they were replayed here, and what came of it."""
        if digest not in self._found:
            return "pending"
        return "passed" if self._found[digest] is None else "failed"

    @property
    def failed(self) -> dict[str, str]:
        """Digest -> what is off, of the artifacts whose certificate has ended here."""
        return {digest: why for digest, why in dict(self._found).items() if why is not None}

    async def settle(self, plans: Sequence[Plan]) -> list[Plan]:
        """The plans, with those that rely on an artifact that is off here withdrawn. Replays what is still pending."""
        relied = {one.probe.digest: one.probe for one in plans if one.probe is not None and relies(one)}
        told: dict[str, str] = {}
        for digest, probe in relied.items():
            found = await self._off(digest, probe)
            if found is not None:
                told[digest] = found
        if not told:
            return list(plans)
        return [
            withdrawn(one, told[one.probe.digest]) if one.probe is not None and one.probe.digest in told else one
            for one in plans
        ]

    def replay(self, probe: Probe) -> str | None:
        """What is off of one artifact's canaries, found out now if it is not known. Blocks."""
        if probe.digest not in self._found:
            try:
                self._tell(probe, self._off_by(probe, [future.result() for future in self._submit(probe)]))
            except UNANSWERED as error:
                self._tell(probe, f"a canary gets no answer: {error}")
        return self._found[probe.digest]

    async def _off(self, digest: str, probe: Probe) -> str | None:
        if digest not in self._found:
            async with self._locks.setdefault(digest, asyncio.Lock()):
                if digest not in self._found:
                    try:
                        futures = [asyncio.wrap_future(future) for future in self._submit(probe)]
                        self._tell(probe, self._off_by(probe, await asyncio.gather(*futures)))
                    except UNANSWERED as error:
                        self._tell(probe, f"a canary gets no answer: {error}")
            self._locks.pop(digest, None)
        return self._found[digest]

    def _submit(self, probe: Probe) -> list[Future[Generation]]:
        prompts = [] if probe.canaries is None else [one.tokens for one in probe.canaries.prompts]
        return self._engine.submit_all(asked(probe.task, probe.correction, prompts)) if prompts else []

    def _off_by(self, probe: Probe, answers: Sequence[Generation]) -> str | None:
        if probe.canaries is None:
            return None
        return probe.canaries.off(read(probe.correction, [one.tokens for one in probe.canaries.prompts], answers))

    def _tell(self, probe: Probe, off: str | None) -> None:
        told = None if off is None else f"the model does not behave as tested: {off}"
        self._found[probe.digest] = (
            told  # first: who reads the stores meanwhile asks for it under the lock of `withdraw`
        )
        if told is not None:
            log.error("artifact %s of %s: %s", probe.digest[:12], probe.task.name, told)
            self._withdraw(probe.digest, told)


def relies(planned: Plan) -> bool:
    """Whether a plan does what it does under its artifact's certificate."""
    probe = planned.probe
    return (
        probe is not None and planned.decision is None and probe.guaranteed and planned.correction == probe.correction
    )


def without(catalog: Catalog, digest: str, why: str) -> Catalog:
    """The catalog with one artifact whose certificate does not hold here."""
    probes = {key: replace(one, mismatch=why) if key == digest else one for key, one in catalog.probes.items()}
    latest = {task: probes.get(one.digest, one) for task, one in catalog.latest.items()}
    return replace(catalog, probes=probes, latest=latest)
