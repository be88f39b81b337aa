"""The engine: admission, slots and answers around the library's continuous batch. It serves HTTP and runs the offline pipeline.

`submit` may be called from any thread and never blocks. What becomes of a request from there to its one answer is `line.py`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from merasteer.engine.admission import check, each, numbered
from merasteer.engine.batching import SteeringManager
from merasteer.engine.config import EngineConfig
from merasteer.engine.exclusive import exclusive
from merasteer.engine.line import STOPPED, GroupStopped, Line
from merasteer.engine.loading import LoadedModel
from merasteer.engine.packing import can_pack, packed, warm_up
from merasteer.engine.run import Run
from merasteer.engine.text import Pieces, TextStream, encode
from merasteer.errors import EngineFailed, MeraError, Overloaded
from merasteer.types import (
    GeneratedToken,
    Generation,
    GenerationRequest,
    SteeringVectors,
)

__all__ = ["Engine", "EngineStats"]


@dataclass(frozen=True)
class EngineStats:
    """A moment's load. running and waiting count requests; cache_used_ratio, in [0, 1], is what running requests hold.

    shared_tokens: prompt tokens that were not computed again since the start, because equal beginnings are shared.
    """

    running: int
    waiting: int
    cache_used_ratio: float
    shared_tokens: int = 0


class Engine(Line):
    """One model in one continuous batch, one policy per request. A context manager; `start` and `stop` do the same."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig | None = None) -> None:
        super().__init__(loaded, config or EngineConfig())
        self._ids = itertools.count()
        self._pieces = Pieces(loaded.tokenizer)
        self._stack = ExitStack()

    # ------------------------------------------------------------------------------------------- life

    def start(self) -> None:
        """Attaches the hooks and starts the generation thread. Raises SeamMissing or EngineFailed if it cannot run."""
        if self._manager is not None:
            raise EngineFailed("engine: it was started already; stop it first")
        self.failure = None
        with ExitStack() as stack:
            stack.enter_context(exclusive(self.loaded.model))
            if self.config.pack_weights and can_pack(self.loaded.model):
                stack.enter_context(packed(self.loaded.model))
                if self.config.warm_up:
                    warm_up(self.loaded.model, self.config.max_batch_tokens, self.config.max_requests)
            stack.enter_context(self._steering.attached())
            stack.callback(self.loaded.model.set_attn_implementation, self.loaded.attention)
            manager = SteeringManager(self.loaded.model, self._steering, self, self.config)
            stack.callback(manager.stop, block=True, timeout=60, hard_stop=True)
            manager.start()
            manager.ready.wait()
            if self.failure is not None:
                raise EngineFailed(f"engine: the generation loop did not start ({self.failure})") from self.failure
            self._manager, self._stack = manager, stack.pop_all()

    def stop(self) -> None:
        """Stops the loop and takes the hooks out. Requests without an answer get EngineFailed."""
        with self._lock:
            manager, self._manager = self._manager, None
        if manager is not None:
            self._stack.close()
            self._fail_all(EngineFailed(STOPPED))
            with self._lock:
                self._residents.write()

    def follow(self) -> None:
        """On a rank that does not lead: blocks until the group stops. Every rank registers the same vectors and runs its engine.

        Raises EngineFailed if this rank's loop died.
        """
        if self._manager is not None:
            self._manager.wait()
        if self.failure is not None and not isinstance(self.failure, GroupStopped):
            raise EngineFailed(f"engine: the generation loop died ({self.failure})") from self.failure

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ------------------------------------------------------------------------------ steering vectors

    def register(self, key: str, vectors: SteeringVectors) -> None:
        """Makes steering vectors resident under a key. Raises InvalidInput if the key is taken or the vectors do not fit."""
        with self._lock:
            self._residents.register(key, vectors)
            self._write_if_stopped()

    def unregister(self, key: str) -> None:
        """Forgets a key at once; its row is freed when the last request that uses it has ended."""
        with self._lock:
            self._residents.unregister(key)
            self._write_if_stopped()

    # -------------------------------------------------------------------------------------- requests

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a prompt, special tokens added as the tokenizer does."""
        return encode(self.loaded.tokenizer, text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones kept."""
        return str(self.loaded.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def submit(
        self, request: GenerationRequest, on_token: Callable[[GeneratedToken], None] | None = None
    ) -> Future[Generation]:
        """Admits a request; the future gets its answer. As `submit_all` of one."""
        return self.submit_all([request], [on_token], lambda _, error: error)[0]

    def submit_all(
        self,
        requests: Sequence[GenerationRequest],
        watchers: Sequence[Callable[[GeneratedToken], None] | None] | None = None,
        named: Callable[[int, MeraError], MeraError] = numbered,
    ) -> list[Future[Generation]]:
        """Admits all of the requests or none; the futures get their answers. Cancelling one cancels its request. Never blocks.

        A call finds room as a whole: while fewer than `max_waiting` requests wait it is taken, with all that it brings.
        watchers: told of every token of their request, in order, on the generation thread: they must only hand it over. If one
        raises, its request fails. named(i, error): the error to raise for what is wrong with request i.
        Raises EmptyInputs, PromptTooLong, InvalidInput, Overloaded (the waiting queue is full) or EngineFailed.
        """
        if not self.leads:
            raise EngineFailed("engine: this rank follows another; send requests to rank 0")
        watchers = watchers or [None] * len(requests)
        each(requests, lambda request: check(request, self.loaded, self.max_tokens), named)
        streams = [TextStream(self._pieces, request.prompt, request.stop) for request in requests]
        with self._lock:
            manager = self._alive()
            self.check_room()
            residents = each(requests, self._residents.of, named)
            runs = [
                Run(f"r{next(self._ids)}", request, resident, stream, self._eos, watcher)
                for request, resident, stream, watcher in zip(requests, residents, streams, watchers, strict=True)
            ]
            for run in runs:
                self._take(run)
        for run in runs:
            run.future.add_done_callback(partial(self._cancel, run))
        manager.wake()
        return [run.future for run in runs]

    def check_room(self) -> None:
        """Raises Overloaded where a request would be refused now, so that no more work is put into it. A free slot is room."""
        limit = self.config.max_waiting
        if limit is not None and len(self._waiting) >= limit + len(self._slots):
            raise Overloaded(
                f"engine: {len(self._waiting)} requests are waiting and the limit is {limit}; try again later"
            )

    @contextmanager
    def held(self, *, afresh: bool = False) -> Iterator[None]:
        """Inside, requests are accepted and wait; behind it they all start, batched by their order alone.

        Float sums depend in the last bits on how rows are batched. Requests that trickle in are batched by the clock; offline, where
        equal inputs must give equal artifacts, all are there when the first batch is made. afresh: the prompts kept for sharing are
        forgotten first, so that the batches do not depend on what was asked before either. On one rank, with nothing running.
        """
        self._held, self._forget = True, afresh
        try:
            yield
        finally:
            self._held = False
            if self._manager is not None:
                self._manager.wake()

    def stats(self) -> EngineStats:
        """The load at this moment."""
        manager = self._manager
        running = self.config.max_requests - len(self._slots)
        held, shared = (0.0, 0) if manager is None else (manager.cache_used_ratio, manager.shared_tokens)
        return EngineStats(running, len(self._waiting), held, shared)

    @property
    def max_tokens(self) -> int:
        """The longest request (prompt and new tokens) that fits the model's context and the cache."""
        manager = self._manager
        capacity = manager.capacity if manager is not None else self.config.cache_tokens
        return min(self.loaded.context, capacity)

    def _alive(self) -> SteeringManager:
        if self._manager is None or self.failure is not None:
            raise EngineFailed(
                f"engine: it is not running ({self.failure or 'never started, or stopped'}); restart the server"
            )
        return self._manager
