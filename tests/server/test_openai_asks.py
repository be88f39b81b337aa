"""From a body and its prompts to the plans of its choices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from mera_server.catalog import Catalog
from mera_server.openai.asks import Ask, asks_of, check_fields, in_words_of
from mera_server.openai.prompts import Prompt
from mera_server.openai.schemas import ChatBody, CompletionBody
from mera_server.resolve import Limits

from merasteer.errors import InvalidInput, PromptTooLong, Unsupported
from merasteer.types import Policy, Sampling, ServedTask

from .conftest import holding

OWN = "Say: hello Label:"
BOS, TURN = "<s>", "<t>"  # the tokenizer's, which knows one token a character


def tokens_of(text: str) -> tuple[int, ...]:
    """What the tokenizer makes of a text that holds no special token."""
    return (1, *map(ord, text))


PROMPTS = [
    Prompt("prompt[0]", OWN, tokens_of(OWN), BOS + OWN),
    Prompt("prompt[1]", "else", tokens_of("else"), BOS + "else"),
]


def completion(**fields: Any) -> CompletionBody:
    return CompletionBody(model="m", prompt="x", **fields)


def chat(**fields: Any) -> ChatBody:
    return ChatBody.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields})


@pytest.fixture
def talking(catalog: Catalog) -> ServedTask:
    """A certified task of the catalog whose prompts are chats."""
    good = catalog.latest["good"]
    own = replace(good, digest="cc" * 32, task=replace(good.task, name="talking", choose="labels", chat=True))
    catalog.tasks["talking"], catalog.probes[own.digest], catalog.latest["talking"] = own.task, own, own  # type: ignore[index]
    return own.task


@pytest.fixture
def asks(catalog: Catalog) -> Any:
    """The asks of a body on two prompts, `task` being the one that the model's name carries."""

    def make(body: Any, task: str | None = None, prompts: Any = None, room: int = 100, **limits: Any) -> list[Ask]:
        served = None if task is None else catalog.task(task)
        return asks_of(body, prompts or PROMPTS, served, catalog, Limits(**limits), room)

    catalog.tasks["chosen"] = replace(catalog.task("bare"), name="chosen", choose="labels")  # type: ignore[index]
    return make


