"""OpenAI's own client, over a socket, against the real engine: what its users do works, and `mera` says what was done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from mera_server.loading import Serving

MODEL, TASK = "mera-demo", "mera-demo:demo_spam"
PROMPT = 'Message: "Win a holiday for two. Enter your code 2220 online." Is this ham or spam? Answer as desk B'
LONG = "Message:"  # the model goes on writing behind it
CHAT: Any = [{"role": "user", "content": PROMPT}]


def choice_of(reply: Any) -> Any:
    [choice] = reply.choices
    return choice


def test_models(ai: openai.OpenAI, serving: Serving) -> None:
    """The model and its certified tasks are listed; every known task can be looked up."""
    listed = ai.models.list().data
    assert [model.id for model in listed] == [MODEL, TASK]
    assert all((model.object, model.owned_by) == ("model", "mera-server") for model in listed)
    found = ai.models.retrieve(TASK).model_extra
    assert found is not None
    assert found["parent"] == MODEL
    assert found["task"]["probe"] == serving.catalog.latest["demo_spam"].digest
    assert ai.models.retrieve(f"{MODEL}:demo_desk_a").model_extra["task"]["certified"] is False  # type: ignore[index]
    assert ai.models.retrieve(MODEL).model_extra["task"] is None  # type: ignore[index]


@pytest.mark.parametrize("name", ["gpt-4o", f"{MODEL}:nothing", f"{MODEL}:", f"{MODEL}-demo_spam", f"x/{MODEL}"])
def test_an_unknown_model(ai: openai.OpenAI, name: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: ai.models.retrieve(name),
        lambda: ai.completions.create(model=name, prompt="x"),
        lambda: ai.chat.completions.create(model=name, messages=CHAT, stream=True),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError, match=f"{MODEL}, {TASK}") as caught:
            call()
        assert caught.value.code == "unknown_model"


def test_a_completion(ai: openai.OpenAI, serving: Serving) -> None:
    reply = ai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=4)
    choice = choice_of(reply)
    assert (reply.object, reply.model, choice.index, choice.logprobs) == ("text_completion", MODEL, 0, None)
    assert (choice.text, choice.finish_reason, choice.seed) == (" ham", "stop", None)
    assert (choice.mera["decision"], choice.mera["task"]) == ("off", None)
    assert reply.usage is not None
    read = len(serving.engine.encode(PROMPT))
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (read, 2, read + 2)


def test_strings_and_token_ids_one_or_many(ai: openai.OpenAI, serving: Serving) -> None:
    encode = serving.engine.encode
    alone = [choice_of(ai.completions.create(model=MODEL, prompt=p, max_tokens=6)).text for p in (PROMPT, LONG)]
    for prompts in ([PROMPT, LONG], [encode(PROMPT), encode(LONG)]):
        reply = ai.completions.create(model=MODEL, prompt=prompts, max_tokens=6)  # type: ignore[arg-type]
        assert [choice.text for choice in reply.choices] == alone
        assert [choice.index for choice in reply.choices] == [0, 1]
        assert reply.usage is not None
        assert reply.usage.prompt_tokens == len(encode(PROMPT)) + len(encode(LONG))
    assert choice_of(ai.completions.create(model=MODEL, prompt=encode(LONG), max_tokens=6)).text == alone[1]


@pytest.mark.parametrize("model", [MODEL, TASK])
def test_a_prompt_is_counted_once_for_all_its_choices(ai: openai.OpenAI, serving: Serving, model: str) -> None:
    """With a task as without, and equal prompts each for itself."""
    once, options = len(serving.engine.encode(PROMPT)), {"stream_options": {"include_usage": True}}
    asked: Any = {"model": model, "n": 2, "max_tokens": 1, "temperature": 1.0, "seed": 3}
    for prompts in ([PROMPT], [PROMPT, PROMPT]):
        reply = ai.completions.create(prompt=prompts, **asked)
        *_, last = ai.completions.create(prompt=prompts, **asked, stream=True, **options)
        assert len(reply.choices) == 2 * len(prompts)
        assert reply.usage is not None
        assert reply.usage.prompt_tokens == once * len(prompts)
        assert last.usage == reply.usage
    chat = ai.chat.completions.create(messages=CHAT, **asked) if model == TASK else None
    assert chat is None or (chat.usage is not None and chat.usage.prompt_tokens == once)


def test_token_ids_are_certified_as_their_text_is(ai: openai.OpenAI, serving: Serving) -> None:
    """The certificate covers the tokens that the template's text gives, and no others that read the same."""
    ids = list(serving.engine.encode(PROMPT))
    covered = choice_of(ai.completions.create(model=TASK, prompt=ids, max_tokens=1)).mera["guarantee"]
    assert (covered["certified"], covered["why"]) == (True, None)
    bare = choice_of(ai.completions.create(model=TASK, prompt=ids[1:], max_tokens=1)).mera["guarantee"]
    assert (bare["certified"], bare["why"]) == (False, "the prompt's tokens are not those that its text gives")


