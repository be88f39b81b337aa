"""The line of requests from their admission to their one answer: queue, slots, and what the engine does at the seam.

But for `_take` and `_cancel` all of it happens on the generation thread, at the seam (`merasteer.engine.batching`): before each batch
waiting requests get a free slot and cancelled ones leave; after each batch the report is added to the runs. Every accepted request ends
in exactly one answer: a result, a cancellation or an error.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from merasteer.engine.admission import end_tokens, point_of
from merasteer.engine.batching import SteeringManager, Step
from merasteer.engine.choice import points, settled
from merasteer.engine.config import EngineConfig
from merasteer.engine.loading import LoadedModel
from merasteer.engine.residents import Residents
from merasteer.engine.run import Run
from merasteer.engine.steer import Steering
from merasteer.engine.switching import Switching
from merasteer.engine.tables import resume_position, untouched
from merasteer.errors import EngineFailed, MeraError, NonFinite
from merasteer.types import FinishReason, Generation, GenerationRequest, Tokens

__all__ = ["STOPPED", "GroupStopped", "Line"]

STOPPED = "engine: it was stopped before the request was answered; send it again"


class GroupStopped(Exception):
    """The loop ended because another rank of its group did."""


class Line:
    """The runs of one engine, waiting or in the batch: a `Sink` of the seam."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        self.loaded, self.config = loaded, config
        self.failure: BaseException | None = None
        self._steering = Steering(loaded.model, loaded.layers, loaded.width, config)
        self._residents = Residents(self._steering.tables, loaded.architecture)
        self._runs: dict[str, Run] = {}
        self._waiting: deque[Run] = deque()
        self._cancelled: deque[Run] = deque()
        self._slots = list(range(config.max_requests, 0, -1))
        self._lock = threading.Lock()
        self._held = self._forget = False
        self._switching = Switching()
        self._manager: SteeringManager | None = None
        self._eos = end_tokens(loaded)
        self._graphs = config.cuda_graphs and loaded.model.device.type == "cuda"

    @property
    def leads(self) -> bool:
        """Whether requests are sent to this process: always, but for the ranks behind the first of a tensor-parallel group."""
        return self._manager is None or self._manager.is_tp_driver

    def _write_if_stopped(self) -> None:
        if self._manager is None:  # otherwise the generation thread does, before the next pass
            self._residents.write()

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
            name = f"{run.id}.{len(run.points)}"
            point = run.points[path] = Run(name, request, run.resident, None, frozenset(), reach=run.reach)
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
        carried = (run.id, run.slot, request, run.reach, None if run.resident is None else run.resident.number)
        prompt = [*request.prompt, *(() if request.choice is None else request.choice.path)]
        if not manager.hand_over(run.id, prompt, request.budget, sorted(run.eos), carried):
            told = "engine: the batch takes no more requests; restart the server"
            self._fail(run, EngineFailed(STOPPED if self._manager is None else told))

    def _seat(self, run: Run, slot: int) -> None:
        """Writes a run's rows."""
        run.slot, run.seated_at = slot, time.perf_counter()
        self._steering.slots.assign(slot, run.request)
        self._steering.rope.assign(slot, len(run.request.prompt), run.reach)
        if run.resident is not None and run.request.policy is not None:
            self._steering.tables[run.resident.hook_point].assign(slot, run.resident.row, run.request.policy)

    def on_admitted(self, carried: tuple[str, int, GenerationRequest, int, int | None]) -> None:
        """A request is about to be scheduled. On the rank that leads it is known; the others learn of it here."""
        run_id, slot, request, reach, number = carried
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
            run = Run(run_id, request, resident, None, self._eos, reach=reach)
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
            self._steering.switches = self._switching.of(runs, decoding=decoding)
        return [run.slot for run in runs]

    def _known(self, request_id: str) -> Run:
        run = self._runs.get(request_id)
        if run is None:
            raise EngineFailed(
                f"engine: request {request_id} is not known here; with several ranks, register the same vectors on each before it is sent"
            )
        return run

    def untouched(self, request_id: str, window: int | None) -> int:
        """Tokens at the beginning of a request that may be shared. None of one that has ended, or may have `window` keys or more."""
        run = self._runs.get(request_id)
        if run is None or (window is not None and run.reach >= window):
            return 0
        if not self._steering.rope.shares(len(run.request.prompt)):
            return 0
        return untouched(run.request)

    def named(self, request_id: str, tokens: list[int]) -> list[int]:
        """A request's tokens as sharing is to know them: the same only where keys and values are."""
        run = self._runs.get(request_id)
        return tokens if run is None else self._steering.rope.named(tokens, run.reach)

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
                self._answer(run, "length")

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
            self.on_fatal(GroupStopped("another rank of the group has stopped"))

    # ------------------------------------------------------------------------------------- answering

    def _answer(self, run: Run, reason: FinishReason) -> None:
        """Answers a run with what it has. One answer that fails must not take the others along."""
        try:
            answer: Generation | MeraError = run.result(reason)
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
