"""The engine: admission, slots and answers around the library's continuous batch. It serves HTTP and runs the offline pipeline.

`submit` may be called from any thread and never blocks. Everything else that changes state happens on the generation thread, at the
seam (`merasteer.engine.batching`): before each batch waiting requests get a free slot and cancelled ones leave; after each batch the
report is added to the runs. Every accepted request ends in exactly one answer: a result, a cancellation or an error.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any

from merasteer.engine.admission import check, each, end_tokens, numbered, point_of
from merasteer.engine.batching import SteeringManager, Step
from merasteer.engine.choice import points, settled
from merasteer.engine.config import EngineConfig
from merasteer.engine.loading import LoadedModel
from merasteer.engine.packing import can_pack, packed, warm_up
from merasteer.engine.residents import Residents
from merasteer.engine.run import Run
from merasteer.engine.steer import Steering, Switches
from merasteer.engine.tables import OPEN, resume_position, untouched
from merasteer.engine.text import TextStream, continuation, encode
from merasteer.errors import EngineFailed, MeraError, NonFinite, Overloaded
from merasteer.types import (
    FinishReason,
    GeneratedToken,
    Generation,
    GenerationRequest,
    HookPoint,
    SteeringVectors,
    Tokens,
)

__all__ = ["Engine", "EngineStats"]

STOPPED = "engine: it was stopped before the request was answered; send it again"


@dataclass(frozen=True)
class EngineStats:
    """A moment's load. running and waiting count requests; cache_used_ratio, in [0, 1], is what running requests hold."""

    running: int
    waiting: int
    cache_used_ratio: float


