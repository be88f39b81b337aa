"""Canaries: a few prompts whose numbers a certified engine wrote down, asked again wherever its certificate is to be relied on.

A certificate is bound to conditions that can be named (`merasteer.conditions`). What nobody thought of, another version of a library or a
kernel that computes otherwise, shows in the numbers: z of the readouts on the unsteered pass, log q unsteered and corrected, the label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from merasteer.types import Correction, Generation, GenerationRequest, ServedTask, Tokens

__all__ = ["Canaries", "Canary", "asked", "read"]

LEAST = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}  # tolerance, however little the numbers spread
SPREAD = 10.0  # times what they spread between alone and in company
_FAR = 30.0  # σ says nothing of a z further out


@dataclass(frozen=True)
class Canary:
    """One prompt as token ids, and what was found. z: of every layer with a readout. label: class index, None where none was said."""

    tokens: Tokens
    z: tuple[float, ...]
    log_q: tuple[float, ...]
    corrected: tuple[float, ...]
    label: int | None

    def apart(self, other: Canary) -> float:
        """The largest difference between two of the same prompt; infinite where they do not have the same numbers."""
        pairs = [(self.z, other.z), (self.log_q, other.log_q), (self.corrected, other.corrected)]
        if any(len(one) != len(two) for one, two in pairs):
            return math.inf
        found = [abs(a - b) for one, two in pairs for a, b in zip(one, two, strict=True)]
        return math.inf if any(map(math.isnan, found)) else max(found, default=0.0)

    @property
    def margin(self) -> float:
        """By how much the corrected label is ahead, in log q."""
        first, second = sorted(self.corrected, reverse=True)[:2]
        return first - second


@dataclass(frozen=True)
class Canaries:
    """What an artifact holds, and how far what is found elsewhere may be from it."""

    tolerance: float
    prompts: tuple[Canary, ...]

    @classmethod
    def of(cls, alone: Sequence[Canary], together: Sequence[Canary], dtype: str) -> Canaries:
        """Measured twice, one at a time and in company: the tolerance follows from what differs between the two."""
        spread = max(one.apart(two) for one, two in zip(alone, together, strict=True))
        return cls(max(SPREAD * spread, LEAST[dtype]), tuple(alone))

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Canaries:
        """As `to_json` wrote them."""
        lists = ("tokens", "z", "log_q", "corrected")
        made = [Canary(**{**one, **{name: tuple(one[name]) for name in lists}}) for one in raw["prompts"]]
        return cls(raw["tolerance"], tuple(made))

    def to_json(self) -> dict[str, Any]:
        """Plain values for calibration.json."""
        return {"tolerance": self.tolerance, "prompts": [asdict(one) for one in self.prompts]}

    def off(self, found: Sequence[Canary]) -> str | None:
        """In what the numbers found here are not those that were certified, one phrase; None where all are within the tolerance."""
        for number, (tested, here) in enumerate(zip(self.prompts, found, strict=True), 1):
            apart = tested.apart(here)
            if not apart <= self.tolerance:
                return f"canary {number} is off by {apart:.3g} (tolerance {self.tolerance:.3g})"
            if tested.label != here.label and tested.margin > self.tolerance:
                return f"canary {number} is answered with another label"
        return None


def asked(task: ServedTask, correction: Correction, prompts: Iterable[Tokens]) -> list[GenerationRequest]:
    """Two requests for each prompt: unsteered, with the readouts read at every layer, and corrected."""
    ways = (correction.watching(), correction)
    return [way.request(task, tokens, trace=way is ways[0]) for tokens in prompts for way in ways]


def read(prompts: Iterable[Tokens], answers: Sequence[Generation]) -> list[Canary]:
    """What the answers to `asked` say. z is 0 at layers without a readout."""
    found = []
    for tokens, watched, corrected in zip(prompts, answers[::2], answers[1::2], strict=True):
        before = () if not watched.trace else watched.trace[0].before
        label = None if corrected.answer is None else corrected.answer.label
        found.append(Canary(tokens, tuple(map(_logit, before)), _log_q(watched), _log_q(corrected), label))
    return found


def _log_q(answer: Generation) -> tuple[float, ...]:
    q = () if answer.answer is None else answer.answer.probabilities
    return tuple(math.log(max(share, math.exp(-_FAR))) for share in q)


def _logit(p: float) -> float:
    if p in (0.0, 1.0):
        return _FAR if p else -_FAR
    return min(_FAR, max(-_FAR, math.log(p) - math.log1p(-p)))
