"""Plans through an engine whose every token and error the test itself gives: as they come, and all at once."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from mera_server.app import create_app
from mera_server.bridge import complete
from mera_server.catalog import Catalog
from mera_server.loading import Serving
from mera_server.replies import StreamReply
from mera_server.report import step
from mera_server.resolve import Plan
from mera_server.runtime import Runtime
from mera_server.settings import Settings
from mera_server.streaming import EventStream, Piece, TokenStream, event, open_stream
from starlette.requests import Request
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from merasteer.engine.text import Pieces, TextStream
from merasteer.errors import Cancelled, EngineFailed, InvalidInput, MeraError, Overloaded
from merasteer.types import GeneratedToken, Generation, GenerationRequest, SteeringCounts, TokenTrace

MakePlan = Callable[..., Plan]


@dataclass
class Call:
    """One request that reached the engine: what it does with it is the test's to say."""

    request: GenerationRequest
    on_token: Callable[[GeneratedToken], None]
    future: Future[Generation]
    stream: TextStream

    def tokens(self, ids: Iterable[int], last: bool = False, start: int = 0) -> None:
        ids = list(ids)
        for index, token in enumerate(ids, start):
            ends = last and index - start == len(ids) - 1
            self.on_token(GeneratedToken(index, token, -0.5, None, None, False, None, ends, self.stream.push(token)))

    def end(self, ids: Iterable[int], text: str) -> None:
        made = tuple(ids)
        self.future.set_running_or_notify_cancel()
        self.future.set_result(Generation(made, text, "length", len(self.request.prompt), None, SteeringCounts(), None))

    def fail(self, error: Exception) -> None:
        self.future.set_running_or_notify_cancel()
        self.future.set_exception(error)


class Engine:
    """Every byte is one token, so that characters are always split."""

    def __init__(self) -> None:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        self.failure: BaseException | None = None
        self.calls: list[Call] = []
        self.refuse: dict[int, MeraError] = {}  # by the number of the request
        self.full = False

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text))

    def decode(self, tokens: Iterable[int]) -> str:
        return str(self.tokenizer.decode(list(tokens)))

    def check_room(self) -> None:
        if self.full:
            raise Overloaded("engine: full")

    def submit_all(self, requests: Any, watchers: Any, named: Any) -> list[Future[Generation]]:
        self.check_room()
        for number in self.refuse.keys() & set(range(len(requests))):
            raise named(number, self.refuse[number])
        told = watchers or [None] * len(requests)
        pieces = Pieces(self.tokenizer)
        made = [
            Call(request, watcher, Future(), TextStream(pieces, request.prompt, request.stop))
            for request, watcher in zip(requests, told, strict=True)
        ]
        self.calls += made
        return [call.future for call in made]

    async def call(self, number: int = 0) -> Call:
        for _ in range(1000):
            if len(self.calls) > number:
                return self.calls[number]
            await asyncio.sleep(0.001)
        raise TimeoutError("the request did not reach the engine")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def app(engine: Engine, catalog: Catalog) -> FastAPI:
    app = create_app(Settings())
    app.state.runtime._serving = Serving(engine, catalog, frozenset({0}))  # type: ignore[arg-type]
    return app


@pytest.fixture
def runtime(app: FastAPI) -> Runtime:
    found: Runtime = app.state.runtime
    return found


class Caller:
    """The other side of a connection: leaves when it is told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, self.receive)
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)


def over(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The events, read as httpx's line iterator reads a stream."""
    assert response.headers["content-type"] == "text/event-stream"
    lines = [line for line in response.text.splitlines() if line]
    assert all(line.startswith("data:{") for line in lines)
    return [json.loads(line.removeprefix("data:")) for line in lines]


async def ask(app: FastAPI, engine: Engine, script: Callable[[Call], None], **body: Any) -> httpx.Response:
    """The answer to a streaming request for which the engine does what `script` says."""
    async with over(app) as client:
        answer = asyncio.create_task(client.post("/generate", json={"inputs": "Say:", "stream": True, **body}))
        script(await engine.call())
        return await answer


