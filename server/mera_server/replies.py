"""The response bodies of the native routes, field for field as documented."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mera_server.told import ErrorType
from merasteer.types import Decision, FinishReason

__all__ = [
    "AnswerReply",
    "BriefReply",
    "Caution",
    "ClassifiedReply",
    "ClassifyReply",
    "CountsReply",
    "DetailsReply",
    "DetokenizeReply",
    "ErrorReply",
    "GenerateReply",
    "GuaranteeReply",
    "LabelReply",
    "MeraReply",
    "PieceReply",
    "PredictedErrorReply",
    "Reason",
    "ReloadReply",
    "StepReply",
    "StreamDetailsReply",
    "StreamReply",
    "TaskReply",
    "TasksReply",
    "TokenReply",
    "TokenizeReply",
    "TraceReply",
    "UsageReply",
]

Caution = Literal["collapse", "below_majority"]
Reason = Literal["disabled", "no_probe", "conditions", "collapse", "uncertified", "other_prompt"]


class Reply(BaseModel):
    """A response: what it holds is exactly what is documented."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ErrorDetail(Reply):
    code: str
    message: str


class ErrorReply(Reply):
    """The one body of every error on native routes."""

    error: ErrorDetail
    error_type: Annotated[
        ErrorType | None, Field(description="what text-generation-inference calls it; null where the status says it")
    ]


class TokenReply(Reply):
    """A generated token as text-generation-inference describes it."""

    id: int
    text: str
    logprob: float
    special: bool


class StreamDetailsReply(Reply):
    """How generation went."""

    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int
    seed: Annotated[int | None, Field(description="the seed that was used; null when greedy")]


class DetailsReply(StreamDetailsReply):
    """How generation went. prefill and tokens are there when `parameters.details` is true."""

    prefill: list[TokenReply] | None = None
    tokens: list[TokenReply] | None = None


class PredictedErrorReply(Reply):
    """The probe's reading at the report layer, before and behind its step."""

    before: float
    after: float
    layer: int
    position: Literal["answer", "last_prompt"]


class CountsReply(Reply):
    """Positions and cells that the policy could act on, and those it moved."""

    tokens: int = 0
    steered_tokens: int = 0
    cells: int = 0
    steered_cells: int = 0
    mean_shift: float = 0.0
    max_shift: float = 0.0


class GuaranteeReply(Reply):
    """What was certified for this task, and whether it covers this request."""

    certified: bool
    why: Annotated[str | None, Field(description="why the certificate does not cover this request")]
    test: str | None
    gain: float | None
    lower_bound: float | None
    epsilon: float | None
    delta: Annotated[float | None, Field(description="asked for")]
    level: Annotated[float | None, Field(description="at which the test was made, as that attempt on its rows")]
    attempt: int | None
    n: int | None


By = Literal["model", "label_probe"]


class AnswerReply(Reply):
    """The label of the answer token, and the class probabilities where it was chosen."""

    label: str | None
    probabilities: dict[str, float]
    by: Annotated[By, Field(description="what chose the label; the probabilities are the model's")]


class TraceReply(Reply):
    """One generated token: predicted error before and behind the step, and the shift, for each layer."""

    id: int
    text: str
    before: list[float]
    after: list[float]
    shift: list[float]


class BriefReply(Reply):
    """`details: none`."""

    decision: Decision
    reason: Reason | None
    alpha: float | None


class MeraReply(Reply):
    """`details: summary` or `trace`."""

    task: str | None
    probe: str | None
    method: str
    decision: Decision
    reason: Reason | None
    alpha: float | None
    predicted_error: PredictedErrorReply | None
    steering: CountsReply
    guarantee: GuaranteeReply | None
    answer: AnswerReply | None
    trace: list[TraceReply] | None


class GenerateReply(Reply):
    """The answer of `POST /generate`."""

    generated_text: str
    details: DetailsReply
    mera: MeraReply | BriefReply

    def json_bytes(self) -> bytes:
        """The body; `prefill` and `tokens` are left out unless they were asked for."""
        unasked: Any = {"details": {"prefill", "tokens"}} if self.details.tokens is None else None
        return self.model_dump_json(exclude=unasked).encode()


class ErrorsReply(Reply):
    """The probe's reading at the report layer at one token."""

    before: float
    after: float


class StepTraceReply(Reply):
    """Predicted error before and behind the step, and the shift, for each layer."""

    before: list[float]
    after: list[float]
    shift: list[float]


class StepReply(Reply):
    """What the step read and did that chose one token."""

    predicted_error: ErrorsReply | None
    steered: bool
    trace: StepTraceReply | None


class StreamReply(Reply):
    """One event of a stream: a token. The last one has the whole text, how generation went, and what steering did."""

    index: Annotated[int, Field(description="counted from 1")]
    token: Annotated[
        TokenReply, Field(description="its text is what became certain with it; they join to generated_text")
    ]
    step: Annotated[StepReply | None, Field(description="null for details none")]
    generated_text: Annotated[str | None, Field(description="null but in the last event")]
    details: Annotated[StreamDetailsReply | None, Field(description="null but in the last event")]
    mera: Annotated[MeraReply | BriefReply | None, Field(description="null but in the last event")]


class ClassifiedReply(Reply):
    """One input of `POST /classify`."""

    label: Annotated[str | None, Field(description="null when no label was generated")]
    probabilities: dict[str, float]
    by: Annotated[By | None, Field(description="what chose the label; null when none was chosen")]
    decision: Decision
    reason: Reason | None
    predicted_error: PredictedErrorReply | None
    certified: Annotated[bool, Field(description="whether the task's certificate covers this answer")]


class UsageReply(Reply):
    """Over all inputs."""

    prompt_tokens: int
    generated_tokens: int


class ClassifyReply(Reply):
    """The answer of `POST /classify`; results in the order of the inputs."""

    task: str
    probe: str | None
    results: list[ClassifiedReply]
    usage: UsageReply


class LabelReply(Reply):
    """A label and its share, as text-classification clients read it."""

    label: str
    score: float


class PieceReply(Reply):
    """A token and its text, as llama.cpp tells them."""

    id: int
    piece: str


class TokenizeReply(Reply):
    """The answer of `POST /tokenize`."""

    count: int
    max_model_len: Annotated[int, Field(description="tokens of a prompt and its answer together, at most")]
    tokens: list[int] | list[PieceReply]
    token_strs: list[str] | None


class DetokenizeReply(Reply):
    """The answer of `POST /detokenize`: one text under the names of two servers."""

    prompt: str
    content: str


class ReloadReply(Reply):
    """The answer of `POST /probes/reload`: how many artifacts there are now, and the digests that came and went."""

    loaded: int
    rejected: int
    added: list[str]
    removed: list[str]
    latest: Annotated[dict[str, str], Field(description="task: digest of its default artifact")]


class TaskReply(Reply):
    name: str
    labels: list[str]
    probe: str | None
    certified: bool
    alpha: float | None
    caution: Annotated[Caution | None, Field(description="what its test found beside the gain")]


class TasksReply(Reply):
    tasks: list[TaskReply]
