"""Streams with OpenAI's own client: the chunks join to the plain answer, and say what steering did as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import httpx
import openai
import pytest
from mera_server.loading import Serving

from merasteer.types import GeneratedToken, Generation, GenerationRequest

MODEL, TASK = "mera-demo", "mera-demo:demo_spam"
PROMPT = 'Message: "Win a holiday for two. Enter your code 2220 online." Is this ham or spam? Answer as desk B'
LONG = "Message:"  # the model goes on writing behind it
CHAT: Any = [{"role": "user", "content": PROMPT}]


def choice_of(reply: Any) -> Any:
    [choice] = reply.choices
    return choice


def test_a_completion_that_is_streamed(ai: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": TASK, "prompt": [LONG, PROMPT], "max_tokens": 9, "logprobs": 0, "n": 2}
    whole = ai.completions.create(**asked)
    chunks = list(ai.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert {(chunk.object, chunk.model, chunk.id, chunk.created) for chunk in chunks} == {
        ("text_completion", TASK, chunks[0].id, chunks[0].created)
    }
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    for expected in whole.choices:
        own = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == expected.index]
        assert "".join(choice.text for choice in own) == expected.text
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + [expected.finish_reason]
        assert own[-1].model_extra is not None
        assert set(own[-1].model_extra) == {"mera", "seed"}
        assert own[-1].model_extra["mera"]["decision"] == expected.mera["decision"]  # type: ignore[attr-defined]
        assert all(set(choice.model_extra or ()) == {"step"} for choice in own[:-1])
        scores = [choice.logprobs for choice in own[:-1]]
        assert expected.logprobs is not None
        for name in ("tokens", "text_offset", "token_logprobs"):
            found = [value for score in scores for value in getattr(score, name)]
            close = (
                pytest.approx(getattr(expected.logprobs, name), abs=1e-4)
                if "prob" in name
                else getattr(expected.logprobs, name)
            )
            assert found == close


async def test_a_chat_that_is_streamed_asynchronously(aio: openai.AsyncOpenAI) -> None:
    whole = choice_of(await aio.chat.completions.create(model=TASK, messages=CHAT, max_tokens=3))
    chunks = [
        chunk async for chunk in await aio.chat.completions.create(model=TASK, messages=CHAT, max_tokens=3, stream=True)
    ]
    choices = [choice_of(chunk) for chunk in chunks]
    assert (choices[0].delta.role, choices[0].delta.content) == ("assistant", "")
    assert "".join(choice.delta.content or "" for choice in choices) == whole.message.content
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    steps = [choice.step for choice in choices[1:-1]]
    assert [step["steered"] for step in steps] == [True, False]  # the label; behind it nothing is
    assert steps[0]["predicted_error"]["before"] == pytest.approx(whole.mera["predicted_error"]["before"], abs=1e-4)
    assert (choices[-1].finish_reason, choices[-1].mera["task"]) == (whole.finish_reason, "demo_spam")


async def test_a_stream_tells_no_steps_without_details(aio: openai.AsyncOpenAI) -> None:
    stream = await aio.chat.completions.create(model=TASK, messages=CHAT, stream=True, extra_body={"details": "none"})
    choices = [choice_of(chunk) async for chunk in stream]
    assert not any("step" in choice.model_extra for choice in choices)
    assert set(choices[-1].mera) == {"decision", "reason", "alpha"}


def test_a_stream_ends_with_done(address: str) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "stream": True}
    response = httpx.post(f"{address}/v1/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: {") for line in lines[:-2])


def test_an_error_inside_a_stream_raises_in_the_client(
    ai: openai.OpenAI, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_all = serving.engine.submit_all

    def fails(
        requests: list[GenerationRequest], watchers: list[Callable[[GeneratedToken], None]], *more: Any
    ) -> list[Future[Generation]]:
        def told(token: GeneratedToken) -> None:
            if token.index == 2:
                raise RuntimeError("lost")
            watchers[0](token)

        return submit_all(requests, [told], *more)

    monkeypatch.setattr(serving.engine, "submit_all", fails)
    stream = ai.completions.create(model=MODEL, prompt=LONG, max_tokens=9, stream=True)
    assert [next(stream).choices[0].finish_reason for _ in range(2)] == [None, None]
    with pytest.raises(openai.APIError) as caught:
        next(stream)
    assert caught.value.code == "engine_failed"


def test_an_error_before_a_stream_is_an_ordinary_one(ai: openai.OpenAI) -> None:
    with pytest.raises(
        openai.BadRequestError, match=r"prompt: .*max_tokens 900 exceed.*maximum context length is 1024 tokens"
    ) as caught:
        ai.completions.create(model=MODEL, prompt="x " * 400, max_tokens=900, stream=True)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_leaving_a_stream_frees_the_engine(ai: openai.OpenAI, serving: Serving) -> None:
    with ai.completions.create(model=MODEL, prompt=LONG, max_tokens=800, n=2, stream=True) as stream:
        next(stream)
    deadline = time.monotonic() + 20
    while serving.engine.stats().running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert serving.engine.stats().running == 0
