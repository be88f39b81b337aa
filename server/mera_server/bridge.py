"""Plans through the engine: tokens, generation, report. A caller who leaves takes the requests along.

`complete` waits for whole generations; `mera_server.streaming` gives their tokens as they come. Both take any number of plans for one
HTTP request, so that several inputs or choices are one batch.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from mera_server.access import charge
from mera_server.loading import Serving
from mera_server.logs import current_request, fields
from mera_server.replies import BriefReply, GenerateReply, MeraReply
from mera_server.report import brief, generate_reply, mera_object
from mera_server.resolve import Plan, plan
from mera_server.runtime import Runtime
from mera_server.schemas import GenerateBody
from mera_server.tracing import note
from merasteer.errors import Cancelled, InvalidInput, MeraError, PromptTooLong
from merasteer.tasks import Prompter
from merasteer.types import GeneratedToken, Generation, GenerationRequest

__all__ = [
    "Finished",
    "Named",
    "answer",
    "complete",
    "disconnected",
    "encode",
    "engine_request",
    "finish",
    "native",
    "result_of",
    "submit",
]

content = logging.getLogger("mera.content")
_SHORT = 8192  # characters that are tokenized on the event loop; more go to a thread

Named = Callable[
    [int, MeraError], MeraError
]  # number of the plan, the engine's error -> that error in the body's own names
Watch = Callable[[int], Callable[[GeneratedToken], None]]


@dataclass(frozen=True, eq=False)
class Finished:
    """A plan, its generation, and what is told of it. The metrics have counted it."""

    plan: Plan
    generation: Generation
    mera: MeraReply

    @property
    def shown(self) -> MeraReply | BriefReply:
        """The `mera` object of the answer, as `details` asks."""
        return brief(self.mera) if self.plan.brief else self.mera


async def answer(runtime: Runtime, body: GenerateBody, request: Request) -> GenerateReply:
    """The answer to `body`. Raises what the plan or the engine raises, and Cancelled when the caller has left."""
    serving = runtime.serving()
    [found] = await complete(runtime, [plan(body, serving.catalog, runtime.limits)], request)
    return generate_reply(found.plan, found.generation, found.shown, serving.engine.decode, serving.special)


def native(_choice: int, error: MeraError) -> MeraError:
    """The engine's error in the names of `GenerateBody`: only a prompt's tokens tell which positions lie beyond it."""
    return InvalidInput(f"steering.{error}") if str(error).startswith("positions: ") else error


async def complete(
    runtime: Runtime,
    plans: Sequence[Plan],
    request: Request,
    named: Named = native,
    prompts: Sequence[tuple[int, ...]] | None = None,
) -> list[Finished]:
    """All plans as one batch, in order. The first error ends them all; Cancelled when the caller has left.

    prompts: their tokens, where these are not those of the plans' prompts.
    """
    serving, plans = runtime.serving(), await runtime.settle(plans)
    tokens = prompts or await encode(serving, plans)
    futures = submit(runtime, serving, request, plans, tokens, named)
    generations = await _until_gone(futures, request)
    return [finish(runtime, serving, *pair) for pair in zip(plans, generations, strict=True)]


def finish(runtime: Runtime, serving: Serving, planned: Plan, generation: Generation) -> Finished:
    """The report of one generation, counted in the metrics. Once for each."""
    mera = mera_object(planned, generation, serving.engine.decode)
    runtime.metrics.generation(generation, mera)
    runtime.room.answered(generation)
    note(mera, generation)
    if runtime.settings.log_content:
        content.info(
            "request_id=%s prompt=%s output=%s",
            *(json.dumps(current_request.get()), json.dumps(planned.prompt), json.dumps(generation.text)),
            extra=fields(
                message="generation",
                prompt=planned.prompt,
                output=generation.text,
                task=mera.task,
                decision=mera.decision,
            ),
        )
    return Finished(planned, generation, mera)


def engine_request(planned: Plan, prompt: tuple[int, ...]) -> GenerationRequest:
    """What the engine is asked for."""
    return planned.correction.request(
        planned.task,
        prompt,
        max_new_tokens=planned.max_new_tokens,
        sampling=planned.sampling,
        stop=planned.stop,
        logprobs=planned.tokens,
        trace=planned.trace,
        ignore_eos=planned.ignore_eos,
    )


async def encode(serving: Serving, plans: Sequence[Plan]) -> list[tuple[int, ...]]:
    """The tokens of each plan's prompt; equal prompts are encoded once."""
    texts = {(planned.prompt, planned.prompter) for planned in plans}

    def tokens() -> dict[tuple[str, Prompter | None], tuple[int, ...]]:
        return {(text, by): (serving.engine if by is None else by).encode(text) for text, by in texts}

    found = tokens() if sum(len(text) for text, _ in texts) <= _SHORT else await asyncio.to_thread(tokens)
    return [found[planned.prompt, planned.prompter] for planned in plans]


def submit(
    runtime: Runtime,
    serving: Serving,
    request: Request,
    plans: Sequence[Plan],
    prompts: Sequence[tuple[int, ...]],
    named: Named = native,
    watch: Watch | None = None,
) -> list[Future[Generation]]:
    """The engine's futures, all of them or none; the caller pays for what was taken. watch(i) is told of i's tokens.

    Raises PromptTooLong where this server takes only shorter prompts, and what the engine raises.
    """
    limit = runtime.limits.max_prompt_tokens
    for choice, prompt in enumerate(prompts):
        if limit is not None and len(prompt) > limit:
            raise named(
                choice, PromptTooLong(f"inputs: {len(prompt)} tokens, and this server takes {limit}; shorten it")
            )
    asked = [engine_request(*pair) for pair in zip(plans, prompts, strict=True)]
    watchers = None if watch is None else [watch(choice) for choice in range(len(plans))]
    futures = serving.engine.submit_all(asked, watchers, named)
    charge(request.scope, len(futures))
    for future in futures:
        future.add_done_callback(runtime.metrics.ended)
    return futures


async def _until_gone(futures: Sequence[Future[Generation]], request: Request) -> list[Generation]:
    """The engine's answers. When the caller disconnects first, or this task is cancelled, the futures are cancelled."""
    waiting = [asyncio.wrap_future(future) for future in futures]
    gone = asyncio.ensure_future(disconnected(request))
    found: list[Generation] = []
    try:
        for generation in waiting:
            first: list[asyncio.Future[Any]] = [generation, gone]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not generation.done():
                raise Cancelled("request: the caller left before the answer")
            found.append(result_of(generation))
        return found
    finally:
        gone.cancel()
        for generation in waiting:
            generation.cancel()  # one that has failed counts as seen: of a batch one error is told


def result_of(answered: Future[Generation] | asyncio.Future[Generation]) -> Generation:
    """The answer, or its error: a copy, since one that is raised holds the frames that it went through, and with them the plans."""
    if isinstance(error := answered.exception(), MeraError):
        raise type(error)(*error.args) from None
    return answered.result()


async def disconnected(request: Request) -> None:
    """Returns when the caller has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