class Engine:
    """One model in one continuous batch, one policy per request. A context manager; `start` and `stop` do the same."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig | None = None) -> None:
        self.loaded, self.config = loaded, config or EngineConfig()
        self.failure: BaseException | None = None
        self._steering = Steering(loaded.model, loaded.layers, loaded.width, self.config)
        self._residents = Residents(self._steering.tables, loaded.architecture)
        self._runs: dict[str, Run] = {}
        self._waiting: deque[Run] = deque()
        self._cancelled: deque[Run] = deque()
        self._slots = list(range(self.config.max_requests, 0, -1))
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._held = self._forget = False
        # The requests of the pass before, where their next tokens are acted on alike.
        self._decoding: list[Run] | None = None
        self._manager: SteeringManager | None = None
        self._stack = ExitStack()
        self._eos = end_tokens(loaded)
        self._graphs = self.config.cuda_graphs and loaded.model.device.type == "cuda"

    # ------------------------------------------------------------------------------------------- life

    def start(self) -> None:
        """Attaches the hooks and starts the generation thread. Raises SeamMissing or EngineFailed if it cannot run."""
        if self._manager is not None:
            raise EngineFailed("engine: it was started already; stop it first")
        self.failure = None
        with ExitStack() as stack:
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

    @property
    def leads(self) -> bool:
        """Whether requests are sent to this process: always, but for the ranks behind the first of a tensor-parallel group."""
        return self._manager is None or self._manager.is_tp_driver

    def follow(self) -> None:
        """On a rank that does not lead: blocks until the group stops. Every rank registers the same vectors and runs its engine.

        Raises EngineFailed if this rank's loop died.
        """
        if self._manager is not None:
            self._manager.wait()
        if self.failure is not None and not isinstance(self.failure, _GroupStopped):
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

    def _write_if_stopped(self) -> None:
        if self._manager is None:  # otherwise the generation thread does, before the next pass
            self._residents.write()

    # -------------------------------------------------------------------------------------- requests

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a prompt, special tokens added as the tokenizer does."""
        return encode(self.loaded.tokenizer, text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones kept."""
        return str(self.loaded.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def text_stream(self, prompt: Sequence[int], stop: Sequence[str]) -> TextStream:
        """Turns one request's tokens into text while they come; the caller's own, on any thread."""
        return TextStream(self.loaded.tokenizer, prompt, stop)

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
        # The text of a watched request is the one that the watcher's own stream joins to.
        streams = [
            self.text_stream(request.prompt, request.stop) if request.stop or watcher is not None else None
            for request, watcher in zip(requests, watchers, strict=True)
        ]
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

    def _take(self, run: Run) -> None:
        """Accepts a run. One whose label has later branching points waits until these have been asked about, the first one first.

        They share its prompt: the others find it computed.
        """
        self._residents.use(run.resident)
        self._runs[run.id] = run
        choice = run.request.choice
        paths = () if choice is None else points(choice)
        for path in paths:
            request = point_of(run.request, path)
            point = run.points[path] = Run(f"{run.id}.{len(run.points)}", request, run.resident, None, frozenset())
            self._residents.use(point.resident)
            self._runs[point.id] = point
            point.future.add_done_callback(partial(self._found, run, path))
        self._waiting.append(run.points[paths[0]] if paths else run)

    def _found(self, run: Run, path: Tokens, future: Future[Generation]) -> None:
        """A branching point has been evaluated, or could not be. On the generation thread, but for a cancellation."""
        if future.cancelled():
            if path in run.points:
                self._cancel(run.points[path], future)
        elif (error := future.exception()) is not None:
            self._cancelled.extend(run.points.values())
            self._fail(run, error if isinstance(error, MeraError) else EngineFailed(f"engine: {error}"))
        elif not run.answered and run.request.choice is not None:
            run.known[path] = run.points[path].options or ()
            with self._lock:
                if len(run.known) == len(run.points):
                    choice = replace(run.request.choice, settled=settled(run.request.choice, run.known))
                    run.request = replace(run.request, choice=choice)
                    self._waiting.appendleft(run)
                elif len(run.known) == 1:
                    self._waiting.extendleft(point for key, point in run.points.items() if key != path)

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
        return EngineStats(running, len(self._waiting), manager.cache_used_ratio if manager is not None else 0.0)

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

    def _cancel(self, run: Run, future: Future[Generation]) -> None:
        """Has a run whose future was cancelled leave the batch."""
        manager = self._manager
        if future.cancelled():
            self._cancelled.append(run)
            for point in run.points.values():
                point.future.cancel()
            if manager is not None:
                manager.wake()

    # -------------------------------------------------- at the seam, on the generation thread (Sink)

    def on_prepare(self) -> None:
        """Before a batch is prepared: cancelled requests leave, waiting ones get the free slots."""
        manager = self._manager
        if manager is None:
            return  # starting, or being stopped: `stop` answers what is left
        while self._cancelled:
            run = self._cancelled.popleft()
            if run.id not in self._runs:
                continue  # it ended before its cancellation was seen
            if run.slot:
                manager.cancel_request(run.id)  # the library drops it before it schedules the next batch
            elif run in self._waiting:
                self._waiting.remove(run)
            self._end(run)
        self._residents.write()
        if self._forget and manager.forget_prompts():
            self._forget = False
        while (next_run := self._next()) is not None:
            self._residents.write()  # the vectors it was sent under are there
            self._hand_over(*next_run, manager)
        if self._steering.rehook() and self._graphs:
            manager.forget_graphs()

    def _next(self) -> tuple[Run, int] | None:
        """The next waiting run and a slot for it. Both at once: `submit` counts those who wait and the slots that are free."""
        with self._lock:
            if self._held or not self._slots or not self._waiting:
                return None
            return self._waiting.popleft(), self._slots.pop()

    def _hand_over(self, run: Run, slot: int, manager: SteeringManager) -> None:
        if run.future.cancelled():
            self._slots.append(slot)
            return  # it ends by way of the cancellations
        request = run.request
        self._seat(run, slot)
        carried = (run.id, run.slot, request, None if run.resident is None else run.resident.number)
        prompt = [*request.prompt, *(() if request.choice is None else request.choice.path)]
        if not manager.hand_over(run.id, prompt, request.budget, sorted(run.eos), carried):
            told = "engine: the batch takes no more requests; restart the server"
            self._fail(run, EngineFailed(STOPPED if self._manager is None else told))

    def _seat(self, run: Run, slot: int) -> None:
        """Writes a run's rows."""
        run.slot, run.seated_at = slot, time.perf_counter()
        self._steering.slots.assign(slot, run.request)
        if run.resident is not None and run.request.policy is not None:
            self._steering.tables[run.resident.hook_point].assign(slot, run.resident.row, run.request.policy)

    def on_admitted(self, carried: tuple[str, int, GenerationRequest, int | None]) -> None:
        """A request is about to be scheduled. On the rank that leads it is known; the others learn of it here."""
        run_id, slot, request, number = carried
        if run_id in self._runs:
            return
        with self._lock:
            for run in [run for run in self._runs.values() if run.slot == slot]:
                self._free(run)  # cancelled by the rank that leads, which has given its slot to this one already
            resident = self._residents.of(request)
            if resident is not None and resident.number != number:
                raise EngineFailed(
                    "engine: the ranks hold different vectors; register the same, in the same order, on each"
                )
            run = Run(run_id, request, resident, None, self._eos)
            self._residents.use(resident)
            self._runs[run_id] = run
            self._seat(run, slot)

    def on_cancelled(self, request_id: str) -> None:
        """The library has dropped a request that was cancelled. The rank that leads knows; the others end it here."""
        run = self._runs.get(request_id)
        if run is not None and not self.leads:
            self._end(run)

    def on_batch(self, states: Sequence[Any], *, decoding: bool) -> list[int]:
        """The slots of a batch. A request that the library restarted has another state: its positions count on from before."""
        runs = [self._known(state.request_id) for state in states]
        for run, state in zip(runs, states, strict=True):
            if run.state is not state:
                if run.state is not None and run.request.policy is not None:
                    self._steering.slots.counted[run.slot] = resume_position(run.request, round(run.counts[0]))
                if run.state is not None and run.label is None:
                    # An answer that was not delivered may have used it up.
                    self._steering.slots.give_bias(run.slot, run.request)
                run.started_at = run.started_at or state.lifespan[0]
                run.state = state
        if not self._graphs:
            self._switch(runs, decoding)
        return [run.slot for run in runs]

    def _known(self, request_id: str) -> Run:
        run = self._runs.get(request_id)
        if run is None:
            raise EngineFailed(
                f"engine: request {request_id} is not known here; with several ranks, register the same vectors on each before it is sent"
            )
        return run

    def _switch(self, runs: list[Run], decoding: bool) -> None:
        """Turns on what the requests of the next pass need; nothing has to be found out again about the same requests."""
        if decoding and runs == self._decoding:
            self._steering.switches = replace(self._steering.switches, steady=True)
            return
        self._steering.switches = _switches(runs)
        # Which tokens a policy acts on may change from token to token unless it acts on all that is generated.
        steady = decoding and all(
            run.request.policy is None or (run.request.policy.positions in OPEN and not run.acting) for run in runs
        )
        self._decoding = runs if steady else None

    def untouched(self, request_id: str) -> int:
        """Tokens at the beginning of a request that may be shared. None of a request that has ended."""
        run = self._runs.get(request_id)
        return 0 if run is None else untouched(run.request)

    def on_step(self, step: Step) -> None:
        """Adds a step to the runs whose token was delivered, and tells who watches; answers those that a stop string ended."""
        for part in step.delivered:
            run = self._runs.get(part.request_id)
            if run is None or run.answered:
                continue
            try:
                run.take(part, step)
            except Exception as error:  # noqa: BLE001, a watcher's or a tokenizer's fault must not take the others along
                self._cancelled.append(run)
                told = f"engine: a token could not be delivered ({type(error).__name__}: {error}); send it again"
                self._resolve(run, error if isinstance(error, NonFinite) else EngineFailed(told))
                continue
            if run.stopped or (run.labelled and len(run.tokens) < run.request.budget):
                self._cancelled.append(run)  # leaves the batch before the next one; its answer is complete
                self._answer(run, "stop_sequence" if run.stopped else "length")

    def on_finished(self, request_id: str) -> None:
        """The library is done with a request: its slot is free and its answer goes out."""
        run = self._runs.get(request_id)
        if run is not None:
            self._end(run)
            if self.leads:
                self._answer(run, run.finish_reason())

    def on_failed(self, request_id: str, error: str) -> None:
        """The library gave a request up."""
        run = self._runs.get(request_id)
        if run is not None:
            told = STOPPED if self._manager is None else f"engine: the batch failed ({error}); send the request again"
            self._fail(run, EngineFailed(told))

    def on_fatal(self, error: BaseException) -> None:
        """The loop is dying: every request is answered at once."""
        with self._lock:  # a submit either is among the runs that fail now, or sees the failure
            self.failure = error
        self._fail_all(
            EngineFailed(f"engine: the generation loop died ({type(error).__name__}: {error}); restart the server")
        )

    def on_ended(self) -> None:
        """The loop has ended. If nobody here asked for it, another rank has stopped or died."""
        if self._manager is not None and self.failure is None:
            self.on_fatal(_GroupStopped("another rank of the group has stopped"))

    # ------------------------------------------------------------------------------------- answering

    def _answer(self, run: Run, reason: FinishReason) -> None:
        """Answers a run with what it has. One answer that fails must not take the others along."""
        try:
            stream, request = run.stream, run.request
            text = continuation(self.loaded.tokenizer, request.prompt, run.tokens) if stream is None else stream.text
            # A stop string can end in a character that only the end of the answer completes.
            stopped = stream is not None and stream.stopped
            answer: Generation | MeraError = run.result("stop_sequence" if stopped else reason, text)
        except Exception as error:  # noqa: BLE001
            answer = EngineFailed(
                f"engine: the answer could not be made ({type(error).__name__}: {error}); send it again"
            )
        self._resolve(run, answer)

    def _resolve(self, run: Run, answer: Generation | MeraError) -> None:
        """The run's one answer. It may have been cancelled, and it may have been answered."""
        if not run.answered and run.future.set_running_or_notify_cancel():
            if isinstance(answer, Generation):
                run.future.set_result(answer)
            else:
                run.future.set_exception(answer)
        run.answered = True

    def _fail(self, run: Run, error: MeraError) -> None:
        self._end(run)
        self._resolve(run, error)

    def _fail_all(self, error: MeraError) -> None:
        self._waiting.clear()
        for run in list(self._runs.values()):
            self._fail(run, error)

    def _end(self, run: Run) -> None:
        """Frees a run's slot and row. A batch still in flight writes to the slot before the next owner does, in stream order."""
        with self._lock:
            if run.id in self._runs:
                self._free(run)

    def _free(self, run: Run) -> None:
        del self._runs[run.id]
        if run.slot:
            self._steering.slots.clear(run.slot)
            for table in self._steering.tables.values():
                table.clear(run.slot)
            if self.leads:
                self._slots.append(run.slot)
        self._residents.leave(run.resident)
        self._write_if_stopped()


class _GroupStopped(Exception):
    """The loop ended because another rank of its group did."""


def _switches(runs: Sequence[Run]) -> Switches:
    requests = [run.request for run in runs]
    rows: dict[HookPoint, set[int]] = {}
    for run in runs:
        if run.resident is not None:
            rows.setdefault(run.resident.hook_point, set()).add(run.resident.row)
    return Switches(
        rows={point: tuple(sorted(used)) for point, used in rows.items()},
        strength=any(request.policy is not None and request.policy.strength != 0.0 for request in requests),
        sampling=any(
            not request.sampling.greedy and (request.choice is None or request.max_new_tokens is not None)
            for request in requests
        ),
        choice=any(run.request.choice is not None and not run.tokens for run in runs),
        points=any(request.choice is not None and bool(request.choice.path) for request in requests),
        forced=any(request.choice is not None for request in requests),
        classes=any(request.variants is not None for request in requests),
        bias=any(request.label_bias is not None and request.choice is None for request in requests),
        logprobs=any(request.logprobs for request in requests),
        trace=any(request.trace for request in requests),
    )