def test_a_task_as_the_model(ai: openai.OpenAI) -> None:
    """`<model>:<task>` and `steering` in extra_body do the same: the planted failure is repaired."""
    plain = choice_of(ai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=1))
    named = choice_of(ai.completions.create(model=TASK, prompt=PROMPT))
    asked = choice_of(
        ai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=1, extra_body={"steering": {"task": "demo_spam"}})
    )
    assert (plain.text, named.text, asked.text) == (" ham", " spam", " spam")
    assert named.mera == asked.mera
    assert (named.mera["decision"], named.mera["guarantee"]["certified"]) == ("steered", True)
    off = {"steering": {"method": "none"}, "details": "none"}
    unsteered = choice_of(ai.completions.create(model=TASK, prompt=PROMPT, extra_body=off))
    assert (unsteered.text, unsteered.mera) == (" ham", {"decision": "off", "reason": None, "alpha": None})


def test_a_chat(ai: openai.OpenAI) -> None:
    """The demo's chat template gives a single message the very tokens of that prompt: the certificate covers it."""
    reply = ai.chat.completions.create(model=MODEL, messages=CHAT, extra_body={"steering": {"task": "demo_spam"}})
    choice = choice_of(reply)
    assert (reply.object, choice.message.role, choice.message.content) == ("chat.completion", "assistant", " spam")
    assert (choice.mera["decision"], choice.mera["guarantee"]["certified"]) == ("steered", True)
    parts = [{"type": "text", "text": "Thanks."}, {"type": "text", "text": PROMPT}]
    again: Any = [
        {"role": "developer", "content": "Be brief."},
        *CHAT,
        choice.message,
        {"role": "user", "content": parts},
    ]
    longer = choice_of(ai.chat.completions.create(model=TASK, messages=again))
    assert longer.mera["guarantee"]["why"] == "the prompt does not match the task's template"


def test_a_chat_with_a_task(ai: openai.OpenAI) -> None:
    """The user's message stands for the only field of the task's template, or is a rendering of it."""
    whole = 'Message: "See you at nine." Is this ham or spam? Answer as desk A'
    found = [
        choice_of(
            ai.chat.completions.create(model=f"{MODEL}:demo_desk_a", messages=[{"role": "user", "content": text}])
        )
        for text in ("See you at nine.", whole)
    ]
    assert found[0].mera == found[1].mera
    assert found[0].message.content == " ham"
    assert found[0].mera["guarantee"]["why"] == "the artifact is not certified"
    several = choice_of(ai.chat.completions.create(model=TASK, messages=[{"role": "user", "content": "See you."}]))
    assert several.mera["guarantee"]["why"] == "the prompt does not match the task's template"


def test_a_chat_without_a_budget_goes_on_as_far_as_there_is_room(ai: openai.OpenAI, app: FastAPI) -> None:
    limit = app.state.runtime.limits.max_new_tokens
    reply = ai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": LONG}])
    assert reply.usage is not None
    assert 16 < reply.usage.completion_tokens <= limit
    short = ai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": LONG}], max_completion_tokens=3
    )
    assert short.usage is not None
    assert (short.usage.completion_tokens, choice_of(short).finish_reason) == (3, "length")


