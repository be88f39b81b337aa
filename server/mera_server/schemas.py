"""The request bodies of the native routes: strict types, no unknown fields. Every description says what the field takes.

Pydantic's messages are not shown to callers (they may echo the input): `errors.describe` builds one from the descriptions here.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

from mera_server.neutral import Only, neutral_fields
from merasteer.types import Method, NamedPositions

__all__ = [
    "DEFAULT_MAX_NEW_TOKENS",
    "MAX_INPUTS",
    "ClassifyBody",
    "GenerateBody",
    "IgnoreEos",
    "LabelParameters",
    "LabelsBody",
    "Override",
    "Parameters",
    "Steering",
    "StreamBody",
    "Strict",
    "TopK",
]

DEFAULT_MAX_NEW_TOKENS = 16
MAX_INPUTS = 256
MAX_STOP_STRINGS = 16
MAX_STRENGTH = 1e4


class Strict(BaseModel):
    """A body: no coercion, no unknown fields but at null, no NaN or infinity, frozen."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, None]


def _finite(value: Any) -> Any:
    """The value, if no number inside it is NaN or infinite."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if any(_finite(item) is not item for item in items) or (isinstance(value, float) and not math.isfinite(value)):
        raise PydanticCustomError("finite_number", "a number is not finite")
    return value


def _all_for_none(value: int | None) -> int | None:
    """0 and -1 are what other servers call a draw from all tokens."""
    return None if value in (0, -1) else value


TopK = Annotated[
    int | None,
    Field(ge=-1, le=2**31 - 1, description="a positive integer; 0, -1 or null for all tokens"),
    AfterValidator(_all_for_none),
]
IgnoreEos = Annotated[bool | None, Field(description="true, false or null; true without a task only")]
Inputs = Annotated[str | dict[str, JsonValue], AfterValidator(_finite)]


@neutral_fields
class Parameters(Strict):
    """The parameters of text-generation-inference; behind them those that are accepted at their neutral values only."""

    max_new_tokens: Annotated[
        int | None, Field(ge=1, description="a positive integer; null ends with the task's label")
    ] = None
    temperature: Annotated[
        float | None, Field(ge=0, le=100, description="a number from 0 to 100, 0 or null for greedy")
    ] = None
    top_p: Annotated[float | None, Field(gt=0, le=1, description="a number above 0, at most 1")] = None
    top_k: TopK = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]] | None,
        Field(
            max_length=MAX_STOP_STRINGS,
            description=f"an array of at most {MAX_STOP_STRINGS} strings of 1 to 256 characters",
        ),
    ] = None
    seed: Annotated[int | None, Field(ge=0, le=2**63 - 1, description="an integer from 0 to 2^63 - 1")] = None
    return_full_text: Annotated[bool | None, Field(description="true, false or null")] = None
    details: Annotated[bool | None, Field(description="true, false or null")] = None

    do_sample: Annotated[
        bool | None, Field(description="true, false or null; true samples, at temperature 1 where none is given")
    ] = None
    ignore_eos: IgnoreEos = None


class Override(Strict):
    """How a task is steered. null means: as the artifact says."""

    probe: Annotated[
        str | None, Field(pattern="^[0-9a-f]{1,64}$", description="the first hex digits of a digest, see GET /probes")
    ] = None
    method: Annotated[
        Method | None, Field(description="mera, none, additive, contrastive, logit_bias, mera+bias or label_probe")
    ] = None
    alpha: Annotated[float | None, Field(gt=0, lt=1, description="a number in the open interval (0, 1)")] = None
    positions: Annotated[
        NamedPositions | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None,
        Field(description="generation, all, last, or an array of different prompt positions, counted from 0"),
    ] = None
    layers: Annotated[
        list[Annotated[int, Field(ge=0)]] | None,
        Field(min_length=1, description="an array of different layer numbers, counted from 0"),
    ] = None
    strength: Annotated[
        float | None,
        Field(
            ge=-MAX_STRENGTH,
            le=MAX_STRENGTH,
            description="a number from -10000 to 10000, for additive and contrastive only",
        ),
    ] = None


class Steering(Override):
    """How this one request is steered, and for which task."""

    task: Annotated[str | None, Field(min_length=1, description="the name of a task, see GET /tasks")] = None


@neutral_fields
class GenerateBody(Strict):
    """The body of `POST /generate` and of `POST /`."""

    inputs: Annotated[Inputs, Field(description="a string, or an object with the fields of the task's template")]
    parameters: Annotated[Parameters | None, Field(description="an object of generation parameters")] = None
    steering: Annotated[Steering | None, Field(description='an object such as {"task": "..."}')] = None
    details: Annotated[Literal["none", "summary", "trace"] | None, Field(description="none, summary or trace")] = None
    stream: Annotated[bool | None, Field(description="true for server-sent events, one for each token")] = None


class StreamBody(GenerateBody):
    """The body of `POST /generate_stream`, which always streams."""

    stream: Annotated[bool | None, Only((True,)), Field(description="true or null; /generate answers at once")] = None


@neutral_fields
class LabelParameters(Strict):
    """The parameters of a text classification as Hugging Face's clients send it."""

    top_k: Annotated[int | None, Field(ge=1, description="a positive integer, or null for all labels")] = None


@neutral_fields
class LabelsBody(Strict):
    """The body of `POST /classify/{task}`: one input, or several."""

    inputs: Annotated[
        Inputs | Annotated[list[Inputs], Field(min_length=1, max_length=MAX_INPUTS)],
        Field(description=f"an input of the task, a string or an object, or an array of 1 to {MAX_INPUTS} of them"),
    ]
    parameters: Annotated[LabelParameters | None, Field(description="an object such as {}")] = None
    steering: Annotated[Override | None, Field(description='an object such as {"alpha": 0.3}')] = None


class ClassifyBody(Strict):
    """The body of `POST /classify`."""

    task: Annotated[str, Field(min_length=1, description="the name of a task, see GET /tasks")]
    inputs: Annotated[
        list[Inputs],
        Field(
            min_length=1,
            max_length=MAX_INPUTS,
            description=f"1 to {MAX_INPUTS} items, each an object with the fields of the task's template, "
            "or a string where it has only one",
        ),
    ]
    steering: Annotated[Override | None, Field(description='an object such as {"alpha": 0.3}')] = None
