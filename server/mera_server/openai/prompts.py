"""Prompts: strings, token ids, and chats, which a template makes one string of.

A chat becomes a prompt in one of two ways.

- The model's name carries a task, and the chat is one user message: the task's own prompt, the one that was certified. A message
  that is a rendering of the task's template is taken as such; else, where the template has a single field, it stands for that field.
  `inputs` gives the fields by name.
- Everything else goes through the chat template of the model's tokenizer, up to where the assistant begins to speak; where an
  assistant's message is the last, up to where that stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mera_server.openai.schemas import ChatBody, Message
from merasteer.engine import Engine
from merasteer.errors import EmptyInputs, InvalidInput, NoChatTemplate
from merasteer.tasks import Prompter, fields_of, matches
from merasteer.tasks.chat import broken, mark
from merasteer.tasks.prompts import CHOICES

__all__ = ["Prompt", "chat_prompt", "prompts_of"]

_ROLES = frozenset({"system", "user", "assistant"})


@dataclass(frozen=True)
class Prompt:
    """One prompt as the engine takes it.

    field: what the request calls it. text: what a plain task's template is compared with, and what `echo` repeats. full: the text with
    its special tokens, as a chat task's prompts are written. by_ids: whether it was given as token ids, which are taken as they are.
    """

    field: str
    text: str
    tokens: tuple[int, ...]
    full: str
    by_ids: bool = False


def prompts_of(given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], engine: Engine) -> list[Prompt]:
    """The prompts of a completion. Raises EmptyInputs or InvalidInput naming the one that is wrong."""
    if isinstance(given, str):
        return [_of_text("prompt", given, engine)]
    if isinstance(given[0], int):
        return [_of_tokens("prompt", given, engine)]  # type: ignore[arg-type]
    return [
        _of_text(f"prompt[{i}]", part, engine) if isinstance(part, str) else _of_tokens(f"prompt[{i}]", part, engine)  # type: ignore[arg-type]
        for i, part in enumerate(given)
    ]


def chat_prompt(body: ChatBody, prompter: Prompter | None, engine: Engine) -> Prompt:
    """The prompt of a chat; `prompter` is that of the task that the model's name carries.

    Raises NoChatTemplate where one is needed and the tokenizer has none, EmptyInputs, and InvalidInput where the template refuses.
    """
    if body.inputs is None and not any(message.text for message in body.messages):
        raise EmptyInputs("messages: all are empty; give one some text")
    own = _task_prompt(body, prompter)
    if own is not None and prompter is not None:
        return Prompt("messages", own, prompter.encode(own), own)
    tokenizer = engine.loaded.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise NoChatTemplate(
            "messages: this model has no chat template to make a prompt of them; send the prompt to POST /v1/completions"
        )
    chat = [_told(message) for message in body.messages]
    if chat[-1]["role"] == "assistant" and not chat[-1]["content"]:
        chat.pop()  # nothing was said: the assistant begins
    begins = not body.continues if body.add_generation_prompt is None else body.add_generation_prompt
    try:
        tokens = tokenizer.apply_chat_template(
            chat, add_generation_prompt=begins, continue_final_message=body.continues, return_dict=False
        )
    except Exception:  # noqa: BLE001 - the template is the model's: whatever it raises is about these messages, and may hold them
        if (fault := broken(engine.loaded.tokenizer)) is not None:
            raise NoChatTemplate(
                f"messages: the model's chat template is broken ({fault}); the fault is in the model's files, not in the request: "
                "send a prompt to /v1/completions, or mend the template"
            ) from None
        raise InvalidInput(
            "messages: the model's chat template refuses them; begin with a user message, or a system message if the model "
            "knows that role, and let user and assistant take turns"
        ) from None
    _check_roles(chat, tokenizer)
    return _of_tokens("messages", tokens, engine)


def _told(message: Message) -> dict[str, str]:
    """What the template is told of a message; developer is the newer name of system, which templates do not know."""
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": message.text, **({} if message.name is None else {"name": message.name})}


def _check_roles(chat: Sequence[dict[str, str]], tokenizer: Any) -> None:
    """Raises InvalidInput for a message in a role of the caller's own, or a tool's, of which the template shows nothing."""
    others = [number for number, message in enumerate(chat) if message["role"] not in _ROLES and message["content"]]
    if not others:
        return
    marked = [{**message, "content": mark(i)} if i in others else message for i, message in enumerate(chat)]
    try:
        shown = str(tokenizer.apply_chat_template(marked, tokenize=False))
    except Exception:  # noqa: BLE001 - the template took the same roles with the texts that were given
        shown = ""
    for number in others:
        if mark(number) not in shown:
            raise InvalidInput(
                f"messages[{number}].role: the model's chat template shows nothing of a message in this role; give system, "
                "user or assistant"
            )


def _task_prompt(body: ChatBody, prompter: Prompter | None) -> str | None:
    """The task's own prompt of this chat; None where there is none."""
    if body.inputs is not None:
        if prompter is None:
            raise InvalidInput("inputs: given, but the model's name carries no task; name it as <model>:<task>")
        try:
            return prompter.text(body.inputs)
        except InvalidInput as error:
            raise type(error)(f"inputs: {error}") from None
    messages = body.messages
    if prompter is None or len(messages) != 1 or messages[0].role != "user":
        return None
    template, text = prompter.task.template, messages[0].text
    fields = fields_of(template)
    if matches(template, text):
        return prompter.wrap(text)
    if len(fields) != 1 or fields[0] == CHOICES:
        return None
    return prompter.text({fields[0]: text})


def _of_text(field: str, text: str, engine: Engine) -> Prompt:
    if not text:
        raise EmptyInputs(f"{field}: empty; give a prompt")
    return Prompt(field, text, engine.encode(text), text)


def _of_tokens(field: str, tokens: Sequence[int], engine: Engine) -> Prompt:
    """Token ids are taken as they are: nothing is put in front of them."""
    if not all(0 <= token < engine.loaded.vocab for token in tokens):
        raise InvalidInput(
            f"{field}: a token id is out of vocabulary, which has {engine.loaded.vocab}; give smaller ids"
        )
    ids = tuple(tokens)
    full = engine.decode(ids)
    text = str(engine.loaded.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return Prompt(field, text if text and engine.encode(text) == ids else full, ids, full, by_ids=True)
