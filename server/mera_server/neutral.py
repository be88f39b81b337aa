"""Parameters of other servers that this one knows and does not implement, in one table: what each may hold, and why nothing else.

A field of the table is taken at null and at its neutral values, those that say what this server does anyway. Whatever would change the
answer is refused by name, with the reason. Bodies, OpenAPI description and errors are made from the table; docs/api.md shows it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, JsonValue, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

__all__ = ["TABLE", "Neutral", "Only", "neutral_fields", "of_body"]

Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True)
class Neutral:
    """Some fields of some bodies. takes: their values beside null; None: any, since none changes an answer here."""

    fields: tuple[str, ...]
    bodies: tuple[str, ...]
    takes: tuple[JsonValue, ...] | None
    why: str

    @property
    def told(self) -> str:
        """What the fields take, in words."""
        if self.takes is None:
            return "anything"
        return " or ".join((", ".join(map(json.dumps, self.takes)), "null")) if self.takes else "null"


def _row(fields: str, bodies: tuple[str, ...], takes: tuple[JsonValue, ...] | None, why: str) -> Neutral:
    return Neutral(tuple(fields.split()), bodies, takes, why)


_COMPLETIONS, _CHATS = ("CompletionBody",), ("ChatBody",)
_OPENAI = _COMPLETIONS + _CHATS
_NATIVE = ("Parameters",)
_ALL = _NATIVE + _OPENAI
_MESSAGE, _PART, _STREAM = ("Message",), ("TextPart",), ("StreamOptions",)

TABLE: tuple[Neutral, ...] = (
    _row(
        "best_of num_beams num_beam_groups num_return_sequences",
        _ALL, (1,), "each choice is generated once, without beams; `n` gives several on `/v1`",
    ),
    _row("use_beam_search early_stopping", _ALL, (False,), "there is no beam search"),
    _row("length_penalty diversity_penalty", _ALL, None, "it weighs beams, and there are none"),
    _row("repetition_penalty repeat_penalty encoder_repetition_penalty", _ALL, (1,), "penalties are not applied"),
    _row("frequency_penalty presence_penalty", _ALL, (0,), "penalties are not applied"),
    _row("no_repeat_ngram_size encoder_no_repeat_ngram_size penalty_alpha dry_multiplier", _ALL, (0,), "penalties are not applied"),
    _row(
        "repeat_last_n dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers",
        _ALL, None, "it shapes a penalty that is not applied",
    ),
    _row("typical_p tfs tfs_z", _ALL, (1,), "draws are narrowed by `top_p` and `top_k` only"),
    _row(
        "min_p top_a epsilon_cutoff eta_cutoff xtc_probability dynatemp_range smoothing_factor mirostat",
        _ALL, (0,), "draws are narrowed by `top_p` and `top_k` only",
    ),
    _row("xtc_threshold dynatemp_exponent mirostat_tau mirostat_eta", _ALL, None, "it shapes a draw that is not made"),
    _row("samplers", _ALL, (), "temperature, `top_k`, `top_p`, in this order"),
    _row("logit_bias", _ALL, ({}, []), "logits are biased for a task's labels only, by `steering`"),
    _row(
        "include_stop_str_in_output no_stop_trim",
        _ALL, (False,), "an answer ends at an end token and before a stop string",
    ),
    _row("min_tokens min_length min_new_tokens", _ALL, (0,), "an answer ends at an end token, however short it is"),
    _row("max_length n_predict max_time", _ALL, (), "`max_new_tokens` or `max_tokens` ends an answer"),
    _row(
        "stop_token_ids bad_words bad_words_ids suppress_tokens begin_suppress_tokens logits_processors",
        _ALL, ([],), "no token is forced or forbidden; `stop` takes strings",
    ),
    _row("stop_sequences", _ALL, ([],), "`stop` is its newer name"),
    _row(
        "allowed_token_ids guided_json guided_regex guided_choice guided_grammar guided_decoding_backend "
        "guided_whitespace_pattern structured_outputs structural_tag json_schema regex ebnf",
        _ALL, (), "nothing constrains the text but a task's labels",
    ),
    _row("grammar", _ALL, ("",), "nothing constrains the text but a task's labels"),
    _row("skip_special_tokens detokenize", _ALL, (True,), "texts come decoded, without special tokens"),
    _row("spaces_between_special_tokens", _ALL, None, "texts have no special tokens"),
    _row("truncate truncate_prompt_tokens", _ALL, (), "a prompt is never cut; one that is too long is refused"),
    _row("prompt_logprobs", _ALL, (), "log-probabilities of a prompt are not computed"),
    _row("decoder_input_details", _ALL, (False,), "log-probabilities of a prompt are not computed"),
    _row("top_n_tokens n_probs", _ALL, (0,), "beside the chosen tokens none are told"),
    _row("adapter_id lora_request lora_path", _ALL, (), "one model is served; a task is named by `steering`"),
    _row("lora", _ALL, ([],), "one model is served; a task is named by `steering`"),
    _row("watermark", _ALL, (False,), "nothing is written into the text"),
    _row(
        "return_tokens_as_token_ids return_token_ids return_tokens timings_per_token post_sampling_probs "
        "return_progress",
        _ALL, (False,), "answers have the fields of this page",
    ),
    _row("cache_prompt use_cache id_slot slot_id n_keep n_discard", _ALL, None, "it says how to compute, not what"),
    _row("priority", _ALL, (0,), "requests are taken in their order"),
    _row("cache_salt kv_transfer_params vllm_xargs", _ALL, (), "it is not implemented"),
    _row("request_id", _ALL, None, "the header `X-Request-Id` names a request"),
    _row("options", ("GenerateBody", "LabelsBody"), None, "hosts of Hugging Face's read it: their cache, their waiting"),
    _row("function_to_apply", ("LabelParameters",), ("softmax",), "the labels' shares add up to 1"),
    _row("do_sample", _OPENAI, (False,), "`temperature` chooses sampling"),
    _row("suffix", _COMPLETIONS, ("",), "nothing is inserted"),
    _row("add_special_tokens", _COMPLETIONS, (True,), "a text begins as the tokenizer begins it; send token ids for another beginning"),
    _row("add_special_tokens", _CHATS, (False,), "the chat template writes them"),
    _row("response_format", _COMPLETIONS, ({"type": "text"},), "chats take one, for a task's labels"),
    _row("echo", _CHATS, (False,), "a chat is not repeated"),
    _row("tools functions", _CHATS, ([],), "no tool is ever called"),
    _row("tool_choice", _CHATS, ("none", "auto"), "no tool is ever called"),
    _row("function_call", _CHATS, ("none",), "no tool is ever called"),
    _row("parallel_tool_calls", _CHATS, (True, False), "no tool is ever called"),
    _row("modalities", _CHATS, (["text"],), "text in, text out"),
    _row("audio", _CHATS, (), "text in, text out"),
    _row("mm_processor_kwargs", _CHATS, ({},), "text in, text out"),
    _row("reasoning_effort", _CHATS, ("none",), "the model says what it says"),
    _row("include_reasoning separate_reasoning", _CHATS, None, "no text is taken for reasoning"),
    _row("verbosity", _CHATS, ("medium",), "the model says what it says"),
    _row("service_tier", _CHATS, ("auto", "default"), "there is one"),
    _row("store", _CHATS, (False,), "nothing is kept"),
    _row("moderation prediction prompt_cache_options prompt_cache_retention web_search_options", _CHATS, (), "it is not implemented"),
    _row("documents", _CHATS, ([],), "templates get messages alone"),
    _row("chat_template", _CHATS, (), "the model's own template is used"),
    _row("chat_template_kwargs", _CHATS, ({},), "templates get messages alone"),
    _row("tool_call_id audio function_call", _MESSAGE, (), "templates get role, name and text alone"),
    _row("refusal reasoning reasoning_content", _MESSAGE, ("",), "of an answer that is sent back as it came"),
    _row("annotations tool_calls", _MESSAGE, ([],), "of an answer that is sent back as it came"),
    _row("cache_control", _MESSAGE + _PART, None, "it says how to compute, not what"),
    _row("include_obfuscation", _STREAM, (False,), "chunks are not padded"),
)  # fmt: skip


@dataclass(frozen=True)
class Only:
    """Accepts null and some values of a field; its JSON schema says so too. why: what is told of any other. takes None: any."""

    takes: tuple[JsonValue, ...] | None
    why: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, _core: core_schema.CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {} if self.takes is None else {"enum": [*self.takes, None]}

    def _check(self, value: Any) -> Any:
        if value is None or self.takes is None or any(_same(value, neutral) for neutral in self.takes):
            return value
        raise PydanticCustomError("unsupported", "only the neutral value", {"why": self.why})


def _same(value: Any, neutral: JsonValue) -> bool:
    """Whether both are the same JSON: 1 and 1.0 are, 1 and true are not."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def of_body(name: str) -> tuple[Neutral, ...]:
    """The rows of one body."""
    return tuple(row for row in TABLE if name in row.bodies)


def neutral_fields(body: type[Body]) -> type[Body]:
    """The body with the table's fields behind its own."""
    fields: dict[str, Any] = {}
    for row in of_body(body.__name__):
        why = row.why.replace("`", "")
        kind = Annotated[JsonValue, Only(row.takes, why), Field(description=row.told)]
        fields |= dict.fromkeys(row.fields, (kind, None))
    make: Callable[..., type[Body]] = create_model
    return make(body.__name__, __base__=body, __doc__=body.__doc__, __module__=body.__module__, **fields)