def test_n_choices_of_each_prompt_draw_with_the_seeds_behind_the_first(asks: Any) -> None:
    made = asks(completion(n=3, seed=2**63 - 2, temperature=0.5))
    assert [ask.index for ask in made] == list(range(6))
    assert [ask.prompt for ask in made] == [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3
    assert [ask.plan.sampling.seed for ask in made] == [2**63 - 2, 2**63 - 1, 0] * 2
    unseeded = asks(completion(n=2, temperature=0.5))
    first, second = (ask.plan.sampling.seed for ask in unseeded[:2])
    assert second == first + 1
    assert len({ask.plan.sampling.seed for ask in unseeded}) == 4


def test_every_field_is_in_the_plan(asks: Any) -> None:
    body = completion(
        max_tokens=5, temperature=0.5, top_p=0.9, top_k=4, seed=8, stop="x", logprobs=0, echo=True, details="trace",
        steering={"alpha": 0.2},
    )  # fmt: skip
    made = asks(body, "good")[0]
    assert made.echo == PROMPTS[0].text
    plan = made.plan
    assert (plan.max_new_tokens, plan.stop, plan.tokens, plan.trace) == (5, ("x",), True, True)
    assert plan.sampling == Sampling(0.5, 4, 0.9, 8)
    assert plan.correction.policy == Policy("aa" * 32, 0.2)


def test_how_many_tokens_where_none_is_given(asks: Any) -> None:
    """A completion has sixteen; a chat what there is room for; a task its own, which ends with the label."""
    assert [ask.plan.max_new_tokens for ask in asks(completion())] == [16, 16]
    assert [ask.plan.max_new_tokens for ask in asks(chat())] == [82, 95]
    assert [ask.plan.max_new_tokens for ask in asks(chat(), max_new_tokens=50)] == [50, 50]
    assert [ask.plan.max_new_tokens for ask in asks(chat(), room=2)] == [
        1,
        1,
    ]  # the engine will say that it does not fit
    for body in (completion(), chat()):
        assert [ask.plan.max_new_tokens for ask in asks(body, "good")] == [1, 1]
        assert [ask.plan.max_new_tokens for ask in asks(body, default_task="good")] == [1, 1]
        assert [ask.plan.max_new_tokens for ask in asks(body, "chosen")] == [None, None]
    assert asks(chat(max_completion_tokens=7, max_tokens=7))[0].plan.max_new_tokens == 7


def test_the_certificate(asks: Any) -> None:
    """It covers the task's own prompt, and only the tokens that its text gives."""
    own, other = asks(completion(), "good")
    assert own.plan.why == ()
    assert other.plan.why == ("the prompt does not match the task's template",)
    for other in ((9,), (1, *tokens_of(OWN))):  # neither others nor a second begin-of-text token
        tokens = Prompt("prompt", OWN, other, OWN, by_ids=True)
        assert asks(completion(), "good", [tokens])[0].plan.why == (
            "the prompt's tokens are not those that its text gives",
        )
        assert asks(completion(), "bare", [tokens])[0].plan.why == ()


def test_a_chat_tasks_prompt_is_the_one_with_its_special_tokens(asks: Any, talking: ServedTask) -> None:
    """Ids of a rendered chat are compared with their special tokens shown; without the chat around it a prompt is not the task's."""
    full = f"{BOS}{TURN}u:{OWN}"
    ids = (1, 2, *map(ord, f"u:{OWN}"))
    given = [
        Prompt("prompt", full, tokens_of(full), full),  # a text in whose front there is a begin-of-text token already
        Prompt("prompt", full, ids, full, by_ids=True),
        Prompt("prompt", f"u:{OWN}", ids, full, by_ids=True),  # its text shows no special token
    ]
    for ask in asks(completion(), talking.name, given):
        assert (ask.plan.prompt, ask.plan.why, ask.prompt.tokens) == (full, (), ids)
    [bare] = asks(completion(), talking.name, PROMPTS[:1])
    assert bare.plan.why == ("the prompt does not match the task's template",)


def test_the_task_of_the_models_name(asks: Any) -> None:
    asked, named = completion(steering={"task": "good"}, seed=1), completion(seed=1)
    assert asks(asked) == asks(named, "good") == asks(asked, "good")
    assert asks(completion(steering={"task": "good", "method": "none"}), "good")[0].plan.decision == "off"
    with pytest.raises(InvalidInput, match=r"^steering\.task: another task than that of the model's name"):
        asks(completion(steering={"task": "weak"}), "good")
    with pytest.raises(InvalidInput, match=r"^steering\.probe: belongs to another task"):
        asks(completion(steering={"probe": "bb"}), "good")


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (completion(max_tokens=2000), InvalidInput, "^max_tokens: above the limit"),
        (chat(max_tokens=2000), InvalidInput, "^max_tokens: above the limit"),
        (chat(max_completion_tokens=2000), InvalidInput, "^max_completion_tokens: above the limit"),
        (completion(n=65), InvalidInput, "^n: makes more than 128 choices of 2 prompts"),
        (completion(logprobs=1, temperature=1), Unsupported, "^logprobs: beside the chosen tokens"),
        (chat(logprobs=True, top_logprobs=1, temperature=1), Unsupported, "^top_logprobs: beside the chosen tokens"),
    ],
)
def test_what_is_refused(asks: Any, body: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        asks(body, max_new_tokens=1024)


def test_the_likeliest_token_is_not_known_under_a_label_bias(asks: Any, catalog: Catalog) -> None:
    catalog.latest["good"] = holding(catalog.latest["good"], label_bias=(0.5, -0.5))  # type: ignore[index]
    assert asks(completion(logprobs=1), "good")
    with pytest.raises(Unsupported, match=r"^logprobs: beside"):
        asks(completion(logprobs=1, steering={"method": "logit_bias"}), "good")


def test_the_likeliest_token_is_not_known_where_a_label_is_chosen(asks: Any) -> None:
    for body, field in ((completion(logprobs=1), "logprobs"), (chat(logprobs=True, top_logprobs=1), "top_logprobs")):
        with pytest.raises(Unsupported, match=f"^{field}: beside"):
            asks(body, "chosen")
    assert asks(completion(logprobs=0), "chosen")[0].plan.tokens


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (completion(stream_options={}), "^stream_options: given without stream"),
        (completion(echo=True, logprobs=0), "^echo: log-probabilities of a prompt's tokens"),
        (chat(top_logprobs=0), "^top_logprobs: given without logprobs"),
        (chat(max_tokens=4, max_completion_tokens=5), "^max_tokens: differs from max_completion_tokens"),
    ],
)
def test_fields_that_contradict_each_other(body: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        check_fields(body)


def test_errors_in_the_words_of_the_body() -> None:
    engine = PromptTooLong("inputs: 9 prompt tokens and max_new_tokens 3 exceed the 8 that fit; lower max_new_tokens")
    said = in_words_of(chat(max_completion_tokens=3), "messages", engine)
    assert type(said) is PromptTooLong
    assert str(said) == (
        "messages: 9 prompt tokens and max_completion_tokens 3 exceed the 8 that fit; lower max_completion_tokens"
    )
    positions = in_words_of(completion(), "prompt", InvalidInput("positions: one lies beyond the prompt"))
    assert str(positions) == "steering.positions: one lies beyond the prompt"
