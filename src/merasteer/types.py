"""Frozen values that every layer exchanges. No behaviour beyond validation and derived properties.

Shapes: L layers, d width, P resident policies, N items. Layers are 0-based. Tensors are float32 on the CPU unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from merasteer.errors import InvalidInput

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
    "Answer",
    "AnswerPosition",
    "Artifact",
    "Choose",
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

MAX_LABEL_TOKENS = 32  # of one spelling of a label


# ------------------------------------------------------------------------------------------------ tasks


@dataclass(frozen=True)
class SplitSizes:
    """Rows of each split, and how they are drawn.

    shuffle: in a random order of `seed`, each split in the classes' proportions of the whole; else in file order.
    too_long: rows whose prompt and answer exceed the model's context are an error, or are left out and counted.
    """

    train: int = 1500
    calibration: int = 250
    test: int = 250
    shuffle: bool = True
    seed: int = 0
    too_long: TooLong = "error"


@dataclass(frozen=True)
class DataSource:
    """Where rows come from, a local file or a data set on a hub, and what their columns are called.

    label: its column. label_index: whether a whole number there is an index into the task's labels. config: the hub's
    configurations, read one after another; none means its default. fields: a template's field -> its column, where the names
    differ. where: column -> the values one of which a row must have there.
    """

    label: str
    path: Path | None = None
    hub: str | None = None
    split: str | None = None
    config: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)
    where: Mapping[str, tuple[str | int | bool, ...]] = field(default_factory=dict, hash=False)
    label_index: bool = False


@dataclass(frozen=True)
class Task:
    """A closed-label job as a task file describes it. `variants[i]` are the spellings of `labels[i]`.

    choose: see `Choose`. position, max_new_tokens: of a free answer; under "labels" they are "last" and 1 and count for nothing.
    chat: the rendered template is the user's message inside the tokenizer's chat template; None: where the tokenizer has one.
    system: the system message of a chat. examples: rows shown in front with their labels, balanced over the labels.
    notes: what a reader of the task file should be told, one line each.
    """

    name: str
    labels: tuple[str, ...]
    variants: tuple[tuple[str, ...], ...]
    template: str
    choose: Choose = "labels"
    position: AnswerPosition = "last"
    max_new_tokens: int = 1
    chat: bool | None = False
    system: str | None = None
    examples: int = 0
    data: DataSource | None = None
    splits: SplitSizes = field(default_factory=SplitSizes)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServedTask:
    """A task resolved against a tokenizer: all that serving needs. `variants[i]` are the spellings of `labels[i]` as token ids.

    A free answer is known by one token: there each spelling is one. end: the token that competes where one variant begins another, None
    where none does. examples: (rendered prompt, label as it is written) of the rows shown in front, in order.
    """

    name: str
    labels: tuple[str, ...]
    variants: tuple[tuple[Tokens, ...], ...]
    template: str
    choose: Choose = "labels"
    position: AnswerPosition = "last"
    max_new_tokens: int = 1
    chat: bool = False
    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    end: int | None = None

    @property
    def choice(self) -> LabelChoice | None:
        """What the engine chooses among; None for a free answer."""
        return LabelChoice(self.variants, self.end) if self.choose == "labels" else None

    @property
    def answer_tokens(self) -> tuple[tuple[int, ...], ...] | None:
        """The tokens by which a free answer is known, per label; None where the answer is chosen among labels."""
        if self.choose == "labels":
            return None
        return tuple(tuple(tokens[0] for tokens in spellings) for spellings in self.variants)


@dataclass(frozen=True)
class Example:
    """One labelled row. `digest` identifies its content: the template's fields, NFC, white space collapsed, case-folded.

    prompt: the rendered template, without what a chat puts around it. where: its file and line.
    """

    prompt: str
    label: int
    digest: str
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Splits:
    """Three splits, disjoint by content, and the rows shown in front of every prompt, which are in none of them.

    skipped: rows dropped because their content had been seen. too_long: where the rows stand that were left out for their length.
    """

    train: tuple[Example, ...]
    calibration: tuple[Example, ...]
    test: tuple[Example, ...]
    skipped: int = 0
    examples: tuple[Example, ...] = ()
    too_long: tuple[str, ...] = ()

    @property
    def digests(self) -> dict[str, list[str]]:
        """Content digests per split, in order."""
        return {name: [example.digest for example in getattr(self, name)] for name in ("train", "calibration", "test")}


# ------------------------------------------------------------------------------------------- steering


@dataclass(frozen=True, eq=False)
class SteeringVectors:
    """What the engine holds resident: readouts and steps of one hook point.

    weight (L, d), bias (L,), step (L, d). A row of `weight` that is zero is an idle layer: it is neither read nor moved.
    """

    hook_point: HookPoint
    weight: torch.Tensor
    bias: torch.Tensor
    step: torch.Tensor
    report_layer: int

    def __post_init__(self) -> None:
        layers = self.weight.shape[0]
        if self.weight.ndim != 2 or self.step.shape != self.weight.shape or self.bias.shape != (layers,):
            raise InvalidInput(
                f"steering vectors: weight {tuple(self.weight.shape)}, bias {tuple(self.bias.shape)} and step "
                f"{tuple(self.step.shape)} do not agree; give (L, d), (L,) and (L, d)"
            )
        for name in ("weight", "bias", "step"):
            if not torch.isfinite(getattr(self, name)).all():
                raise InvalidInput(f"steering vectors: {name} holds a value that is not finite; fit the probe again")
        if not 0 <= self.report_layer < layers:
            raise InvalidInput(f"steering vectors: report_layer {self.report_layer} is outside 0..{layers - 1}")

    @cached_property
    def active_layers(self) -> tuple[int, ...]:
        """Layers whose readout is not zero."""
        return tuple(torch.nonzero(self.weight.abs().sum(-1) > 0).flatten().tolist())


@dataclass(frozen=True)
class Policy:
    """What one request asks of the engine. `vectors` is the key under which the engine holds the steering vectors.

    alpha: threshold on the predicted error, in (0, 1); None never moves by the closed form (the readouts are still read).
    strength: fixed-strength baselines move every eligible token by −strength · step; 0 for MERA.
    layers: layers that may move; None means every active layer.
    """

    vectors: str
    alpha: float | None = None
    strength: float = 0.0
    positions: Positions = "generation"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0.0 < self.alpha < 1.0:
            raise InvalidInput(
                f"alpha: {self.alpha!r} is outside the open interval (0, 1); give a probability such as 0.3"
            )
        if isinstance(self.positions, tuple):
            if not self.positions or len(set(self.positions)) < len(self.positions) or min(self.positions) < 0:
                raise InvalidInput("positions: give one or more 0-based indices into the prompt, each once")
        elif self.positions not in POSITIONS:
            raise InvalidInput(
                f"positions: {self.positions!r} is not one of {', '.join(POSITIONS)}, nor a list of indices"
            )


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature None or 0 is greedy, and then nothing else counts."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return not self.temperature


@dataclass(frozen=True)
class LabelChoice:
    """The answer is one of these labels: variants[c] are the spellings of label c as token sequences (docs/method.md, choosing a label).

    end: the token that competes where one spelling is the beginning of another. The engine's own: settled, what is decided on the way of
    each spelling behind the first token, as a log-probability; path, the tokens that lead to the branching point that is asked about.
    """

    variants: tuple[tuple[Tokens, ...], ...]
    end: int | None = None
    settled: tuple[tuple[float, ...], ...] | None = None
    path: Tokens = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest spelling."""
        return max(len(tokens) for spellings in self.variants for tokens in spellings)


