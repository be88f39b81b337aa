"""One request through the engine: plan, tokens, generation, answer. A caller who leaves takes the request along."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

from starlette.requests import Request

from mera_server.loading import Serving
from mera_server.replies import GenerateReply
from mera_server.report import brief, generate_reply, mera_object
from mera_server.resolve import Plan, plan
from mera_server.runtime import Runtime
from mera_server.schemas import GenerateBody
from merasteer.errors import Cancelled, InvalidInput
from merasteer.types import Generation, GenerationRequest

__all__ = ["answer", "engine_request"]

_SHORT = 8192  # characters that are tokenized on the event loop; longer prompts go to a thread


async def answer(runtime: Runtime, body: GenerateBody, request: Request) -> GenerateReply:
    """The answer to `body`. Raises what the plan or the engine raises, and Cancelled when the caller has left."""
    serving = runtime.serving()
    planned = plan(body, serving.catalog, runtime.limits)
    prompt = await _encode(serving, planned.prompt)
    generation = await _until_gone(_submit(serving, engine_request(planned, prompt)), request)
    mera = mera_object(planned, generation, serving.engine.decode)
    runtime.metrics.generation(generation, mera)
    shown = brief(mera) if body.details == "none" else mera
    return generate_reply(planned, generation, shown, serving.engine.decode, serving.special)


def engine_request(planned: Plan, prompt: tuple[int, ...]) -> GenerationRequest:
    """What the engine is asked for."""
    task = planned.task
    return GenerationRequest(
        prompt=prompt,
        max_new_tokens=planned.max_new_tokens,
        policy=planned.policy,
        sampling=planned.sampling,
        stop=planned.stop,
        variants=task.variants if task is not None else None,
        position=task.position if task is not None else "last",
        label_bias=planned.label_bias,
        logprobs=planned.tokens,
        trace=planned.trace and planned.policy is not None,
    )


def _submit(serving: Serving, request: GenerationRequest) -> Future[Generation]:
    """The engine's future. How long the prompt is, only its tokens tell: positions beyond it are refused by the engine."""
    try:
        return serving.engine.submit(request)
    except InvalidInput as error:
        if str(error).startswith("positions: "):
            raise InvalidInput(f"steering.{error}") from None
        raise


async def _encode(serving: Serving, text: str) -> tuple[int, ...]:
    if len(text) <= _SHORT:
        return serving.engine.encode(text)
    return await asyncio.to_thread(serving.engine.encode, text)


async def _until_gone(future: Future[Generation], request: Request) -> Generation:
    """The engine's answer. When the caller disconnects first, or this task is cancelled, the future is cancelled."""
    generation = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_disconnected(request))
    first: list[asyncio.Future[Any]] = [generation, gone]
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not generation.done():
            raise Cancelled("request: the caller left before the answer")
        return generation.result()
    finally:
        gone.cancel()
        generation.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
