"""The engine driven offline: thousands of requests at once, in an order and in batches that are the same every time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from merasteer.engine import Engine, EngineConfig, LoadedModel
from merasteer.engine.batching import cache_bytes_per_token
from merasteer.errors import NonFinite
from merasteer.pipeline.progress import Bar
from merasteer.tasks import Prompter
from merasteer.types import (
    UNCORRECTED,
    Correction,
    Example,
    Generation,
    GenerationRequest,
    HookPoint,
    ServedTask,
    SteeringVectors,
)

__all__ = ["Answers", "Prompts", "answers", "generations", "parts", "predicted_error", "running", "sizes"]

MAX_REQUESTS = 64
BATCH_TOKENS = 2048  # nobody waits for a token here: 421 prompts of 51 tokens a second, against 287 at the server's 512
PAGE = 8  # prompts are shared in whole pages; what is left over is computed again for every candidate
KEPT = 2  # prompts kept for sharing, per request that can run
CACHE_TOKENS = 32_768  # over all requests of a batch and the prompts kept; more only where one request needs more
CACHE_BYTES = (
    2**29
)  # nor more than this, but for the same exception; the prompts asked together are a few thousand tokens


@dataclass(frozen=True, eq=False)
class Prompts:
    """A task's items as token ids, and how they are asked."""

    task: ServedTask
    tokens: tuple[tuple[int, ...], ...]
    where: tuple[str, ...] = ()  # file and line of each, where they are known

    @classmethod
    def of(cls, prompter: Prompter, examples: Sequence[Example]) -> Prompts:
        """The items' prompts, as the server makes them."""
        tokens = tuple(prompter.tokens(example.prompt) for example in examples)
        return cls(prompter.task, tokens, tuple(example.where for example in examples))

    @property
    def new_tokens(self) -> int:
        """A label is chosen with its first token, as is an answer under `last`; what follows is of no use here."""
        free = self.task.choose == "free" and self.task.position == "exact"
        return self.task.max_new_tokens if free else 1

    @property
    def longest(self) -> int:
        """Tokens of the longest request."""
        label = 1 if self.task.choice is None else self.task.choice.longest
        return max(len(tokens) for tokens in self.tokens) + max(self.new_tokens, label)

    def some(self, rows: Sequence[int]) -> Prompts:
        """These items alone."""
        where = self.where or tuple(f"prompt {i + 1}" for i in range(len(self.tokens)))
        return Prompts(self.task, tuple(self.tokens[i] for i in rows), tuple(where[i] for i in rows))

    def requests(self, correction: Correction = UNCORRECTED) -> list[GenerationRequest]:
        """One request per item, all corrected alike."""
        return [self.request(i, correction) for i in range(len(self.tokens))]

    def request(self, item: int, correction: Correction) -> GenerationRequest:
        """One item, corrected."""
        return correction.request(self.task, self.tokens[item], max_new_tokens=self.new_tokens)