@dataclass(frozen=True)
class GenerationRequest:
    """One request to the engine.

    max_new_tokens: None ends with the label of `choice`. choice: the answer is one of its labels, chosen at the last prompt position;
    what follows it is free and unsteered. variants (token ids per class): of a free answer, asks for class probabilities at `position`.
    label_bias: added where the answer is chosen, one per class: to the class scores of `choice`, or to the logits of each class's
    variants; the class probabilities are then those behind the bias. acts: a free answer's policy acts where its first so many tokens
    are chosen; None: on all that is generated.
    """

    prompt: Tokens
    max_new_tokens: int | None = None
    policy: Policy | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    choice: LabelChoice | None = None
    variants: tuple[tuple[int, ...], ...] | None = None
    position: AnswerPosition = "last"
    label_bias: tuple[float, ...] | None = None
    acts: int | None = None
    logprobs: bool = False
    trace: bool = False

    @property
    def budget(self) -> int:
        """The most tokens that may be generated."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return 1 if self.choice is None else self.choice.longest


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
    """label: class index of the answer token, None when missing. probabilities: class softmax at the answer position.

    biased: whether the label bias changed the token that was chosen there.
    """

    label: int | None
    probabilities: tuple[float, ...]
    biased: bool = False


@dataclass(frozen=True)
class TokenTrace:
    """What happened at the position that chose one generated token; one value per layer (idle layers read 0 and 0.5)."""

    before: tuple[float, ...]
    after: tuple[float, ...]
    shift: tuple[float, ...]


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token on its way to a caller who watches.

    index: 0-based. logprob and trace are there where the request asks for them. before, after: σ(z) at the report layer at the
    position that chose this token, None without a policy. steered: whether the step that chose it moved a cell. last: nothing
    follows it, the request's `Generation` is next.
    """

    index: int
    id: int
    logprob: float | None
    before: float | None
    after: float | None
    steered: bool
    trace: TokenTrace | None
    last: bool


@dataclass(frozen=True, eq=False)
class Generation:
    """The engine's answer to one request.

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


# ------------------------------------------------------------------------------------------ artifacts


@dataclass(frozen=True, eq=False)
class Artifact:
    """Readouts, steps, the chosen candidate and its certificate: immutable and content-addressed (docs/method.md).

    weight (L, d), bias (L,), step (L, d) zero where idle; contrastive (L, d) or None; label_bias (labels,) or None.
    manifest and calibration are the parsed JSON files; see `merasteer.store.manifest` for their fields.
    """

    manifest: Mapping[str, Any]
    calibration: Mapping[str, Any]
    weight: torch.Tensor
    bias: torch.Tensor
    step: torch.Tensor
    contrastive: torch.Tensor | None = None
    label_bias: torch.Tensor | None = None

    @property
    def digest(self) -> str:
        return str(self.manifest["digest"])

    @property
    def alpha(self) -> float | None:
        alpha = self.manifest["steering"]["alpha"]
        return None if alpha is None else float(alpha)

    @property
    def certified(self) -> bool:
        return bool(self.manifest["certified"])

    @property
    def task(self) -> ServedTask:
        raw = dict(self.manifest["task"])
        raw["labels"] = tuple(raw["labels"])
        raw["variants"] = tuple(tuple(tuple(ids) for ids in spellings) for spellings in raw["variants"])
        raw["examples"] = tuple(tuple(pair) for pair in raw["examples"])
        return ServedTask(**raw)

    @property
    def vectors(self) -> SteeringVectors:
        steering = self.manifest["steering"]
        return SteeringVectors(steering["hook_point"], self.weight, self.bias, self.step, steering["report_layer"])