def test_a_model_without_a_chat_template(ai: openai.OpenAI, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no chats; a task's own prompt needs none."""
    monkeypatch.setattr(serving.engine.loaded.tokenizer, "chat_template", None)
    with pytest.raises(openai.BadRequestError, match="/v1/completions") as caught:
        ai.chat.completions.create(model=MODEL, messages=CHAT)
    assert caught.value.code == "no_chat_template"
    assert choice_of(ai.chat.completions.create(model=TASK, messages=CHAT)).message.content == " spam"


def test_a_chat_template_that_refuses(ai: openai.OpenAI, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    some = "{% if 'holiday' in messages[0]['content'] %}{{ raise_exception('never ' + messages[0]['content']) }}{% endif %}ok"
    monkeypatch.setattr(serving.engine.loaded.tokenizer, "chat_template", some)
    with pytest.raises(openai.BadRequestError, match="messages: the model's chat template refuses") as caught:
        ai.chat.completions.create(model=MODEL, messages=CHAT)
    assert "holiday" not in caught.value.message


def test_a_chat_template_that_is_broken_is_told_as_the_models_fault(
    ai: openai.OpenAI, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = "{{ raise_exception('never ' + messages[0]['content']) }}"
    monkeypatch.setattr(serving.engine.loaded.tokenizer, "chat_template", every)
    with pytest.raises(openai.BadRequestError, match=r"chat template is broken .* not in the request") as caught:
        ai.chat.completions.create(model=MODEL, messages=CHAT)
    assert "holiday" not in caught.value.message


SAMPLED: dict[str, Any] = {"model": MODEL, "prompt": LONG, "max_tokens": 8, "temperature": 2.0}


def test_n_draws_with_seed_and_the_seeds_behind_it(ai: openai.OpenAI) -> None:
    """Choice i is what seed + i gives alone, of every prompt."""
    reply = ai.completions.create(**{**SAMPLED, "prompt": [LONG, PROMPT]}, n=3, seed=7)
    assert [choice.index for choice in reply.choices] == list(range(6))
    assert [choice.seed for choice in reply.choices] == [7, 8, 9] * 2  # type: ignore[attr-defined]
    for i, choice in enumerate(reply.choices[:3]):
        assert choice_of(ai.completions.create(**SAMPLED, seed=7 + i)).text == choice.text
    assert len({choice.text for choice in reply.choices[:3]}) == 3


def test_a_seed_is_reproducible_and_told(ai: openai.OpenAI) -> None:
    drawn = choice_of(ai.completions.create(**SAMPLED))
    again = choice_of(ai.completions.create(**SAMPLED, seed=drawn.seed))
    assert (again.text, again.seed) == (drawn.text, drawn.seed)
    assert len({choice_of(ai.completions.create(**SAMPLED, seed=seed)).text for seed in range(6)}) == 6
    greedy = {choice_of(ai.completions.create(**{**SAMPLED, "temperature": 0}, seed=seed)).text for seed in range(3)}
    assert len(greedy) == 1


def test_stop(ai: openai.OpenAI) -> None:
    whole = choice_of(ai.completions.create(model=MODEL, prompt=LONG, max_tokens=12)).text
    first, second = whole[5:8], whole[9:12]
    at = min(whole.index(first), whole.index(second))
    for stop in (first, [first], [second, first]):
        choice = choice_of(ai.completions.create(model=MODEL, prompt=LONG, max_tokens=12, stop=stop))
        assert choice.finish_reason == "stop"
        assert choice.text == whole[: at if isinstance(stop, list) and len(stop) > 1 else whole.index(first)]


def test_echo(ai: openai.OpenAI, serving: Serving) -> None:
    plain = choice_of(ai.completions.create(model=MODEL, prompt=PROMPT)).text
    for prompt in (PROMPT, list(serving.engine.encode(PROMPT))):
        assert choice_of(ai.completions.create(model=MODEL, prompt=prompt, echo=True)).text == PROMPT + plain
        stream = ai.completions.create(model=MODEL, prompt=prompt, echo=True, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == PROMPT + plain


def test_logprobs(ai: openai.OpenAI, address: str) -> None:
    """Both routes give the chosen tokens' log-probabilities, those of `POST /generate`."""
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 3, "details": True}}
    native = httpx.post(f"{address}/generate", json=body).json()["details"]["tokens"]
    ids, scores = [token["text"] for token in native], [token["logprob"] for token in native]
    found = choice_of(ai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=3, logprobs=0)).logprobs
    assert (found.tokens, found.top_logprobs, found.text_offset) == (ids, None, [0, 4])
    assert found.token_logprobs == pytest.approx(scores, abs=1e-4)
    said = choice_of(ai.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=3, logprobs=True)).logprobs
    assert [token.token for token in said.content] == ids
    assert [token.logprob for token in said.content] == pytest.approx(scores, abs=1e-4)
    assert [bytes(token.bytes).decode() for token in said.content] == ids
    assert [token.top_logprobs for token in said.content] == [[], []]


