"""What the engine answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from merasteer.types.names import FinishReason

__all__ = ["Answer", "GeneratedToken", "Generation", "PredictedError", "SteeringCounts", "TokenTrace"]


@dataclass(frozen=True)
class PredictedError:
    """σ(z) at the report layer just before its step and re-read just behind it, at the answer position."""

    before: float
    after: float
    layer: int
    position: Literal["answer", "last_prompt"]


@dataclass(frozen=True)
class SteeringCounts:
    """Over the positions that the policy may act on. Shifts are ‖v‖/‖h‖ over moved cells, 0 when none moved."""

    tokens: int = 0
    steered_tokens: int = 0
    cells: int = 0
    steered_cells: int = 0
    mean_shift: float = 0.0
    max_shift: float = 0.0


@dataclass(frozen=True)
class Answer:
    """label: class index of the answer token, None when missing. probabilities: the model's class softmax at the answer position.

    changed: whether the label bias, or a label probe, changed the label that was chosen there. by: what chose it.
    """

    label: int | None
    probabilities: tuple[float, ...]
    changed: bool = False
    by: Literal["model", "label_probe"] = "model"


@dataclass(frozen=True)
class TokenTrace:
    """What happened at the position that chose one generated token; one value per layer (idle layers read 0 and 0.5)."""

    before: tuple[float, ...]
    after: tuple[float, ...]
    shift: tuple[float, ...]


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token on its way to a caller who watches.

    index: 0-based. text: what of the answer's text became certain with it. logprob and trace are there where the request asks for
    them. before, after: σ(z) at the report layer at the position that chose this token, None without a policy. steered: whether the
    step that chose it moved a cell. last: nothing follows it, the request's `Generation` is next.
    """

    index: int
    id: int
    logprob: float | None
    before: float | None
    after: float | None
    steered: bool
    trace: TokenTrace | None
    last: bool
    text: str = ""


@dataclass(frozen=True, eq=False)
class Generation:
    """The engine's answer to one request.

    offsets: where in `text` begins what each token made certain; a special token makes nothing certain, nor does one that is cut.
    activations: hook point -> (L, d) at the answer position, before any step there; only from an engine that captures.
    token_times, queued_at, seated_at (it got its place), started_at (its prompt is computed): `time.perf_counter()` seconds.
    """

    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    predicted_error: PredictedError | None
    steering: SteeringCounts
    answer: Answer | None
    logprobs: tuple[float, ...] | None = None
    trace: tuple[TokenTrace, ...] | None = None
    activations: Mapping[str, torch.Tensor] | None = None
    queued_at: float = 0.0
    seated_at: float = 0.0
    started_at: float = 0.0
    token_times: tuple[float, ...] = ()
    offsets: tuple[int, ...] = ()
