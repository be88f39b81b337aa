"""Canaries: a few prompts whose numbers a certified engine wrote down, asked again wherever its certificate is to be relied on.

A certificate is bound to conditions that can be named (`merasteer.conditions`). What nobody thought of, another version of a library or a
kernel that computes otherwise, shows in the numbers: z of the readouts on the unsteered pass, log q unsteered and corrected, the label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from merasteer.types import Correction, Generation, GenerationRequest, ServedTask, Tokens

__all__ = ["Canaries", "Canary", "asked", "read"]

LEAST = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}  # tolerance, however little the numbers spread
SPREAD = 10.0  # times what they spread between alone and in company
_FAR = 30.0  # σ says nothing of a z further out


@dataclass(frozen=True)
class Canary:
    """One prompt as token ids, and what was found. z: of every layer with a readout. label: class index, None where none was said.

    gate: how near to logit α the corrected pass came at a gate that opens all at once; not among what is kept.
    """

    tokens: Tokens
    z: tuple[float, ...]
    log_q: tuple[float, ...]
    corrected: tuple[float, ...]
    label: int | None
    gate: float = field(default=math.inf, compare=False)

    def apart(self, other: Canary, *, corrected: bool = True) -> float:
        """The largest difference between two of the same prompt; infinite where they do not have the same numbers.

        corrected: whether what the correction made of it counts.
        """
        pairs = [(self.z, other.z), (self.log_q, other.log_q), *([(self.corrected, other.corrected)] * corrected)]
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
        """Measured twice, one at a time and in company: the tolerance follows from what differs between the two.

        Where a gate is a near thing a last bit opens or shuts it, and what then differs is no spread.
        """
        least = LEAST[dtype]
        pairs = zip(alone, together, strict=True)
        spread = max(one.apart(two, corrected=min(one.gate, two.gate) > least) for one, two in pairs)
        return cls(max(SPREAD * spread, least), tuple(alone))

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Canaries:
        """As `to_json` wrote them."""
        lists = ("tokens", "z", "log_q", "corrected")
        made = [Canary(**{**one, **{name: tuple(one[name]) for name in lists}}) for one in raw["prompts"]]
        return cls(raw["tolerance"], tuple(made))

    def to_json(self) -> dict[str, Any]:
        """Plain values for calibration.json."""
        kept = [{name: value for name, value in asdict(one).items() if name != "gate"} for one in self.prompts]
        return {"tolerance": self.tolerance, "prompts": kept}

    def off(self, found: Sequence[Canary]) -> str | None:
        """In what the numbers found here are not those that were certified, one phrase; None where all are within the tolerance.

        A prompt that comes within the tolerance of a gate here may have been on its other side: its corrected numbers say nothing.
        """
        for number, (tested, here) in enumerate(zip(self.prompts, found, strict=True), 1):
            clear = here.gate > self.tolerance
            apart = tested.apart(here, corrected=clear)
            if not apart <= self.tolerance:
                return f"canary {number} is off by {apart:.3g} (tolerance {self.tolerance:.3g})"
            if clear and tested.label != here.label and tested.margin > self.tolerance:
                return f"canary {number} is answered with another label"
        return None


def asked(task: ServedTask, correction: Correction, prompts: Iterable[Tokens]) -> list[GenerationRequest]:
    """Two requests for each prompt: unsteered, and corrected, with the readouts read at every layer."""
    ways = (correction.watching(), correction)
    return [way.request(task, tokens, trace=True) for tokens in prompts for way in ways]


def read(correction: Correction, prompts: Iterable[Tokens], answers: Sequence[Generation]) -> list[Canary]:
    """What the answers to `asked` say. z is 0 at layers without a readout."""
    found = []
    for tokens, watched, corrected in zip(prompts, answers[::2], answers[1::2], strict=True):
        before = () if not watched.trace else watched.trace[0].before
        label = None if corrected.answer is None else corrected.answer.label
        found.append(
            Canary(
                tokens,
                tuple(map(_logit, before)),
                _log_q(watched),
                _log_q(corrected),
                label,
                _gate(correction, corrected),
            )
        )
    return found


def _gate(correction: Correction, answer: Generation) -> float:
    """|z − logit α| where it is least, over layers and tokens; infinite where the correction grows from nothing behind its gate."""
    if correction.alpha is None or not (correction.strength or correction.method == "label_probe"):
        return math.inf
    here = _logit(correction.alpha)
    read = (p for token in answer.trace or () for p in token.before if p != 0.5)  # there is no readout
    return min((abs(_logit(p) - here) for p in read), default=math.inf)


def _log_q(answer: Generation) -> tuple[float, ...]:
    q = () if answer.answer is None else answer.answer.probabilities
    return tuple(math.log(max(share, math.exp(-_FAR))) for share in q)


def _logit(p: float) -> float:
    if p in (0.0, 1.0):
        return _FAR if p else -_FAR
    return min(_FAR, max(-_FAR, math.log(p) - math.log1p(-p)))
