"""What the model is called on /v1, and the small routes that other servers' clients ask: health, version, limits, tokens, HEAD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from huggingface_hub import InferenceClient
from mera_server.app import create_app
from mera_server.loading import Serving
from mera_server.settings import Settings

Ready = Callable[[FastAPI], FastAPI]
MODEL = "mera-demo"
CHAT: Any = [{"role": "user", "content": "Message:"}]


@pytest.fixture
async def renamed(settings: Settings, serving: Serving, ready_app: Ready) -> Any:
    """A server that calls its model otherwise."""
    named = settings.model_copy(update={"served_model_name": ("small", "org/small")})
    app = ready_app(create_app(named, loader=lambda _: serving))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as found:
        yield found


@pytest.mark.parametrize("model", [{}, {"model": None}, {"model": ""}, {"model": "tgi"}, {"model": "dummy"}])
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
async def test_who_names_no_model_gets_the_served_one(client: httpx.AsyncClient, route: str, model: Any) -> None:
    body = {"prompt": "Message:"} if route == "/v1/completions" else {"messages": CHAT}
    response = await client.post(route, json={**body, **model, "max_tokens": 2})
    assert (response.status_code, response.json()["model"]) == (200, MODEL)


@pytest.mark.parametrize("model", [None, "tgi"])
def test_hugging_faces_chat_completion(address: str, monkeypatch: pytest.MonkeyPatch, model: str | None) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    with InferenceClient(address) as client:
        found = client.chat_completion(CHAT, model=model, max_tokens=3)
        assert found.choices[0].message.content
        pieces = client.chat_completion(CHAT, model=model, max_tokens=3, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == found.choices[0].message.content


def test_hugging_faces_health_check(address: str) -> None:
    with InferenceClient(address, provider="hf-inference", token="none") as client:
        assert client.health_check()


async def test_the_model_goes_by_the_names_that_were_given(renamed: httpx.AsyncClient) -> None:
    listed = (await renamed.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["small", "org/small", "small:demo_spam"]
    assert {(model["root"], model["max_model_len"]) for model in listed} == {(MODEL, 1024)}
    assert [model["parent"] for model in listed] == [None, None, "small"]
    for name in ("small", "org/small", "small:demo_spam", "org/small:demo_spam"):
        response = await renamed.post("/v1/completions", json={"model": name, "prompt": "Message:", "max_tokens": 1})
        assert (response.status_code, response.json()["model"]) == (200, name)
    unknown = await renamed.post("/v1/completions", json={"model": MODEL, "prompt": "Message:"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_model")
    assert (await renamed.get("/info")).json()["model_id"] == "small"


async def test_the_assistants_last_message_is_continued(client: httpx.AsyncClient, serving: Serving) -> None:
    """Its answer goes on from the very tokens of the chat so far: those that the template would give it, without an end."""
    said = [*CHAT, {"role": "assistant", "content": "Dear all"}]
    tokens = serving.engine.loaded.tokenizer.apply_chat_template(said, continue_final_message=True, return_dict=False)

    async def text(**more: Any) -> str:
        response = await client.post("/v1/chat/completions", json={"messages": said, "max_tokens": 6, **more})
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    plain = {"model": MODEL, "prompt": list(tokens), "max_tokens": 6}
    expected = (await client.post("/v1/completions", json=plain)).json()["choices"][0]["text"]
    assert await text() == await text(continue_final_message=True, add_generation_prompt=False) == expected


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"messages": CHAT, "continue_final_message": True}, "continue_final_message"),
        (
            {
                "messages": [*CHAT, {"role": "assistant", "content": "x"}],
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "add_generation_prompt",
        ),
    ],
)
async def test_what_cannot_be_continued_is_refused(client: httpx.AsyncClient, more: Any, field: str) -> None:
    error = (await client.post("/v1/chat/completions", json=more)).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_input", field)


async def test_an_assistant_may_have_said_nothing(client: httpx.AsyncClient) -> None:
    silent = [*CHAT, {"role": "assistant", "content": None, "tool_calls": None}]
    answers = [
        (await client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 4})).json()["choices"][0]
        for messages in (CHAT, silent)
    ]
    assert answers[0] == answers[1]


def test_usage_is_told_continuously_where_it_is_asked_for(ai: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": ["Message:", "Dear"], "max_tokens": 3, "stream": True}
    chunks = list(
        ai.completions.create(**asked, stream_options={"include_usage": True, "continuous_usage_stats": True})
    )
    generated = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(generated) == len(chunks)
    assert generated == sorted(generated)
    assert (generated[0], generated[-1], generated[-2]) == (1, 6, 6)
    assert chunks[-1].choices == []
    bare = list(ai.completions.create(**asked, stream_options={"continuous_usage_stats": True}))
    assert {chunk.usage for chunk in bare} == {None}  # as vLLM has it, whose option it is: only beside include_usage


async def test_an_answer_may_fill_the_context(serving: Serving, ready_app: Ready) -> None:
    """Without a limit of the operator's; one token more is the caller's mistake."""
    app = ready_app(create_app(Settings(), loader=lambda _: serving))
    prompt = len(serving.engine.encode("Message:"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for extra, status in ((0, 200), (1, 422)):
            few = {"max_new_tokens": serving.engine.max_tokens - prompt + extra, "stop": ["e"]}
            response = await client.post("/generate", json={"inputs": "Message:", "parameters": few})
            assert response.status_code == status
        assert (await client.get("/tasks/forms")).json()["max_new_tokens_limit"] == serving.engine.max_tokens
        found = (await client.get("/info")).json()
        assert (found["max_total_tokens"], found["max_input_tokens"], found["max_new_tokens"]) == (1024, 1023, 1023)


async def test_small_routes_of_other_servers(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).json() == {"status": "ok"}
    assert set((await client.get("/version")).json()) == {"version"}
    info = (await client.get("/info")).json()
    assert info["model_id"] == MODEL
    assert (info["max_new_tokens"], info["max_client_batch_size"], info["max_best_of"]) == (900, 256, 1)


async def test_head_is_answered_wherever_get_is(client: httpx.AsyncClient, app: FastAPI) -> None:
    paths = [path for path, methods in app.openapi()["paths"].items() if "get" in methods and "{" not in path]
    assert len(paths) > 8
    for path in (*paths, "/v1/models/mera-demo", "/absent", "/generate"):
        head, get = await client.head(path), await client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert (await client.put("/tasks")).headers["allow"] == "GET, HEAD"


async def test_tokens_there_and_back(client: httpx.AsyncClient, serving: Serving) -> None:
    ids = list(serving.engine.encode("See you at noon"))

    async def tokens(**body: Any) -> Any:
        response = await client.post("/tokenize", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    whole = await tokens(prompt="See you at noon", return_token_strs=True)
    assert (whole["tokens"], whole["count"], whole["max_model_len"]) == (ids, len(ids), 1024)
    assert "".join(whole["token_strs"]).endswith("See you at noon")
    pieces = (await tokens(prompt="See you at noon", with_pieces=True))["tokens"]
    assert [(piece["id"], piece["piece"]) for piece in pieces] == list(zip(ids, whole["token_strs"], strict=True))
    bare = ids[1:]
    for body in ({"prompt": "See you at noon", "add_special_tokens": False}, {"content": "See you at noon"}):
        assert (await tokens(**body))["tokens"] == bare
    assert (await tokens(content="See you at noon", add_special=True))["tokens"] == ids
    chat = await tokens(model=MODEL, messages=[{"role": "user", "content": "See you at noon"}])
    asked = {"messages": [{"role": "user", "content": "See you at noon"}], "max_tokens": 1}
    usage = (await client.post("/v1/chat/completions", json=asked)).json()["usage"]
    assert chat["count"] == usage["prompt_tokens"]
    back = (await client.post("/detokenize", json={"tokens": bare})).json()
    assert back == {"prompt": "See you at noon", "content": "See you at noon"}


@pytest.mark.parametrize(
    ("route", "body", "code", "names"),
    [
        ("/tokenize", {}, "invalid_input", "prompt: give either"),
        ("/tokenize", {"prompt": "x", "content": "x"}, "invalid_input", "prompt: give either"),
        ("/tokenize", {"prompt": "x", "model": "gpt"}, "unknown_model", "model: "),
        ("/tokenize", {"messages": []}, "invalid_input", "messages: "),
        ("/tokenize", {"messages": CHAT, "continue_final_message": True}, "invalid_input", "continue_final_message: "),
        ("/detokenize", {}, "invalid_input", "tokens: missing"),
        ("/detokenize", {"tokens": [-1]}, "invalid_input", "tokens: "),
        ("/detokenize", {"tokens": [700]}, "invalid_input", "tokens: one is out of vocabulary, which has 700"),
        ("/detokenize", {"tokens": [2**70]}, "invalid_input", "tokens: "),
    ],
)
async def test_wrong_tokens(client: httpx.AsyncClient, route: str, body: Any, code: str, names: str) -> None:
    response = await client.post(route, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (404 if "unknown" in code else 422, code)
    assert response.json()["error"]["message"].startswith(names)


def test_hugging_faces_text_classification(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    with InferenceClient(f"{address}/classify/demo_desk_a") as client:
        found = client.text_classification("See you at noon")
        assert [one.label for one in found] == ["ham", "spam"]
        assert sum(one.score for one in found) == pytest.approx(1)
        [best] = client.text_classification("See you at noon", top_k=1, function_to_apply="softmax")
        assert best == found[0]


async def test_the_labels_are_those_of_classify(client: httpx.AsyncClient) -> None:
    inputs = ["See you at noon", {"text": "Claim your prize"}]
    results = (await client.post("/classify", json={"task": "demo_desk_a", "inputs": inputs})).json()["results"]
    found = (await client.post("/classify/demo_desk_a", json={"inputs": inputs})).json()
    assert [{one["label"]: one["score"] for one in labels} for labels in found] == [
        one["probabilities"] for one in results
    ]
    assert [labels[0]["label"] for labels in found] == [one["label"] for one in results]
    for body, code, names in (
        ({"inputs": ["x", {"a": "b"}]}, "unknown_field", "inputs[1]"),
        (
            {"inputs": "x", "parameters": {"function_to_apply": "sigmoid"}},
            "unsupported",
            "parameters.function_to_apply",
        ),
        ({"inputs": []}, "invalid_input", "inputs"),
    ):
        error = (await client.post("/classify/demo_desk_a", json=body)).json()["error"]
        assert (error["code"], error["message"].startswith(names)) == (code, True), error
    assert (await client.post("/classify/nothing", json={"inputs": "x"})).json()["error"]["code"] == "unknown_task"
