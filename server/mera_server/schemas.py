"""The request bodies of the native routes: strict types, no unknown fields. Every description says what the field takes.

Pydantic's messages are not shown to callers (they may echo the input): `errors.describe` builds one from the descriptions here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from merasteer.types import Method, NamedPositions

__all__ = [
    "DEFAULT_MAX_NEW_TOKENS",
    "MAX_INPUTS",
    "ClassifyBody",
    "GenerateBody",
    "Override",
    "Parameters",
    "Steering",
    "StreamBody",
    "Strict",
]

DEFAULT_MAX_NEW_TOKENS = 16
MAX_INPUTS = 256
MAX_STOP_STRINGS = 16
MAX_STRENGTH = 1e4


class Strict(BaseModel):
    """A body: no coercion, no unknown fields, no NaN or infinity, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _finite(value: Any) -> Any:
    """The value, if no number inside it is NaN or infinite."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if any(_finite(item) is not item for item in items) or (isinstance(value, float) and not math.isfinite(value)):
        raise PydanticCustomError("finite_number", "a number is not finite")
    return value


@dataclass(frozen=True)
class _Only:
    """Accepts null and the neutral values of a parameter that this server does not implement; its JSON schema says so too."""

    neutral: tuple[JsonValue, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, _core: core_schema.CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"enum": [*self.neutral, None]}

    def _check(self, value: object) -> object:
        if value is not None and value not in self.neutral:
            raise PydanticCustomError("unsupported", "only the neutral value")
        return value


def _only(*neutral: JsonValue) -> _Only:
    return _Only(neutral)


Inputs = Annotated[str | dict[str, JsonValue], AfterValidator(_finite)]


class Parameters(Strict):
    """The parameters of text-generation-inference. The last twelve are accepted at their neutral value only."""

    max_new_tokens: Annotated[
        int | None, Field(ge=1, description="a positive integer; null ends with the task's label")
    ] = None
    temperature: Annotated[
        float | None, Field(ge=0, le=100, description="a number from 0 to 100, 0 or null for greedy")
    ] = None
    top_p: Annotated[float | None, Field(gt=0, le=1, description="a number above 0, at most 1")] = None
    top_k: Annotated[int | None, Field(ge=1, le=2**31 - 1, description="a positive integer")] = None
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

    best_of: Annotated[int | None, _only(1), Field(description="1 or null")] = None
    repetition_penalty: Annotated[float | None, _only(1), Field(description="1.0 or null")] = None
    frequency_penalty: Annotated[float | None, _only(0), Field(description="0.0 or null")] = None
    typical_p: Annotated[float | None, _only(1), Field(description="1.0 or null")] = None
    do_sample: Annotated[
        bool | None, _only(False), Field(description="false or null; temperature chooses sampling")
    ] = None
    truncate: Annotated[int | None, _only(), Field(description="null")] = None
    watermark: Annotated[bool | None, _only(False), Field(description="false or null")] = None
    decoder_input_details: Annotated[bool | None, _only(False), Field(description="false or null")] = None
    top_n_tokens: Annotated[int | None, _only(0), Field(description="0 or null")] = None
    grammar: Annotated[JsonValue, _only(), Field(description="null")] = None
    adapter_id: Annotated[str | None, _only(), Field(description="null")] = None
    stop_sequences: Annotated[list[str] | None, _only([]), Field(description="[] or null; use stop")] = None


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


class GenerateBody(Strict):
    """The body of `POST /generate` and of `POST /`."""

    inputs: Annotated[Inputs, Field(description="a string, or an object with the fields of the task's template")]
    parameters: Annotated[Parameters | None, Field(description="an object of generation parameters")] = None
    steering: Annotated[Steering | None, Field(description='an object such as {"task": "..."}')] = None
    details: Annotated[Literal["none", "summary", "trace"] | None, Field(description="none, summary or trace")] = None
    stream: Annotated[bool | None, Field(description="true for server-sent events, one for each token")] = None


class StreamBody(GenerateBody):
    """The body of `POST /generate_stream`, which always streams."""

    stream: Annotated[bool | None, _only(True), Field(description="true or null; /generate answers at once")] = None


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