@pytest.mark.parametrize(
    "text", ["naïve 日本語 👩‍👩‍👧!", "line\u2028para\u2029next\x85end\x0b\r\n", "plain", "ends in half é"]
)
async def test_pieces_join_to_the_text_whatever_its_characters(app: FastAPI, engine: Engine, text: str) -> None:
    ids = engine.encode(text)

    def script(call: Call) -> None:
        call.tokens(ids, last=True)
        call.end(ids, text)

    found = events(await ask(app, engine, script))
    assert len(found) == len(ids)
    assert [one["index"] for one in found] == list(range(1, len(ids) + 1))
    assert "".join(one["token"]["text"] for one in found) == found[-1]["generated_text"] == text
    assert not any("�" in one["token"]["text"] for one in found)
    for one in found:
        StreamReply.model_validate(one)
    assert all(one[name] is None for one in found[:-1] for name in ("generated_text", "details", "mera"))
    assert found[-1]["details"] == {
        "finish_reason": "length", "prompt_tokens": 4, "generated_tokens": len(ids), "seed": None,
    }  # fmt: skip
    assert found[-1]["mera"]["decision"] == "off"


async def test_what_may_begin_a_stop_string_is_held_back(app: FastAPI, engine: Engine) -> None:
    ids = engine.encode("one STAY, two STOP")

    def script(call: Call) -> None:
        call.tokens(ids, last=True)
        call.end(ids, "one STAY, two ")

    found = events(await ask(app, engine, script, parameters={"stop": ["STOP"]}))
    texts = [one["token"]["text"] for one in found]
    assert "".join(texts) == "one STAY, two "
    assert texts[4:8] == ["", "", "STA", "Y"]
    assert engine.calls[0].request.stop == ("STOP",)


async def test_the_prompt_is_in_the_whole_text_alone(app: FastAPI, engine: Engine) -> None:
    def script(call: Call) -> None:
        call.tokens(engine.encode("ab"), last=True)
        call.end(engine.encode("ab"), "ab")

    found = events(await ask(app, engine, script, parameters={"return_full_text": True}))
    assert [one["token"]["text"] for one in found] == ["a", "b"]
    assert found[-1]["generated_text"] == "Say:ab"


async def test_an_engine_that_dies_in_mid_stream_is_the_last_event(
    app: FastAPI, engine: Engine, runtime: Runtime
) -> None:
    def script(call: Call) -> None:
        call.tokens(engine.encode("ab"))
        call.fail(EngineFailed("engine: the generation loop died; restart the server"))

    found = events(await ask(app, engine, script))
    assert [one["token"]["text"] for one in found[:-1]] == ["a", "b"]
    assert found[-1] == {
        "error": {"code": "engine_failed", "message": "engine: the generation loop died; restart the server"},
        "error_type": "incomplete_generation",
    }
    text = runtime.metrics.text().decode()
    assert 'mera_requests_total{route="/generate",status="503"} 1.0' in text
    assert "mera_decisions_total{" not in text