@dataclass(frozen=True, eq=False)
class Answers:
    """Of N items: label (N,), −1 where missing; probabilities (N, C) at the answer position."""

    label: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]

    @classmethod
    def of_labels(cls, label: npt.NDArray[np.int64], classes: int) -> Answers:
        """Answers of which no probability is known: NaN."""
        return cls(label, np.full((len(label), classes), np.nan))

    def correct(self, labels: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which items were answered with their label, (N,); a missing answer is wrong."""
        return np.asarray(self.label == np.asarray(labels), dtype=np.bool_)

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """log q (N, C): class scores up to a constant per item."""
        return np.log(np.maximum(self.probabilities, 1e-30))


def sizes(
    loaded: LoadedModel, longest: int, capture: Sequence[HookPoint] = (), vectors: Sequence[SteeringVectors] = ()
) -> EngineConfig:
    """What an engine for requests of up to `longest` tokens is given, that is to hold these vectors if any are named."""
    rows = Counter[HookPoint]()
    for one in vectors:
        rows[one.hook_point] += one.rows
    # Half of the cache is for the prompts kept (`generations`); the library wants a part free, below which it forgets them.
    wanted = 2 * KEPT * MAX_REQUESTS * (longest + PAGE)
    affordable = min(wanted, CACHE_TOKENS, CACHE_BYTES // cache_bytes_per_token(loaded.model))
    return EngineConfig(
        max_requests=MAX_REQUESTS,
        max_policies=max(rows.values(), default=EngineConfig.max_policies),
        max_batch_tokens=BATCH_TOKENS,
        cache_tokens=-(-max(affordable, longest + PAGE) // PAGE) * PAGE,
        page_size=PAGE,
        capture=tuple(capture),
    )


@contextmanager
def running(
    loaded: LoadedModel,
    longest: int,
    capture: Sequence[HookPoint] = (),
    vectors: Mapping[str, SteeringVectors] | None = None,
) -> Iterator[Engine]:
    """An engine sized for requests of up to `longest` tokens, with vectors registered by key."""
    held = vectors or {}
    with Engine(loaded, sizes(loaded, longest, capture, list(held.values()))) as engine:
        for key, one in held.items():
            engine.register(key, one)
        yield engine


def generations(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    bar: Bar,
    where: Sequence[str] = (),
    *,
    afresh: bool = False,
) -> Iterator[Generation]:
    """The answers in the order of the requests; each is let go of once it is taken (activations are large).

    where: of the prompts, which the requests go through in turn. afresh: see `Engine.held`. Raises NonFinite at the first that has no
    finite answer, naming it.
    """
    order = sharing_order(requests, engine.config.cache_tokens // 2)
    with engine.held(afresh=afresh):
        submitted = {i: engine.submit(requests[i]) for i in order}
    due = 0
    for i in order:
        if i in submitted:
            _awaited(submitted[i], _named(i, where))
        bar.advance()
        while due in submitted and submitted[due].done():
            yield _awaited(submitted.pop(due), _named(due, where))
            due += 1


def _named(i: int, where: Sequence[str]) -> str:
    """The row of request i."""
    return where[i % len(where)] if where else f"prompt {i + 1}"


def _awaited(answer: Future[Generation], where: str) -> Generation:
    try:
        return answer.result()
    except NonFinite as error:
        raise NonFinite(f"{where}: {error}") from None


def parts(prompts: Prompts, tokens: int, rows: int) -> Iterator[range]:
    """The items in pieces, each of up to `rows` items and closed once it has `tokens` tokens."""
    first = total = 0
    for i, prompt in enumerate(prompts.tokens):
        total += len(prompt)
        if total >= tokens or i + 1 - first >= rows or i + 1 == len(prompts.tokens):
            yield range(first, i + 1)
            first, total = i + 1, 0


def sharing_order(requests: Sequence[GenerationRequest], tokens: int) -> list[int]:
    """Indices of the requests, those with equal prompts near one another: groups of prompts of up to `tokens` tokens together.

    When the cache is full the library forgets all that it kept. So candidates that ask one after the other for every prompt would
    share nothing where the prompts do not fit together. Inside a group the order stays, and one group is the order as it was.
    """
    group: dict[tuple[int, ...], int] = {}
    total = 0
    for request in requests:
        if request.prompt not in group:
            total += len(request.prompt)
            group[request.prompt] = total // tokens
    return sorted(range(len(requests)), key=lambda i: group[requests[i].prompt])


def answers(engine: Engine, requests: Sequence[GenerationRequest], bar: Bar, where: Sequence[str] = ()) -> Answers:
    """Labels and class probabilities in the order of the requests. where: see `generations`."""
    found = [generation.answer for generation in generations(engine, requests, bar, where)]
    label = [-1 if answer is None or answer.label is None else answer.label for answer in found]
    probabilities = [answer.probabilities for answer in found if answer is not None]
    return Answers(np.asarray(label, dtype=np.int64), np.asarray(probabilities, dtype=np.float64))


def predicted_error(engine: Engine, requests: Sequence[GenerationRequest], bar: Bar) -> dict[str, float | int] | None:
    """{"mean", "n"} of the predicted error before the step over the requests that are read; None where none is."""
    read = [
        found.predicted_error.before
        for found in generations(engine, requests, bar)
        if found.predicted_error is not None
    ]
    return {"mean": fmean(read), "n": len(read)} if read else None
