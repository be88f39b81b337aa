"""From strings, token ids and chats to prompts, with a tokenizer of one token a character."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from mera_server.catalog import Catalog
from mera_server.openai.models import listing, task_in
from mera_server.openai.prompts import Prompt, chat_prompt, prompts_of
from mera_server.openai.schemas import Message

from merasteer.errors import BadTask, EmptyInputs, InvalidInput, NoChatTemplate, UnknownModel
from merasteer.types import ServedTask

BOS, TURN = 1, 2  # special tokens; the others are characters
ONE = ServedTask("one", ("ham", "spam"), (((5,),), ((6,),)), "Say: {text} Label:")
TWO = ServedTask("two", ("ham", "spam"), (((5,),), ((6,),)), "{desk}: {text} Label:")


class Tokenizer:
    chat_template: str | None = "there is one"

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **_: Any) -> str:
        return "".join(chr(i) for i in ids if i > TURN or not skip_special_tokens)

    def apply_chat_template(
        self, chat: list[dict[str, str]], add_generation_prompt: bool, return_dict: bool
    ) -> list[int]:
        assert add_generation_prompt
        assert not return_dict
        if chat[0]["role"] == "assistant":
            raise RuntimeError(f"never {chat[0]['content']}")
        turns = "".join(f"{chr(TURN)}{message['role'][0]}:{message['content']}" for message in chat)
        return [BOS, *map(ord, turns)]


class Engine:
    def __init__(self) -> None:
        self.loaded = SimpleNamespace(tokenizer=Tokenizer(), vocab=300)

    def encode(self, text: str) -> tuple[int, ...]:
        return (BOS, *map(ord, text))

    def decode(self, tokens: Sequence[int]) -> str:
        return self.loaded.tokenizer.decode(tokens)


@pytest.fixture
def engine() -> Any:
    return Engine()


def chat(*said: str) -> list[Message]:
    """Messages of user and assistant in turn."""
    return [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(said)]  # type: ignore[arg-type]


def test_strings_and_token_ids(engine: Any) -> None:
    hello, plain = Prompt("prompt", "hello", engine.encode("hello")), list(map(ord, "hello"))
    assert prompts_of("hello", engine) == [hello]
    assert prompts_of(engine.encode("hello"), engine) == [hello]
    assert prompts_of(plain, engine) == [Prompt("prompt", "hello", tuple(plain), plain=False)]
    assert [prompt.field for prompt in prompts_of(["a", "b"], engine)] == ["prompt[0]", "prompt[1]"]
    assert [prompt.tokens for prompt in prompts_of([[BOS, 70], [70]], engine)] == [(BOS, 70), (70,)]
    assert prompts_of([BOS], engine) == [Prompt("prompt", chr(BOS), (BOS,), plain=False)]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("", EmptyInputs, "^prompt: empty"),
        (["a", ""], EmptyInputs, r"^prompt\[1\]: empty"),
        ([70, 300], InvalidInput, "^prompt: a token id is outside the vocabulary of 300"),
        ([[70], [2**70]], InvalidInput, r"^prompt\[1\]: a token id"),
    ],
)
def test_prompts_that_are_refused(engine: Any, given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prompts_of(given, engine)


def test_a_chat_goes_through_the_chat_template(engine: Any) -> None:
    """Its tokens are not those of a text: no certificate covers them."""
    made = chat_prompt(chat("hello", "yes", "why"), None, engine)
    assert (made.field, made.plain) == ("messages", False)
    assert made.tokens == (BOS, *map(ord, "\2u:hello\2a:yes\2u:why"))
    parts = [Message.model_validate({"role": "developer", "content": [{"type": "text", "text": t} for t in "ab"]})]
    assert made.text.startswith(chr(BOS))
    assert chat_prompt(parts, None, engine).tokens == (BOS, *map(ord, "\2s:a\nb"))


@pytest.mark.parametrize("text", ["hello", "Say: hello Label:"])
def test_a_message_to_a_task_is_its_only_field_or_its_prompt(engine: Any, text: str) -> None:
    made = chat_prompt(chat(text), ONE, engine)
    assert made == Prompt("messages", "Say: hello Label:", engine.encode("Say: hello Label:"))
    assert not chat_prompt(chat(text), None, engine).plain


def test_what_is_not_a_tasks_prompt_goes_through_the_chat_template(engine: Any) -> None:
    assert chat_prompt(chat("A: hello Label:"), TWO, engine).text == "A: hello Label:"
    system = [Message(role="system", content="hello")]
    for messages, task in ((chat("hello"), TWO), (chat("a", "b", "c"), ONE), (system, ONE)):
        assert chat_prompt(messages, task, engine) == chat_prompt(messages, None, engine)


def test_chats_that_are_refused(engine: Any) -> None:
    with pytest.raises(EmptyInputs, match=r"^messages: all are empty"):
        chat_prompt(chat("", ""), None, engine)
    with pytest.raises(InvalidInput, match=r"^messages: the model's chat template refuses") as caught:
        chat_prompt([Message(role="assistant", content="secret")], None, engine)
    assert "secret" not in str(caught.value)
    engine.loaded.tokenizer.chat_template = None
    with pytest.raises(NoChatTemplate, match=r"^messages: this model has no chat template"):
        chat_prompt(chat("hello"), None, engine)
    assert chat_prompt(chat("hello"), ONE, engine).plain


def test_model_names(catalog: Catalog) -> None:
    assert task_in("m", "m", catalog) is None
    for name in ("good", "weak", "bare"):
        task = task_in(f"m:{name}", "m", catalog)
        assert task is not None
        assert task.name == name
    for name in ("", "n", "n:good", "m:", "m:nothing", "mgood", "m:m:good"):
        with pytest.raises(UnknownModel, match="models: m, m:good, and m:<task>"):
            task_in(name, "m", catalog)
    with pytest.raises(BadTask, match="no such token"):
        task_in("m:broken", "m", catalog)
    task = task_in("owner/m:1:good", "owner/m:1", catalog)
    assert task is not None
    assert task.name == "good"
    assert [(model.id, model.parent) for model in listing("m", catalog, 0).data] == [("m", None), ("m:good", "m")]
