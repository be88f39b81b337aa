"""Clients that are built on OpenAI's, where they are installed: plain, streamed, n, stop, log-probabilities, errors, structured answers.

None of them is needed for anything else, so none comes with the tests: `pip install litellm langchain-openai llama-index-llms-openai-like`.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what others warn of is theirs

MODEL, TASK = "mera-demo", "mera-demo:demo_spam"
PROMPT = 'Message: "Win a holiday for two. Enter your code 2220 online." Is this ham or spam? Answer as desk B'
LONG = "x " * 1500


class Verdict(BaseModel):
    """Whether a message is spam."""

    label: Literal["ham", "spam"]


def test_litellm(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm: Any = pytest.importorskip("litellm")

    def ask(text: str = PROMPT, model: str = MODEL, kind: str = "openai", **more: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        at = {"api_base": f"{address}/v1", "api_key": "none", "num_retries": 0}
        return litellm.completion(model=f"{kind}/{model}", messages=messages, **at, **more)

    assert ask(max_tokens=2).choices[0].message.content == " ham"
    assert ask(max_tokens=2, kind="hosted_vllm").choices[0].message.content == " ham"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in ask(max_tokens=2, stream=True)) == " ham"
    assert len(ask(max_tokens=2, n=3, temperature=1.0, stop=["."]).choices) == 3
    assert ask(max_tokens=1, logprobs=True).choices[0].logprobs.content[0].token == " ham"
    assert (
        Verdict.model_validate_json(ask(model=TASK, response_format=Verdict).choices[0].message.content).label == "spam"
    )
    for error, asked in (
        (litellm.ContextWindowExceededError, {"text": LONG}),
        (litellm.NotFoundError, {"model": "nothing"}),
        (litellm.BadRequestError, {"temperature": -3}),
    ):
        with pytest.raises(error):
            ask(**asked)


def test_langchain(address: str) -> None:
    langchain: Any = pytest.importorskip("langchain_openai")
    openai: Any = pytest.importorskip("openai")
    at = {"base_url": f"{address}/v1", "api_key": "none", "max_retries": 0}
    chat = langchain.ChatOpenAI(model=MODEL, max_tokens=2, temperature=0, **at)
    assert chat.invoke(PROMPT).content == " ham"
    assert "".join(chunk.content for chunk in chat.stream(PROMPT)) == " ham"
    assert [answer.content for answer in chat.batch([PROMPT, PROMPT])] == [" ham", " ham"]
    assert chat.bind(logprobs=True).invoke(PROMPT).response_metadata["logprobs"]["content"][0]["token"] == " ham"
    assert chat.invoke([("system", "Be brief."), ("user", PROMPT), ("assistant", "spam"), ("user", "Why?")]).content
    structured = langchain.ChatOpenAI(model=TASK, **at).with_structured_output(Verdict, method="json_schema")
    assert structured.invoke(PROMPT) == Verdict(label="spam")
    plain = langchain.OpenAI(model=MODEL, max_tokens=3, temperature=0, **at)
    assert plain.invoke("Message:") == "".join(plain.stream("Message:")) != ""
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        chat.invoke(LONG)


def test_llama_index(address: str) -> None:
    like: Any = pytest.importorskip("llama_index.llms.openai_like").OpenAILike
    said: Any = pytest.importorskip("llama_index.core.llms").ChatMessage(role="user", content=PROMPT)
    at = {
        "model": MODEL,
        "api_base": f"{address}/v1",
        "api_key": "none",
        "max_tokens": 2,
        "temperature": 0,
        "max_retries": 0,
    }
    chat = like(is_chat_model=True, **at)
    assert chat.chat([said]).message.content == " ham"
    assert "".join(part.delta or "" for part in chat.stream_chat([said])) == " ham"
    text = like(is_chat_model=False, **at)
    assert text.complete(PROMPT).text == " ham"
    assert "".join(part.delta or "" for part in text.stream_complete(PROMPT)) == " ham"
