"""The words of the method, and the limits of what one spelling may be."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = [
    "ANSWER_POSITIONS",
    "CHOOSE",
    "CONTRASTIVE",
    "DECISIONS",
    "DIRECTIONS",
    "HOOK_POINTS",
    "MAX_LABEL_TOKENS",
    "METHODS",
    "POSITIONS",
    "TOO_LONG",
    "AnswerPosition",
    "Choose",
    "Decision",
    "Direction",
    "FinishReason",
    "HookPoint",
    "Method",
    "NamedPositions",
    "Positions",
    "Tokens",
    "TooLong",
]


HookPoint = Literal["residual", "mlp_input", "reference"]
Direction = Literal["euclidean", "covariance", "contrastive", "contrastive_covariance"]
NamedPositions = Literal["generation", "all", "last"]
Positions = NamedPositions | tuple[int, ...]  # a tuple: 0-based indices into the prompt
Choose = Literal["labels", "free"]  # the answer is one of the labels, or whatever the model writes
AnswerPosition = Literal["last", "exact"]  # of a free answer
TooLong = Literal["error", "skip"]
Tokens = tuple[int, ...]
Method = Literal["mera", "none", "additive", "contrastive", "logit_bias", "mera+bias"]
Decision = Literal["steered", "not_needed", "abstained", "off"]
FinishReason = Literal["length", "eos_token", "stop_sequence"]

MAX_LABEL_TOKENS = 32  # of one spelling of a label
HOOK_POINTS: tuple[HookPoint, ...] = get_args(HookPoint)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
CONTRASTIVE: tuple[Direction, ...] = ("contrastive", "contrastive_covariance")  # read by a difference of means
POSITIONS: tuple[NamedPositions, ...] = get_args(NamedPositions)
CHOOSE: tuple[Choose, ...] = get_args(Choose)
ANSWER_POSITIONS: tuple[AnswerPosition, ...] = get_args(AnswerPosition)
TOO_LONG: tuple[TooLong, ...] = get_args(TooLong)
METHODS: tuple[Method, ...] = get_args(Method)
DECISIONS: tuple[Decision, ...] = get_args(Decision)
