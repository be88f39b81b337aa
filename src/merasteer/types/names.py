"""The words of the method, and the limits of what one spelling may be."""

from __future__ import annotations

from typing import Literal, get_args

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
    "AnswerPosition",
    "Choose",
    "Decision",
    "Direction",
    "FinishReason",
    "HookPoint",
    "Law",
    "Method",
    "NamedPositions",
    "Positions",
    "Tokens",
    "TooLong",
]


HookPoint = Literal["residual", "mlp_input", "reference"]
Direction = Literal[
    "euclidean",
    "covariance",
    "contrastive",
    "contrastive_covariance",
    "gradient",
    "proportional",
    "gradient_by_label",
    "label_probe",  # none: what it reads is the answer
]
# What happens where a gate opens: the step that brings z to logit α; one of the policy's strength; the same times the predicted error; or
# the label is the one that the class readouts say.
Law = Literal["closed_form", "gated", "proportional", "label_probe"]
NamedPositions = Literal["generation", "all", "last"]
Positions = NamedPositions | tuple[int, ...]  # a tuple: 0-based indices into the prompt
Choose = Literal["labels", "free"]  # the answer is one of the labels, or whatever the model writes
AnswerPosition = Literal["last", "exact"]  # of a free answer
TooLong = Literal["error", "skip"]
Tokens = tuple[int, ...]
Method = Literal["mera", "none", "additive", "contrastive", "logit_bias", "mera+bias", "label_probe"]
Decision = Literal["steered", "not_needed", "abstained", "off"]
FinishReason = Literal["length", "eos_token", "stop_sequence"]

MAX_LABEL_TOKENS = 32  # of one spelling of a label
HOOK_POINTS: tuple[HookPoint, ...] = get_args(HookPoint)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
CONTRASTIVE: tuple[Direction, ...] = ("contrastive", "contrastive_covariance")  # read by a difference of means
LAWS: dict[Direction, Law] = {
    "euclidean": "closed_form",
    "covariance": "closed_form",
    "contrastive": "closed_form",
    "contrastive_covariance": "closed_form",
    "gradient": "gated",
    "gradient_by_label": "gated",
    "proportional": "proportional",
    "label_probe": "label_probe",
}
CLOSED_FORM: tuple[Direction, ...] = tuple(name for name in DIRECTIONS if LAWS[name] == "closed_form")
BY_CLASS: tuple[Direction, ...] = ("gradient_by_label", "label_probe")  # with class readouts
POSITIONS: tuple[NamedPositions, ...] = get_args(NamedPositions)
CHOOSE: tuple[Choose, ...] = get_args(Choose)
ANSWER_POSITIONS: tuple[AnswerPosition, ...] = get_args(AnswerPosition)
TOO_LONG: tuple[TooLong, ...] = get_args(TooLong)
METHODS: tuple[Method, ...] = get_args(Method)
DECISIONS: tuple[Decision, ...] = get_args(Decision)