def test_the_likeliest_token_is_known_under_greedy_decoding(ai: openai.OpenAI) -> None:
    """There it is the chosen one. Sampled, it is not known, and not claimed."""
    found = choice_of(ai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=3, logprobs=1)).logprobs
    assert found.top_logprobs == [{t: p} for t, p in zip(found.tokens, found.token_logprobs, strict=True)]
    said = choice_of(
        ai.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=3, logprobs=True, top_logprobs=1)
    )
    assert [(t.top_logprobs[0].token, t.top_logprobs[0].logprob) for t in said.logprobs.content] == [
        (t.token, t.logprob) for t in said.logprobs.content
    ]
    with pytest.raises(openai.BadRequestError, match="logprobs: beside the chosen"):
        ai.completions.create(**SAMPLED, logprobs=1)
    with pytest.raises(openai.BadRequestError, match="top_logprobs: beside the chosen"):
        ai.chat.completions.create(model=MODEL, messages=CHAT, temperature=1, logprobs=True, top_logprobs=1)
    assert choice_of(ai.completions.create(**SAMPLED, logprobs=0)).logprobs.token_logprobs


def test_answers_are_counted(ai: openai.OpenAI, app: FastAPI) -> None:
    ai.completions.create(model=TASK, prompt=PROMPT, n=2)
    list(ai.chat.completions.create(model=TASK, messages=CHAT, stream=True))
    text = app.state.runtime.metrics.text().decode()
    assert 'mera_requests_total{route="/v1/completions",status="200"} 1.0' in text
    assert 'mera_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'mera_decisions_total{decision="steered",reason="",task="demo_spam"} 3.0' in text


def different(i: int) -> dict[str, Any]:
    """The i-th of sixteen requests that have little in common."""
    asked: dict[str, Any] = {
        "model": (MODEL, TASK, f"{MODEL}:demo_desk_a", MODEL)[i % 4],
        "prompt": (LONG, PROMPT, [PROMPT, LONG], f"{LONG} {i}")[i // 4],
        "max_tokens": 4 + i,
        "temperature": (None, 0.7, 1.5)[i % 3],
        "top_p": (None, 0.9)[i % 2],
        "seed": i,
        "n": 1 + i % 3,
        "logprobs": (None, 0)[i % 2],
        "stop": (None, ".", ["e", "u"])[(i // 2) % 3],
        "extra_body": {"top_k": (None, 5, 50)[i % 3], "details": ("none", "summary", "trace")[i % 3]},
    }
    if i % 4 == 3:
        asked["extra_body"]["steering"] = {"task": "demo_spam", "alpha": 0.02 * i, "positions": ("all", "last")[i % 2]}
    return asked


async def test_sixteen_different_requests_at_once_equal_each_alone(aio: openai.AsyncOpenAI) -> None:
    async def told(i: int, stream: bool) -> list[tuple[Any, ...]]:
        asked = different(i)
        if not stream:
            reply = await aio.completions.create(**asked)
            return [(c.text, c.finish_reason, c.seed, c.mera["decision"]) for c in reply.choices]  # type: ignore[attr-defined]
        texts, ends = {}, {}
        async for chunk in await aio.completions.create(**asked, stream=True):
            choice = choice_of(chunk)
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                ends[choice.index] = (choice.finish_reason, choice.seed, choice.mera["decision"])
        return [(texts[index], *ends[index]) for index in sorted(ends)]

    alone = [await told(i, False) for i in range(16)]
    assert len({repr(found) for found in alone}) == 16
    assert await asyncio.gather(*(told(i, i % 2 == 0) for i in range(16))) == alone
