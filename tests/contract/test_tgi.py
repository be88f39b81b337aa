"""`/generate`, `/generate_stream` and `/` with the client that people have: `huggingface_hub.InferenceClient`, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import ValidationError

PROMPT = "Message:"
ROUTES = ("", "/generate", "/generate_stream")


@pytest.fixture
def client(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[InferenceClient]:
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    with InferenceClient(address) as found:
        yield found


@pytest.fixture
def plain(address: str) -> Any:
    """The answer of `POST /generate` to parameters: what the client's answers are compared with."""

    def post(**parameters: Any) -> dict[str, Any]:
        response = httpx.post(f"{address}/generate", json={"inputs": PROMPT, "parameters": parameters})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    return post


def test_plain_text(client: InferenceClient, plain: Any) -> None:
    found = client.text_generation(PROMPT, max_new_tokens=12)
    assert found == plain(max_new_tokens=12)["generated_text"]
    assert client.text_generation(PROMPT, max_new_tokens=12, return_full_text=True) == PROMPT + found


def test_details(client: InferenceClient, plain: Any) -> None:
    found = client.text_generation(PROMPT, max_new_tokens=12, details=True)
    expected = plain(max_new_tokens=12, details=True)
    assert found.generated_text == expected["generated_text"]
    assert found.details is not None
    assert (found.details.finish_reason, found.details.generated_tokens, found.details.seed) == ("length", 12, None)
    assert [(token.id, token.text, token.special) for token in found.details.tokens] == [
        (token["id"], token["text"], token["special"]) for token in expected["details"]["tokens"]
    ]
    assert found["mera"]["decision"] == "off"  # type: ignore[index]


@pytest.mark.parametrize("route", ROUTES)
def test_streams(address: str, plain: Any, route: str) -> None:
    expected = plain(max_new_tokens=20, details=True)
    client = InferenceClient(address + route)
    assert "".join(client.text_generation(PROMPT, max_new_tokens=20, stream=True)) == expected["generated_text"]
    events = list(client.text_generation(PROMPT, max_new_tokens=20, stream=True, details=True))
    assert [event.index for event in events] == list(range(1, 21))
    assert "".join(event.token.text for event in events) == events[-1].generated_text == expected["generated_text"]
    assert all(event.generated_text is None and event.details is None for event in events[:-1])
    told = [(event.token.id, event.token.logprob) for event in events]
    assert told == [(token["id"], pytest.approx(token["logprob"], abs=1e-4)) for token in expected["details"]["tokens"]]
    assert events[-1].details is not None
    assert (events[-1].details.finish_reason, events[-1].details.generated_tokens) == ("length", 20)


def test_stop_ends_the_text_before_it(client: InferenceClient, plain: Any) -> None:
    whole = plain(max_new_tokens=30)["generated_text"]
    stop = whole[8:11]
    cut = whole[: whole.index(stop)]
    assert client.text_generation(PROMPT, max_new_tokens=30, stop=["no such text", stop]) == cut
    events = list(client.text_generation(PROMPT, max_new_tokens=30, stop=[stop], stream=True, details=True))
    assert "".join(event.token.text for event in events) == events[-1].generated_text == cut
    assert events[-1].details is not None
    assert events[-1].details.finish_reason == "stop_sequence"


def test_seeds_and_temperature(client: InferenceClient) -> None:
    def sample(seed: int | None, temperature: float = 1.5, **more: Any) -> str:
        return client.text_generation(PROMPT, max_new_tokens=24, temperature=temperature, seed=seed, **more)

    first = sample(5)
    assert first == sample(5) == "".join(sample(5, stream=True))
    assert len({first, *(sample(seed) for seed in range(4))}) > 1
    assert sample(5, 0.01, top_k=1) == sample(6, 0.01, top_k=1) == client.text_generation(PROMPT, max_new_tokens=24)
    found = client.text_generation(PROMPT, max_new_tokens=4, temperature=1.0, details=True)
    assert found.details is not None
    assert found.details.seed is not None


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_the_clients_errors(client: InferenceClient, stream: bool) -> None:
    for refused in ({"repetition_penalty": 1.3}, {"best_of": 2}, {"top_n_tokens": 3}, {"temperature": -1.0}):
        with pytest.raises(ValidationError) as caught:  # the client knows it by `error_type`
            client.text_generation(PROMPT, stream=stream, **refused)  # type: ignore[call-overload]
        assert caught.value.__cause__.response.status_code == 422  # type: ignore[union-attr]


async def test_async(address: str, plain: Any) -> None:
    expected = (await asyncio.to_thread(plain, max_new_tokens=12))["generated_text"]
    async with AsyncInferenceClient(address) as client:
        assert await client.text_generation(PROMPT, max_new_tokens=12) == expected
        found = await client.text_generation(PROMPT, max_new_tokens=12, details=True)
        assert found.generated_text == expected
        pieces = await client.text_generation(PROMPT, max_new_tokens=12, stream=True)
        assert "".join([piece async for piece in pieces]) == expected
        stopped = await client.text_generation(PROMPT, max_new_tokens=12, stop=[expected[4:6]], temperature=0.0, seed=1)
        assert stopped == expected[: expected.index(expected[4:6])]
        many = await asyncio.gather(*(client.text_generation(PROMPT, max_new_tokens=12) for _ in range(8)))
        assert set(many) == {expected}


def test_the_plain_answer_of_the_compatible_route_is_a_list(address: str) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 4}}
    one = httpx.post(f"{address}/generate", json=body)
    found = httpx.post(f"{address}/", json=body)
    assert found.json() == [one.json()]
    assert found.headers["content-type"] == "application/json"


def test_every_route_counts_once(address: str) -> None:
    for route in ("/", "/generate", "/generate_stream"):
        for stream in (True, None):
            body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 3}, "stream": stream}
            assert httpx.post(address + route, json=body).status_code == 200
        assert httpx.post(address + route, json={}).status_code == 422
    assert httpx.post(f"{address}/generate_stream", json={"inputs": "x", "stream": False}).json()["error"]["code"] == (
        "unsupported"
    )
    httpx.get(address)
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    found = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("mera_requests_total")}
    refused = {"/": 1, "/generate": 1, "/generate_stream": 2}
    assert found == {f'mera_requests_total{{route="{route}",status="200"}}': 2 for route in refused} | {
        f'mera_requests_total{{route="{route}",status="422"}}': count for route, count in refused.items()
    }
    assert 'mera_tokens_total{kind="generated"} 18.0' in lines
    assert 'mera_decisions_total{decision="off",reason="",task=""} 6.0' in lines
