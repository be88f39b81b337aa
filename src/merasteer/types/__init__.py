"""Frozen values that every layer exchanges. No behaviour beyond validation and derived values.

Shapes: L layers, d width, P resident policies, N items. Layers are 0-based. Tensors are float32 on the CPU unless said otherwise.
"""

from __future__ import annotations

from merasteer.types.answers import Answer, GeneratedToken, Generation, PredictedError, SteeringCounts, TokenTrace
from merasteer.types.artifacts import Artifact, own_method
from merasteer.types.correction import UNCORRECTED, Correction
from merasteer.types.names import (
    ANSWER_POSITIONS,
    BY_CLASS,
    CHOOSE,
    CLOSED_FORM,
    CONTRASTIVE,
    DECISIONS,
    DIRECTIONS,
    HOOK_POINTS,
    LAWS,
    MAX_LABEL_TOKENS,
    METHODS,
    POSITIONS,
    TOO_LONG,
    AnswerPosition,
    Choose,
    Decision,
    Direction,
    FinishReason,
    HookPoint,
    Law,
    Method,
    NamedPositions,
    Positions,
    Tokens,
    TooLong,
)
from merasteer.types.requests import GenerationRequest, LabelChoice, Sampling
from merasteer.types.steering import ClassReadouts, Policy, SteeringVectors
from merasteer.types.tasks import DataSource, Example, ServedTask, Splits, SplitSizes, Task

__all__ = [
    "ANSWER_POSITIONS",
    "BY_CLASS",
    "CHOOSE",
    "CLOSED_FORM",
    "CONTRASTIVE",
    "DECISIONS",
    "DIRECTIONS",
    "HOOK_POINTS",
    "LAWS",
    "MAX_LABEL_TOKENS",
    "METHODS",
    "POSITIONS",
    "TOO_LONG",
    "UNCORRECTED",
    "Answer",
    "AnswerPosition",
    "Artifact",
    "Choose",
    "ClassReadouts",
    "Correction",
    "DataSource",
    "Decision",
    "Direction",
    "Example",
    "FinishReason",
    "GeneratedToken",
    "Generation",
    "GenerationRequest",
    "HookPoint",
    "LabelChoice",
    "Law",
    "Method",
    "NamedPositions",
    "Policy",
    "Positions",
    "PredictedError",
    "Sampling",
    "ServedTask",
    "SplitSizes",
    "Splits",
    "SteeringCounts",
    "SteeringVectors",
    "Task",
    "TokenTrace",
    "Tokens",
    "TooLong",
    "own_method",
]
