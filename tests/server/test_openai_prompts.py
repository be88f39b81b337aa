"""From strings, token ids and chats to prompts, with a tokenizer of one token a character."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from mera_server.catalog import Catalog
from mera_server.openai.models import Served, listing, task_in
from mera_server.openai.prompts import Prompt, chat_prompt, prompts_of
from mera_server.openai.schemas import ChatBody
from transformers import PreTrainedTokenizerFast

from merasteer.engine.text import encode
from merasteer.errors import BadTask, EmptyInputs, InvalidInput, NoChatTemplate, UnknownModel
from merasteer.tasks import Prompter
from merasteer.types import ServedTask

BOS, TURN = 1, 2  # special tokens; the others are characters
ONE = ServedTask("one", ("ham", "spam"), (((5,),), ((6,),)), "Say: {text} Label:")
TWO = ServedTask("two", ("ham", "spam"), (((5,),), ((6,),)), "{desk}: {text} Label:")
TALKING = replace(ONE, name="talking", chat=True, system="Be brief.", examples=(("Say: hi Label:", "ham"),))


@pytest.fixture
def engine(characters: Callable[[], PreTrainedTokenizerFast]) -> Any:
    """The part of an engine that makes tokens of a text and a text of tokens."""
    tokenizer = characters()
    return SimpleNamespace(
        loaded=SimpleNamespace(tokenizer=tokenizer, vocab=300),
        encode=lambda text: encode(tokenizer, text),
        decode=lambda tokens: tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False),
    )


def chat(*said: str, **fields: Any) -> ChatBody:
    """Messages of user and assistant in turn."""
    return turns(*((("user", "assistant")[i % 2], text) for i, text in enumerate(said)), **fields)


def turns(*said: tuple[str, Any], **fields: Any) -> ChatBody:
    messages = [{"role": role, "content": content} for role, content in said]
    return ChatBody.model_validate({"model": "m", "messages": messages, **fields})


def prompter(task: ServedTask, engine: Any) -> Prompter:
    return Prompter(task, engine.loaded.tokenizer)


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text.replace("<s>", chr(BOS)).replace("<t>", chr(TURN))))


def test_strings_and_token_ids(engine: Any) -> None:
    hello, plain = engine.encode("hello"), ids_of("hello")
    assert hello == (BOS, *plain)
    assert prompts_of("hello", engine) == [Prompt("prompt", "hello", hello, "hello")]
    assert prompts_of(hello, engine) == [Prompt("prompt", "hello", hello, "<s>hello", by_ids=True)]
    assert prompts_of(plain, engine) == [Prompt("prompt", "hello", plain, "hello", by_ids=True)]
    assert [prompt.field for prompt in prompts_of(["a", "b"], engine)] == ["prompt[0]", "prompt[1]"]
    assert [prompt.tokens for prompt in prompts_of([[BOS, 70], [70]], engine)] == [(BOS, 70), (70,)]
    assert prompts_of([BOS], engine) == [Prompt("prompt", "<s>", (BOS,), "<s>", by_ids=True)]
    turn = (BOS, TURN, *plain)  # its text alone would give other tokens
    assert prompts_of(turn, engine) == [Prompt("prompt", "<s><t>hello", turn, "<s><t>hello", by_ids=True)]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("", EmptyInputs, "^prompt: empty"),
        (["a", ""], EmptyInputs, r"^prompt\[1\]: empty"),
        ([70, 300], InvalidInput, "^prompt: a token id is out of vocabulary, which has 300"),
        ([[70], [2**70]], InvalidInput, r"^prompt\[1\]: a token id"),
    ],
)
def test_prompts_that_are_refused(engine: Any, given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prompts_of(given, engine)


def test_a_chat_goes_through_the_chat_template(engine: Any) -> None:
    made = chat_prompt(chat("hello", "yes", "why"), None, engine)
    assert (made.field, made.text, made.full) == ("messages", *["<s><t>u:hello<t>a:yes<t>u:why"] * 2)
    assert made.tokens == ids_of(made.full)
    parts = turns(("developer", [{"type": "text", "text": text} for text in "ab"]))
    assert chat_prompt(parts, None, engine).tokens == ids_of("<s><t>s:a\nb")


@pytest.mark.parametrize("text", ["hello", "Say: hello Label:"])
def test_a_message_to_a_task_is_its_only_field_or_its_prompt(engine: Any, text: str) -> None:
    """Round the prompt of a chat task stand its system text, its examples and the chat template, once."""
    own = "Say: hello Label:"
    assert chat_prompt(chat(text), prompter(ONE, engine), engine) == Prompt("messages", own, engine.encode(own), own)
    whole = f"<s><t>s:Be brief.<t>u:Say: hi Label:<t>a:ham<t>u:{own}"
    made = chat_prompt(chat(text), prompter(TALKING, engine), engine)
    assert made == Prompt("messages", whole, ids_of(whole), whole)
    assert chat_prompt(chat("x", inputs={"text": "hello"}), prompter(TALKING, engine), engine) == made


def test_fields_by_name(engine: Any) -> None:
    """In place of what the messages say, which may then say nothing."""
    found = chat_prompt(chat("", inputs={"desk": "A", "text": "hello"}), prompter(TWO, engine), engine)
    assert found == Prompt("messages", "A: hello Label:", engine.encode("A: hello Label:"), "A: hello Label:")
    with pytest.raises(InvalidInput, match=r"^inputs: given, but the model's name carries no task"):
        chat_prompt(chat("x", inputs={"text": "hello"}), None, engine)
    for wrong in ({"desk": "A"}, {}, {"desk": "A", "text": "b", "other": "c"}):
        with pytest.raises(InvalidInput, match=r"^inputs: "):
            chat_prompt(chat("x", inputs=wrong), prompter(TWO, engine), engine)


def test_what_is_not_a_tasks_prompt_goes_through_the_chat_template(engine: Any) -> None:
    two, one = prompter(TWO, engine), prompter(ONE, engine)
    assert chat_prompt(chat("A: hello Label:"), two, engine).text == "A: hello Label:"
    system = turns(("system", "hello"))
    for body, task in ((chat("hello"), two), (chat("a", "b", "c"), one), (system, one)):
        assert chat_prompt(body, task, engine) == chat_prompt(body, None, engine)


def test_a_role_of_the_callers_own_is_for_the_chat_template_to_read(engine: Any) -> None:
    made = chat_prompt(turns(("user", "hello"), ("my-role", "so"), ("tool", "4")), None, engine)
    assert made.tokens == ids_of("<s><t>u:hello<t>m:so<t>t:4")
    parts = turns(("my-role", [{"type": "text", "text": "so"}]))
    assert chat_prompt(parts, None, engine) == chat_prompt(turns(("my-role", "so")), None, engine)


@pytest.mark.parametrize(
    "behind", ["", "{% if m['role'] == 'my-role' and 'x7' in m['content'] %}{{ raise_exception('no') }}{% endif %}"]
)
def test_a_message_of_which_the_chat_template_shows_nothing_is_refused(engine: Any, behind: str) -> None:
    """It would be answered as if it had not been sent."""
    shown = "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
    engine.loaded.tokenizer.chat_template = f"{{% for m in messages %}}{shown}{behind}{{% endfor %}}"
    with pytest.raises(InvalidInput, match=r"^messages\[1\]\.role: the model's chat template shows nothing") as caught:
        chat_prompt(turns(("user", "hello"), ("my-role", "hello"), ("user", "why")), None, engine)
    assert "hello" not in str(caught.value)
    assert chat_prompt(turns(("user", "hello"), ("my-role", "")), None, engine).tokens == ids_of("hello")


def test_the_chat_template_is_told_the_names_of_the_speakers(engine: Any) -> None:
    engine.loaded.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['name'] or '-' }}:{{ m['content'] }};{% endfor %}"
    )
    said = [{"role": "user", "name": "Ann", "content": "hello"}, {"role": "assistant", "name": None, "content": "yes"}]
    asked = ChatBody.model_validate({"messages": [*said, {"role": "user", "content": "why"}]})
    assert chat_prompt(asked, None, engine).text == "Ann:hello;-:yes;-:why;"


def test_chats_that_are_refused(engine: Any) -> None:
    with pytest.raises(EmptyInputs, match=r"^messages: all are empty"):
        chat_prompt(chat("", ""), None, engine)
    with pytest.raises(InvalidInput, match=r"^messages: the model's chat template refuses") as caught:
        chat_prompt(turns(("assistant", "secret")), None, engine)
    assert "secret" not in str(caught.value)
    engine.loaded.tokenizer.chat_template = None
    with pytest.raises(NoChatTemplate, match=r"^messages: this model has no chat template"):
        chat_prompt(chat("hello"), None, engine)
    assert chat_prompt(chat("hello"), prompter(ONE, engine), engine).text == "Say: hello Label:"


def test_model_names(catalog: Catalog) -> None:
    assert task_in("m", Served(("m",)), catalog) is None
    for name in ("good", "weak", "bare"):
        task = task_in(f"m:{name}", Served(("m",)), catalog)
        assert task is not None
        assert task.name == name
    assert task_in(None, Served(("m",)), catalog) is task_in("tgi", Served(("m",)), catalog) is None
    for name in ("n", "n:good", "m:", "m:nothing", "mgood", "m:m:good"):
        with pytest.raises(UnknownModel, match="models: m, m:good, and m:<task>"):
            task_in(name, Served(("m",)), catalog)
    with pytest.raises(BadTask, match="no such token"):
        task_in("m:broken", Served(("m",)), catalog)
    task = task_in("owner/m:1:good", Served(("owner/m:1",)), catalog)
    assert task is not None
    assert task.name == "good"
    assert [(model.id, model.parent) for model in listing(Served(("m",)), catalog).data] == [
        ("m", None),
        ("m:good", "m"),
    ]
