"""One running request: what its steps have left behind so far, and the answer they add up to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from merasteer.engine.batching import Delivered, Step
from merasteer.engine.choice import spelling
from merasteer.engine.residents import Resident
from merasteer.engine.switches import CHANGED, CLASSES, COUNTS, LARGEST, LOGPROB, SAID, SPELT
from merasteer.engine.tables import acting_tokens, movable_layers, moves, reach
from merasteer.engine.text import TextStream
from merasteer.errors import NonFinite
from merasteer.types import (
    Answer,
    FinishReason,
    GeneratedToken,
    Generation,
    GenerationRequest,
    PredictedError,
    SteeringCounts,
    Tokens,
    TokenTrace,
)

__all__ = ["Run"]


@dataclass(eq=False)
class Run:
    """Mutable state of one request between admission and its one answer. Touched by the generation thread alone."""

    id: str
    request: GenerationRequest
    resident: Resident | None
    stream: TextStream | None  # none where nobody reads its text: at a branching point, and on ranks that follow
    eos: frozenset[int]
    on_token: Callable[[GeneratedToken], None] | None = None
    future: Future[Generation] = field(default_factory=Future)
    reach: int = 0  # the most tokens that it can have keys of; a branching point's is its request's
    slot: int = 0
    state: Any = None  # the library's request state; another object after an eviction
    queued_at: float = field(default_factory=time.perf_counter)
    seated_at: float = 0.0
    started_at: float = 0.0
    answered: bool = False  # a stop string answers a run before it leaves the batch

    tokens: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    trace: list[TokenTrace] = field(default_factory=list)
    counts: list[float] = field(default_factory=lambda: [0.0] * COUNTS)
    activations: dict[str, torch.Tensor] | None = None
    reading: tuple[float, float] | None = None  # z before and after at the answer position, or the last prompt position
    classes: list[float] | None = None  # class logits there
    label: int | None = None
    changed: bool = False
    said: bool = False
    spelt: int | None = None  # tokens of the label that was chosen
    options: list[float] | None = None  # at a later branching point: the log-probability of each spelling's token
    points: dict[Tokens, Run] = field(default_factory=dict)  # the later branching points, each a run of its own
    known: dict[Tokens, Sequence[float]] = field(default_factory=dict)  # the options of those that have been evaluated

    def __post_init__(self) -> None:
        self.reach = self.reach or reach(self.request)
        if self.request.ignore_eos:
            self.eos = frozenset()

    def take(self, part: Delivered, step: Step) -> None:
        """Adds one step. Counts are summed; the reads are committed at the answer position (docs/method.md)."""
        row = step.report[part.row].tolist()
        self._check(row[:COUNTS])
        for column in range(COUNTS - 1):
            self.counts[column] += row[column]
        self.counts[-1] = max(self.counts[-1], row[COUNTS - 1])
        if part.read is None or part.token is None:
            return
        read = step.report[part.read].tolist()
        self._check([read[LARGEST], *(read[COUNTS : COUNTS + 2] if self.resident is not None else ())])
        first = not self.tokens
        self.tokens.append(part.token)
        self.times.append(time.perf_counter())
        text = self._read(part.token)
        label = self._label_of(part.token, read)
        # `last` commits at the first new token. `exact` commits at the first token that is a variant; until then the last
        # prompt position stands in for a missing answer.
        late = self.request.choice is None and self.request.position == "exact"
        if first or (late and self.label is None and label is not None):
            self._commit(read, part.read, label, step)
        if self.request.logprobs:
            self.logprobs.append(read[LOGPROB])
        if self.request.trace and step.trace is not None:
            self.trace.append(_trace(step.trace[part.read]))
        if self.on_token is not None:
            self.on_token(self._token(part.token, text, read, steered=row[2] > 0))

    def _read(self, token: int) -> str:
        """What of the text became certain with a token."""
        if self.stream is None:
            return ""
        self.offsets.append(self.stream.released)
        return self.stream.push(token)

    def _check(self, numbers: Sequence[float]) -> None:
        """Raises NonFinite: what follows from such a number is no answer, and no neighbour's matter."""
        if not all(map(math.isfinite, numbers)):
            raise NonFinite(
                f"engine: an activation, readout or logit of this request is not finite behind {len(self.request.prompt)} prompt "
                f"and {len(self.tokens)} new tokens; look at the model's weights and dtype, or at the step"
            )

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended it."""
        return self.stream is not None and self.stream.stopped

    @property
    def labelled(self) -> bool:
        """Whether it was to end with its label, and has."""
        return self.request.max_new_tokens is None and self.spelt is not None and len(self.tokens) >= self.spelt

    @property
    def acting(self) -> bool:
        """Whether its policy acts on some of what is still to come, and not on all of it: the same pass is not the next one's."""
        end = acting_tokens(self.request) if self.spelt is None else self.spelt
        return self.request.policy is not None and end is not None and len(self.tokens) <= end

    def _token(self, token: int, text: str, read: list[float], *, steered: bool) -> GeneratedToken:
        before, after = self._read_errors((read[COUNTS], read[COUNTS + 1])) or (None, None)
        return GeneratedToken(
            index=len(self.tokens) - 1,
            id=token,
            logprob=self.logprobs[-1] if self.request.logprobs else None,
            before=before,
            after=after,
            steered=steered,
            trace=self.trace[-1] if self.request.trace and self.trace else None,
            last=self.stopped or self.labelled or token in self.eos or len(self.tokens) >= self.request.budget,
            text=text,
        )

    def _commit(self, read: list[float], row: int, label: int | None, step: Step) -> None:
        self.reading, self.label = (read[COUNTS], read[COUNTS + 1]), label
        self.said = self.resident is not None and self.resident.vectors.law == "label_probe" and read[SAID] > 0
        self.changed = (self.request.label_bias is not None or self.said) and read[CHANGED] > 0
        classes = self.request.variants if self.request.choice is None else self.request.choice.variants
        if classes is not None:
            self.classes = read[CLASSES][: len(classes)]
        if self.request.choice is not None and self.request.choice.path and step.options is not None:
            self.options = step.options[row].tolist()
        if step.captured:
            self.activations = {point: rows[row].clone() for point, rows in step.captured.items()}

    def _label_of(self, token: int, read: list[float]) -> int | None:
        choice = self.request.choice
        if choice is not None:
            if self.tokens[:-1] or choice.path:  # chosen with the first token
                return None
            label, tokens = spelling(choice, round(read[SPELT]))
            self.spelt = len(tokens)
            return label
        variants = self.request.variants or ()
        return next((label for label, ids in enumerate(variants) if token in ids), None)

    def finish_reason(self) -> FinishReason:
        """Why the library stopped: an end-of-sequence token, or the limit."""
        return "eos_token" if self.tokens and self.tokens[-1] in self.eos else "length"

    def result(self, finish_reason: FinishReason) -> Generation:
        """The answer, from what the delivered steps left. Ends the text: a cut character may complete a stop string."""
        text = "" if self.stream is None else self.stream.finish()
        return Generation(
            tokens=tuple(self.tokens),
            text=text,
            finish_reason="stop_sequence" if self.stopped else finish_reason,
            prompt_tokens=len(self.request.prompt),
            predicted_error=self._predicted_error(),
            steering=self._steering(),
            answer=self._answer(),
            logprobs=tuple(self.logprobs) if self.request.logprobs else None,
            trace=tuple(self.trace) if self.request.trace else None,
            activations=self.activations,
            queued_at=self.queued_at,
            seated_at=self.seated_at,
            started_at=self.started_at,
            token_times=tuple(self.times),
            offsets=tuple(self.offsets),
        )

    def _read_errors(self, reading: tuple[float, float] | None) -> tuple[float, float] | None:
        """σ(z) before and after of a reading; None where no readout reads."""
        if self.resident is None or reading is None:
            return None
        before, after = (1 / (1 + math.exp(-z)) if z > -700 else 0.0 for z in reading)
        return before, after

    def _predicted_error(self) -> PredictedError | None:
        errors = self._read_errors(self.reading)
        if self.resident is None or errors is None:
            return None
        position = "answer" if self.label is not None else "last_prompt"
        return PredictedError(*errors, self.resident.vectors.report_layer, position)  # type: ignore[arg-type]

    def _steering(self) -> SteeringCounts:
        policy = self.request.policy
        if self.resident is None or policy is None or not moves(policy):
            return SteeringCounts()
        tokens, steered, cells, shift, largest = self.counts
        layers = len(movable_layers(self.resident.vectors, policy))
        if not layers:  # whether its tokens are counted depends on the company
            return SteeringCounts()
        return SteeringCounts(
            round(tokens),
            round(steered),
            round(tokens) * layers,
            round(cells),
            shift / cells if cells else 0.0,
            largest,
        )

    def _answer(self) -> Answer | None:
        if self.classes is None:
            return None
        probabilities = torch.tensor(self.classes, dtype=torch.float64).softmax(-1).tolist()
        return Answer(self.label, tuple(probabilities), self.changed, "label_probe" if self.said else "model")


def _trace(layers: torch.Tensor) -> TokenTrace:
    """layers (L, 3): z before, z after, shift."""
    before, after, shift = layers.double().unbind(-1)
    return TokenTrace(tuple(before.sigmoid().tolist()), tuple(after.sigmoid().tolist()), tuple(shift.tolist()))