async def test_an_unexpected_error_in_mid_stream_is_told_and_logged(
    app: FastAPI, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def script(call: Call) -> None:
        call.tokens(engine.encode("ab"))
        call.fail(ZeroDivisionError("what the caller sent"))

    with caplog.at_level(logging.ERROR, "mera.errors"):
        response = await ask(app, engine, script)
    assert events(response)[-1]["error"]["code"] == "internal_error"
    assert f'request_id="{response.headers["x-request-id"]}" code=internal_error ZeroDivisionError' in caplog.text
    assert "what the caller sent" not in caplog.text + response.text


async def test_an_error_before_the_first_token_is_an_ordinary_answer(
    app: FastAPI, engine: Engine, runtime: Runtime
) -> None:
    response = await ask(app, engine, lambda call: call.fail(EngineFailed("engine: gone")))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_failed")
    engine.calls.clear()
    engine.refuse[0] = InvalidInput("positions: one lies beyond the prompt's 4 tokens")
    async with over(app) as client:
        refused = await client.post("/generate", json={"inputs": "Say:", "stream": True})
    assert refused.json()["error"]["message"].startswith("steering.positions: ")
    text = runtime.metrics.text().decode()
    assert all(f'mera_requests_total{{route="/generate",status="{status}"}} 1.0' in text for status in (422, 503))


async def test_events_leave_with_their_tokens_and_the_count_with_the_last(
    app: FastAPI, engine: Engine, runtime: Runtime
) -> None:
    caller = Caller()
    body = iter([{"type": "http.request", "body": b'{"inputs": "x", "stream": true}', "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(body, None) or await caller.receive()

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/generate",
        "raw_path": b"/generate", "query_string": b"", "headers": [], "scheme": "http", "server": ("test", 80),
    }  # fmt: skip
    answer = asyncio.create_task(app(scope, receive, caller.send))  # type: ignore[arg-type]
    call = await engine.call()
    for number, letter in enumerate("abc"):
        call.tokens(engine.encode(letter), last=letter == "c", start=number)
        if letter == "c":
            call.end(engine.encode("abc"), "abc")
        await asyncio.sleep(0.02)
        sent = [message for message in caller.sent if message.get("body")]
        assert len(sent) == number + 1
        assert json.loads(sent[-1]["body"].removeprefix(b"data:"))["token"]["text"] == letter
        assert all(message["more_body"] for message in sent)
        assert ('status="200"} 1.0' in runtime.metrics.text().decode()) is (letter == "c")
    await asyncio.wait_for(answer, 5)
    assert caller.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_caller_who_leaves_ends_the_request_at_once(
    runtime: Runtime, engine: Engine, make_plan: MakePlan
) -> None:
    caller = Caller()
    tokens = await open_stream(runtime, [make_plan(), make_plan()], caller.request)
    engine.calls[0].tokens(engine.encode("abc"))
    assert (await anext(tokens)).text == "a"
    caller.left.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert all(call.future.cancelled() for call in engine.calls)
    with pytest.raises(Cancelled):  # though tokens are there
        await anext(tokens)
    tokens.close()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def made(tokens: TokenStream) -> Any:
    async for piece in tokens:
        yield event({"text": piece.text})


async def test_whatever_ends_a_stream_frees_the_engine(runtime: Runtime, engine: Engine, make_plan: MakePlan) -> None:
    """The serving task is cancelled; the server's send raises; the route's own code raises."""

    async def broken(_message: Any) -> None:
        raise OSError("connection lost")

    async def raises(tokens: TokenStream) -> Any:
        async for piece in tokens:
            yield event({"text": 1 / len(piece.text[1:])})

    for number, (make, how) in enumerate([(made, "cancel"), (made, "send"), (raises, "route")]):
        caller = Caller()
        tokens = await open_stream(runtime, [make_plan()], caller.request)
        scope: dict[str, Any] = {"state": {"request_id": "mine"}}
        send = broken if how == "send" else caller.send
        task = asyncio.create_task(EventStream(tokens, make(tokens))(scope, caller.receive, send))
        (await engine.call(number)).tokens(engine.encode("a"))
        await asyncio.sleep(0.01)
        task.cancel()
        found = (await asyncio.gather(task, return_exceptions=True))[0]
        expected = {"cancel": asyncio.CancelledError, "send": type(None), "route": ZeroDivisionError}
        assert isinstance(found, expected[how]), found
        assert engine.calls[number].future.cancelled()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_choices_are_mixed_and_each_has_its_own_text_and_end(
    runtime: Runtime, engine: Engine, make_plan: MakePlan
) -> None:
    plans = [make_plan({"inputs": "a"}), make_plan({"inputs": "b", "steering": {"task": "bare"}})]
    tokens = await open_stream(runtime, plans, Caller().request)
    first, second = engine.calls
    ids = engine.encode("é")
    first.tokens(ids[:1])
    second.tokens(engine.encode("xy"), last=True)
    first.tokens(ids[1:], last=True, start=1)
    second.end(engine.encode("xy"), "xy")
    first.end(ids, "é")
    found: list[Piece] = [piece async for piece in tokens]
    assert [(piece.choice, piece.text, piece.end is not None) for piece in found] == [
        (0, "", False), (1, "x", False), (1, "y", True), (0, "é", True),
    ]  # fmt: skip
    ends = {piece.choice: piece.end for piece in found if piece.end is not None}
    assert [(ends[i].generation.text, ends[i].mera.task) for i in (0, 1)] == [("é", None), ("xy", "bare")]
    assert runtime.metrics.text().decode().count("mera_decisions_total{") == 2
    tokens.close()


async def test_one_refusal_names_its_choice_and_submits_nothing(
    runtime: Runtime, engine: Engine, make_plan: MakePlan
) -> None:
    engine.refuse[20] = InvalidInput("inputs: wrong")
    with pytest.raises(InvalidInput, match=r"prompt\[20\]"):
        await open_stream(
            runtime, [make_plan()] * 24, Caller().request, lambda i, error: type(error)(f"prompt[{i}]: {error}")
        )
    assert engine.calls == []


async def test_an_error_of_one_choice_is_told_once(
    runtime: Runtime, engine: Engine, make_plan: MakePlan, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = await open_stream(runtime, [make_plan()] * 3, Caller().request)
    for call in engine.calls:
        call.fail(EngineFailed("engine: gone"))
    with pytest.raises(EngineFailed):
        await anext(tokens)
    tokens.close()
    await asyncio.sleep(0)
    gc.collect()
    assert caplog.text == ""


async def test_whole_generations_come_in_order(runtime: Runtime, engine: Engine, make_plan: MakePlan) -> None:
    plans = [make_plan({"inputs": text}) for text in ("a", "b", "a")]
    task = asyncio.create_task(complete(runtime, plans, Caller().request))
    for number, text in ((2, "z"), (0, "x"), (1, "y")):
        call = await engine.call(number)
        assert (call.request.prompt, call.on_token) == (engine.encode(plans[number].prompt), None)
        call.end([1], text)
        await asyncio.sleep(0.001)
    assert [found.generation.text for found in await task] == ["x", "y", "z"]
    assert 'decision="off",reason="",task=""} 3.0' in runtime.metrics.text().decode()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("how", ["one fails", "all fail", "the caller leaves", "the task is cancelled"])
async def test_a_batch_ends_together(
    runtime: Runtime, engine: Engine, make_plan: MakePlan, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    caller = Caller()
    task: Any = asyncio.create_task(complete(runtime, [make_plan()] * 3, caller.request))
    call: Any = await engine.call(2)
    await asyncio.sleep(0.005)
    if how == "the caller leaves":
        caller.left.set()
    elif how == "the task is cancelled":
        task.cancel()
    else:
        for call in reversed(engine.calls[: 1 if how == "one fails" else 3]):
            call.fail(EngineFailed("engine: gone"))
            await asyncio.sleep(0.002)  # those behind the first have failed when it is read
    expected = {"the caller leaves": Cancelled, "the task is cancelled": asyncio.CancelledError}.get(how, EngineFailed)
    error: Any = (await asyncio.gather(task, return_exceptions=True))[0]
    assert isinstance(error, expected)
    await asyncio.sleep(0.005)
    assert all(call.future.done() for call in engine.calls)
    assert "mera_decisions_total{" not in runtime.metrics.text().decode()
    engine.calls.clear()
    call = task = error = None  # nothing holds the futures: an exception that nobody saw would be logged now
    gc.collect()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert caplog.text == ""


async def test_prompts_may_be_given_as_tokens(runtime: Runtime, engine: Engine, make_plan: MakePlan) -> None:
    caller = Caller()
    tokens = await open_stream(runtime, [make_plan()], caller.request, prompts=[(7, 8)])
    task = asyncio.create_task(complete(runtime, [make_plan()], caller.request, prompts=[(9,)]))
    await engine.call(1)
    assert [call.request.prompt for call in engine.calls] == [(7, 8), (9,)]
    tokens.close()
    task.cancel()


def told(before: float | None, after: float | None, steered: bool, trace: TokenTrace | None = None) -> GeneratedToken:
    return GeneratedToken(0, 5, None, before, after, steered, trace, False)


def test_a_step_tells_what_details_ask_for(make_plan: MakePlan) -> None:
    moved = told(0.7, 0.3, True)
    assert step(make_plan({"steering": {"task": "good"}}), moved) == {
        "predicted_error": {"before": 0.7, "after": 0.3}, "steered": True, "trace": None,
    }  # fmt: skip
    assert step(make_plan({"steering": {"task": "good"}, "details": "none"}), moved) is None
    untouched = step(make_plan({"steering": {"task": "weak"}}), moved)
    assert untouched == {"predicted_error": {"before": 0.7, "after": 0.7}, "steered": False, "trace": None}
    trace = TokenTrace((0.1, 0.2), (0.3, 0.4), (0.0, 0.5))
    traced = step(make_plan({"steering": {"task": "good"}, "details": "trace"}), told(0.7, 0.3, True, trace))
    assert traced is not None
    assert traced["trace"] == {"before": (0.1, 0.2), "after": (0.3, 0.4), "shift": (0.0, 0.5)}
    assert step(make_plan(), told(None, None, False)) == {"predicted_error": None, "steered": False, "trace": None}
