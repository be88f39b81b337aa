"""The values that go in and come out, named as on the wire and frozen. Keys that are not listed here are ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# Documentation for people and type checkers: a newer server may send another value, and that is no error.
Decision = Literal["steered", "not_needed", "abstained", "off"]
FinishReason = Literal["length", "eos_token", "stop_sequence"]
# Why a server abstained, the first that holds.
Reason = Literal["disabled", "no_probe", "conditions", "collapse", "uncertified", "other_prompt"]

Inputs = str | Mapping[str, Any]
Method = Literal["mera", "none", "additive", "contrastive", "logit_bias", "mera+bias", "label_probe"]
MeraDetails = Literal["none", "summary", "trace"]
Positions = Literal["generation", "all", "last"] | Sequence[int]


@dataclass(frozen=True)
class Steering:
    """What a request asks for. None means as the artifact says.

    probe: a digest or the start of one. alpha: threshold on the predicted error, in (0, 1). layers: 0-based.
    positions: by name, or 0-based indices into the prompt. strength: only for additive and contrastive; logit_bias takes
    none of alpha, positions, layers.
    """

    task: str | None = None
    probe: str | None = None
    method: Method | None = None
    alpha: float | None = None
    positions: Positions | None = None
    layers: Sequence[int] | None = None
    strength: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Token:
    """One generated token. logprob: before temperature, top-k and top-p."""

    id: int
    text: str
    logprob: float
    special: bool


@dataclass(frozen=True)
class Details:
    """How the generation went. prefill and tokens are there when the request asked for `details`."""

    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int
    seed: int | None = None
    prefill: tuple[Token, ...] | None = None
    tokens: tuple[Token, ...] | None = None


@dataclass(frozen=True)
class PredictedError:
    """The probe's estimate of 1 − q(true label) around the step of `layer`; not a probability of being wrong."""

    before: float
    after: float
    layer: int
    position: str


@dataclass(frozen=True)
class SteeringCounts:
    """What was moved. A cell is one (position, layer); shifts are ‖v‖/‖h‖ over moved cells, 0 when none moved."""

    tokens: int
    steered_tokens: int
    cells: int
    steered_cells: int
    mean_shift: float
    max_shift: float


@dataclass(frozen=True)
class Guarantee:
    """What is promised about the average over the calibration distribution, never about one request.

    why: the reason when `certified` is false.
    """

    certified: bool
    why: str | None = None
    test: str | None = None
    gain: float | None = None
    lower_bound: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    level: float | None = None
    attempt: int | None = None
    n: int | None = None


@dataclass(frozen=True)
class Answer:
    """label: of the answer token, None when it is none of the labels. probabilities: the model's softmax over the labels.

    by: what chose the label, "model" or "label_probe".
    """

    label: str | None
    probabilities: Mapping[str, float]
    by: str = "model"


@dataclass(frozen=True)
class TokenTrace:
    """The position that chose one generated token: predicted error before and after, and the shift, per layer."""

    id: int
    text: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    shift: tuple[float, ...]


@dataclass(frozen=True)
class Mera:
    """What steering did and why. With `mera_details="none"` only decision, reason and alpha are filled."""

    decision: Decision
    reason: Reason | None = None
    alpha: float | None = None
    task: str | None = None
    probe: str | None = None
    method: Method | None = None
    predicted_error: PredictedError | None = None
    steering: SteeringCounts | None = None
    guarantee: Guarantee | None = None
    answer: Answer | None = None
    trace: tuple[TokenTrace, ...] | None = None


@dataclass(frozen=True)
class Generation:
    """The answer to one request."""

    generated_text: str
    details: Details
    mera: Mera


@dataclass(frozen=True)
class StepError:
    """The probe's estimate at the report layer, at the position that chose one token."""

    before: float
    after: float


@dataclass(frozen=True)
class StepTrace:
    """The position that chose one token: predicted error before and after, and the shift, per layer."""

    before: tuple[float, ...]
    after: tuple[float, ...]
    shift: tuple[float, ...]


@dataclass(frozen=True)
class Step:
    """The step that chose one token. steered: whether it moved anything."""

    steered: bool
    predicted_error: StepError | None = None
    trace: StepTrace | None = None


@dataclass(frozen=True)
class TokenEvent:
    """One token as it comes; the texts of all of them are the generated text. The last one brings what is below step.

    index: 1 for the first token. step: None with `mera_details="none"`.
    """

    index: int
    token: Token
    step: Step | None = None
    generated_text: str | None = None
    details: Details | None = None
    mera: Mera | None = None

    @property
    def last(self) -> bool:
        """Whether nothing follows."""
        return self.generated_text is not None


@dataclass(frozen=True)
class Classified:
    """One input's answer. label: None when the answer is none of the labels. certified: whether the certificate covers it.

    by: what chose the label, "model" or "label_probe".
    """

    label: str | None
    probabilities: Mapping[str, float]
    decision: Decision
    reason: Reason | None
    predicted_error: PredictedError | None
    certified: bool
    by: str | None = "model"


@dataclass(frozen=True)
class Usage:
    """Tokens of all inputs together."""

    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class Classification:
    """The answer to one list of inputs: `results` in their order. probe: None where no artifact serves the task."""

    task: str
    probe: str | None
    results: tuple[Classified, ...]
    usage: Usage


@dataclass(frozen=True)
class TaskInfo:
    """One task that the server knows. probe is None where no artifact is loaded for it."""

    name: str
    labels: tuple[str, ...]
    probe: str | None = None
    certified: bool = False
    alpha: float | None = None
    caution: str | None = None


@dataclass(frozen=True)
class ProbeInfo:
    """One artifact of the store. What does not apply is None: nearly all of it where the artifact was rejected.

    status: loaded | rejected, the latter with its reason. layers: those that may move. test and the fields behind it
    describe the candidate that was tested, and how many there were. raw: all that the server said; `probe(digest)` has
    `manifest` and `calibration` there.
    """

    digest: str | None = None
    task: str | None = None
    status: str | None = None
    reason: str | None = None
    model: str | None = None
    certified: bool | None = None
    method: Method | None = None
    alpha: float | None = None
    hook_point: str | None = None
    direction: str | None = None
    layers: tuple[int, ...] | None = None
    positions: str | None = None
    report_layer: int | None = None
    family: str | None = None
    test: str | None = None
    p_value: float | None = None
    gain: float | None = None
    lower_bound: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    level: float | None = None
    attempt: int | None = None
    n: int | None = None
    candidates: int | None = None
    collapse: str | None = None
    below_majority: bool | None = None
    broken: Mapping[str, Any] | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
