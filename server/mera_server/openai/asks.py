"""From a body and its prompts to one `Ask` per choice, each with the plan that `POST /generate` would make. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mera_server.bridge import native
from mera_server.catalog import Catalog
from mera_server.openai.prompts import Prompt
from mera_server.openai.schemas import MAX_CHOICES, ChatBody, CompletionBody
from mera_server.openai.structured import Labels, check_task, labels_in
from mera_server.resolve import Limits, Plan, plan
from mera_server.schemas import GenerateBody, Parameters, Steering
from merasteer.errors import InvalidInput, MeraError, PromptTooLong, Unsupported
from merasteer.types import ServedTask

__all__ = ["Ask", "asks_of", "check_fields", "in_words_of", "with_context"]

SEEDS = 2**63


@dataclass(frozen=True)
class Ask:
    """What one choice comes to. `echo`: what is repeated in front of its text. labels: the schema that the answer is to fit."""

    index: int
    prompt: Prompt
    plan: Plan
    echo: str = ""
    labels: Labels | None = None


def check_fields(body: CompletionBody | ChatBody) -> None:
    """Refuses fields that contradict each other."""
    if body.stream_options is not None and not body.stream:
        raise InvalidInput("stream_options: given without stream; leave it out or set stream to true")
    if isinstance(body, CompletionBody):
        if body.echo and body.logprobs is not None:
            raise Unsupported("echo: log-probabilities of a prompt's tokens are not computed; give echo or logprobs")
        return
    for number, message in enumerate(body.messages):
        if message.content is None and message.role != "assistant":
            raise InvalidInput(f"messages[{number}].content: null is an assistant that said nothing; give a string")
    if body.continue_final_message and not (body.messages[-1].role == "assistant" and body.messages[-1].text):
        raise InvalidInput(
            "continue_final_message: the last message is no assistant's with text; leave it out or end with one"
        )
    if body.continue_final_message and body.add_generation_prompt:
        raise InvalidInput(
            "add_generation_prompt: begins another message, and continue_final_message goes on; give one of them"
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidInput("top_logprobs: given without logprobs; leave it out or set logprobs to true")
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise InvalidInput("max_tokens: differs from max_completion_tokens, its newer name; give one of them")


def asks_of(
    body: CompletionBody | ChatBody,
    prompts: Sequence[Prompt],
    task: ServedTask | None,
    catalog: Catalog,
    limits: Limits,
    room: int,
) -> list[Ask]:
    """n choices of every prompt, in order: choice i of each draws with seed + i.

    task: the one that the model's name carries. room: the tokens that a prompt and its answer may have together.
    Raises what the plan raises, in the words of OpenAI's fields.
    """
    n, labels = body.n or 1, labels_in(body)
    if n * len(prompts) > MAX_CHOICES:
        raise InvalidInput(f"n: makes more than {MAX_CHOICES} choices of {len(prompts)} prompts; give a smaller one")
    asks: list[Ask] = []
    for prompt in prompts:
        try:
            first = _plan(body, prompt, task, catalog, limits, room)
            if labels is not None:
                check_task(labels, first.task)
                first = replace(first, max_new_tokens=None, stop=())  # the label, all of it, and nothing behind it
        except MeraError as error:
            raise in_words_of(body, prompt.field, error) from None
        sampling, read = first.sampling, _encoded(prompt, first)
        for i in range(n):
            drawn = replace(first, sampling=replace(sampling, seed=(sampling.seed + i) % SEEDS))
            asks.append(Ask(len(asks), read, drawn, prompt.text if getattr(body, "echo", False) else "", labels))
    return asks


def in_words_of(body: CompletionBody | ChatBody, field: str, error: MeraError) -> MeraError:
    """The error of a plan or of the engine, naming the fields of `body`; `field` is what it calls the prompt."""
    said = str(native(0, error))
    said = said.replace("parameters.max_new_tokens", body.budget[0]).replace("max_new_tokens", body.budget[0])
    said = said.removeprefix("parameters.")  # all others have the same name at the top
    return type(error)(f"{field}{said.removeprefix('inputs')}" if said.startswith("inputs: ") else said)


def with_context(error: MeraError, room: int) -> MeraError:
    """The error; that of a prompt which is too long tells the context length in the words that OpenAI's clients look for."""
    if not isinstance(error, PromptTooLong):
        return error
    return PromptTooLong(f"{error}; this model's maximum context length is {room} tokens")


def _plan(
    body: CompletionBody | ChatBody,
    prompt: Prompt,
    task: ServedTask | None,
    catalog: Catalog,
    limits: Limits,
    room: int,
) -> Plan:
    budget, (named, alternatives) = body.budget[1], body.alternatives
    steering = _steering(body.steering, task)
    planned = _planned(body, prompt.text, steering, catalog, limits)
    if planned.task is not None and planned.task.chat and prompt.full != prompt.text:
        planned = _planned(body, prompt.full, steering, catalog, limits)
    chosen = planned.correction.bias is not None or (planned.task is not None and planned.task.choose == "labels")
    if alternatives and (chosen or not planned.sampling.greedy):
        raise Unsupported(
            f"{named}: beside the chosen tokens the likeliest are not known, unless decoding is greedy without labels; give 0"
        )
    if budget is None and planned.task is None and isinstance(body, ChatBody):
        most = min(limits.max_new_tokens or room, room - len(prompt.tokens))
        planned = replace(planned, max_new_tokens=max(1, most))
    own = planned.prompter if prompt.by_ids and planned.probe is not None else None
    if own is not None and own.encode(planned.prompt) != prompt.tokens:
        planned = replace(planned, why=(*planned.why, "the prompt's tokens are not those that its text gives"))
    return planned


def _encoded(prompt: Prompt, planned: Plan) -> Prompt:
    """The prompt, its tokens as the task makes them of a text: a begin-of-text token that is written there gets no second one."""
    if planned.prompter is None or prompt.by_ids:
        return prompt
    return replace(prompt, tokens=planned.prompter.encode(planned.prompt))


def _planned(
    body: CompletionBody | ChatBody, text: str, steering: Steering | None, catalog: Catalog, limits: Limits
) -> Plan:
    """The plan that `POST /generate` makes of this text."""
    parameters = Parameters(
        max_new_tokens=body.budget[1],
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=list(body.stops),
        seed=body.seed,
        ignore_eos=body.ignore_eos,
        details=body.alternatives[1] is not None,
    )
    return plan(
        GenerateBody(inputs=text, parameters=parameters, steering=steering, details=body.details), catalog, limits
    )


def _steering(given: Steering | None, task: ServedTask | None) -> Steering | None:
    """The steering that is asked for, with the task of the model's name."""
    if task is None:
        return given
    if given is not None and given.task not in (None, task.name):
        raise InvalidInput("steering.task: another task than that of the model's name; leave it out")
    return Steering(task=task.name) if given is None else given.model_copy(update={"task": task.name})
