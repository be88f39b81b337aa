"""The seam with transformers' continuous batching (docs/seams.md): with attention, scheduling and sharing all that knows its internals.

What is added to the library, and where:
  rows      two int32 rows ride in its bulk input tensor: the slot of every request in batch order, and the slots of the requests
            that get a new token, in the order of the score rows. So async batching and captured graphs see them.
  prepare   before each batch is prepared the engine hands over waiting requests and cancellations.
  finish    the logits list ends each step: labels, sampling, counts (`Steering.finish`).
  update    before the library applies a step's tokens the report is read; only delivered tokens reach the engine.
  carry     what belongs to a request (its slot and what it asks for) travels with it to every rank of a tensor-parallel group.
  share     the library shares cache blocks by their tokens alone; here only those whose keys and values no policy touches.
If a part is missing in the installed version, `check_seams` fails at start-up and names it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import model_runner
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter
from transformers.generation.continuous_batching.requests import RequestStatus
from transformers.generation.continuous_batching.utils import (
    CudaGraphBuffer,
    find_head_dim,
    find_num_key_value_heads,
    stream_context,
)

from merasteer.engine.attention import PER_REQUEST, applies, take_over
from merasteer.engine.config import EngineConfig
from merasteer.engine.scheduling import FAIR
from merasteer.engine.seams import check_seams, taken
from merasteer.engine.sharing import share_untouched
from merasteer.engine.steer import Steering

__all__ = ["Delivered", "Sink", "SteeringManager", "Step", "cache_bytes_per_token"]

ROWS = 2
CARRIED = "mera"  # the name under which the library carries what belongs to a request, to every rank


@dataclass(frozen=True)
class Delivered:
    """One request's part of a step. row: its counts (batch order). read: its reads, or None while its prompt is prefilled in chunks."""

    request_id: str
    row: int
    read: int | None
    token: int | None


@dataclass(frozen=True, eq=False)
class Step:
    """What one forward pass left behind, on the host. report (R, columns of `Steering.report`); trace, options, captured by read row."""

    delivered: tuple[Delivered, ...]
    report: torch.Tensor
    trace: torch.Tensor | None
    options: torch.Tensor | None
    captured: dict[Any, torch.Tensor]


class Sink(Protocol):
    """What the engine does at the seam; every call comes from the generation thread."""

    def on_prepare(self) -> None: ...

    def on_admitted(self, carried: Any) -> None:
        """What `SteeringManager.carry` sent along with a request, on every rank of a group, before anything else asks for it."""

    def on_cancelled(self, request_id: str) -> None:
        """On every rank: the library has dropped a cancelled request."""

    def on_batch(self, states: Sequence[Any], *, decoding: bool) -> list[int]:
        """The slots of the requests of a batch, in order; decoding: each has one token and gets another.

        An unknown request is our own bug and raises.
        """

    def untouched(self, request_id: str, window: int | None) -> int:
        """How many of a request's first tokens may be shared with others; 0 if it is unknown, or if it may have `window` keys or more."""

    def named(self, request_id: str, tokens: list[int]) -> list[int]:
        """A request's tokens as sharing is to know them: the same only where keys and values are, other numbers elsewhere."""

    def on_step(self, step: Step) -> None: ...

    def on_finished(self, request_id: str) -> None: ...

    def on_failed(self, request_id: str, error: str) -> None: ...

    def on_fatal(self, error: BaseException) -> None: ...

    def on_ended(self) -> None:
        """The loop has ended, whoever asked for it."""


class _Rows(ContinuousBatchingLogitsProcessorList):
    """The library's logits list with two more rows, always processed."""

    def __init__(self, inner: ContinuousBatchingLogitsProcessorList, steering: Steering, sink: Sink) -> None:
        self.__dict__.update(inner.__dict__)
        self.tensors_required += ROWS
        self.do_processing = True
        self._steering, self._sink = steering, sink

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Called by the library for each new request, on every rank, with what was sent along."""
        self._sink.on_admitted(kwargs[CARRIED])

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        super().fill_defaults(int32_tensor[:-ROWS])
        int32_tensor[-ROWS:].zero_()

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        super().prepare_tensor_args(requests_in_batch, arg_storage[:-ROWS])
        decoding = all(future.has_new_token and future.query_length == 1 for future in requests_in_batch)
        slots = self._sink.on_batch([future.state for future in requests_in_batch], decoding=decoding)
        new = [slot for slot, future in zip(slots, requests_in_batch, strict=True) if future.has_new_token]
        arg_storage[-ROWS:].zero_()  # the library resets only its own rows
        arg_storage[-2, : len(slots)] = torch.tensor(slots, dtype=torch.int32)
        arg_storage[-1, : len(new)] = torch.tensor(new, dtype=torch.int32)
        return arg_storage

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, logits_processor_args: torch.Tensor
    ) -> torch.Tensor:
        scores = super().__call__(input_ids, scores, logits_processor_args[:-ROWS])
        return self._steering.finish(scores)


class _Router(OutputRouter):
    """Failures go to the sink; results do not pass here (the sink reads each step)."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def deliver(self, output: Any) -> None:
        if output.status == RequestStatus.FAILED:
            self._sink.on_failed(output.request_id, output.error or "the batch failed")

    def deliver_batch(self, outputs: list[Any]) -> None:
        for output in outputs:
            self.deliver(output)


class SteeringManager(ContinuousBatchingManager):
    """The library's manager with steering in its batch. Start it inside `Steering.attached()`."""

    def __init__(self, model: Any, steering: Steering, sink: Sink, config: EngineConfig) -> None:
        check_seams()
        generation = GenerationConfig(do_sample=False, max_new_tokens=1, pad_token_id=0, eos_token_id=-1)
        super().__init__(model, generation, _batching_config(config, on_gpu=model.device.type == "cuda"))
        if applies(model):  # after the library's own check of the names it knows
            model.set_attn_implementation(PER_REQUEST)
        self.logit_processor: Any = _Rows(self.logit_processor, steering, sink)
        self.output_router = _Router(sink)
        self.capacity = 0  # the longest request that fits the cache alone, once `ready` is set
        self.ready = threading.Event()
        self._steering, self._sink = steering, sink
        self._reports: deque[_HostCopy] = deque()
        self._shared = 0

    def start(self) -> None:
        """Starts the generation thread; a daemon, so that a crash of the main thread never hangs the process."""
        self.background_thread_status.clear()
        self._generation_thread = threading.Thread(target=self._run_generation_loop, name="mera-engine", daemon=True)
        self._generation_thread.start()

    def _run_generation_loop(self) -> None:
        # Table rows are written by other threads too: no tensor of the loop's may be one of inference mode.
        loop = super()._run_generation_loop
        loop(**taken(loop, use_inference_mode=False))
        self._sink.on_ended()

    def hand_over(self, request_id: str, prompt: list[int], new: int, eos: list[int], carried: Any) -> bool:
        """Gives a request to the library; False if it takes none any more. What is carried goes to every rank with it."""
        eos_token_id = eos or -1
        return self.add_request(prompt, request_id, new, eos_token_id=eos_token_id, **{CARRIED: carried}) is not None

    def wait(self) -> None:
        """Blocks until the generation loop has ended."""
        thread = self._generation_thread
        if thread is not None:
            thread.join()

    def join(self, stop_trigger_time: float, timeout: float | None = None) -> None:
        """Blocks until the thread that was told to stop has; woken, an idle loop notices at once."""
        self.wake()
        super().join(stop_trigger_time, timeout)

    def wake(self) -> None:
        """Makes an idle loop look for work at once."""
        self._wake_up_loop.set()

    def forget_graphs(self) -> None:
        """Drops what was captured before the hooks changed; each size is captured again when it comes next."""
        processor = self.batch_processor
        if processor is None:
            return
        torch.cuda.synchronize(self.model.device)
        outer = processor.inputs_and_outputs
        for io in [pair.device_io for pair in getattr(outer, "io_pairs", ())] or [outer]:
            io.graphs = CudaGraphBuffer()

    def forget_prompts(self) -> bool:
        """Gives back what is kept for sharing, as the library does where it needs room; whether it could be done."""
        processor = self.batch_processor
        if processor is None:
            return False
        processor.cache.evict_cached_blocks()
        return True

    @property
    def shared_tokens(self) -> int:
        """How many prompt tokens have been taken from what others had computed, so far."""
        return self._shared

    def _tell_shared(self, tokens: int) -> None:
        self._shared += tokens

    @property
    def cache_used_ratio(self) -> float:
        """Part of the KV cache that requests hold. Blocks kept for sharing are given back when room is needed: they are free."""
        processor = self.batch_processor
        if processor is None:
            return 0.0
        paged = processor.cache
        free = paged.compute_free_capacity(relative=False)
        kept = sum(len(one.ledger.cached_blocks) * one.bytes_per_block for one in paged.cache_allocators.values())
        return max(0.0, 1.0 - float((free + kept) / (paged.num_sectors * paged.bytes_per_sector)))

    def _create_batch_processor(self) -> Any:
        processor = super()._create_batch_processor()
        prepare, update = processor.prepare_next_batch, processor.update_batch
        share_untouched(processor, self._sink, self._tell_shared)
        _tell_cancellations(processor.scheduler, self._sink)
        take_over(self.model, processor.cache)

        def prepare_next_batch() -> bool:
            with self._stream():
                self._sink.on_prepare()
                return bool(prepare())

        def update_batch() -> None:
            step = self._read_step(processor)
            update()
            scheduler = processor.scheduler
            with self._stream():
                self._sink.on_step(step)
                for part in step.delivered:
                    if (
                        part.request_id not in scheduler.active_requests
                        and part.request_id not in scheduler.waiting_requests
                    ):
                        self._sink.on_finished(part.request_id)

        processor.prepare_next_batch, processor.update_batch = prepare_next_batch, update_batch
        self.batch_processor = processor
        self.capacity = model_runner.infer_max_single_request_tokens(processor.cache)
        self.ready.set()
        return processor

    def _generation_step(self) -> None:
        super()._generation_step()
        with self._stream():
            self._reports.append(_HostCopy(self._steering))

    def _read_step(self, processor: Any) -> Step:
        """The report of the batch that is about to be applied, restricted to requests whose tokens the library will deliver."""
        futures, tokens, _ = processor.inputs_and_outputs.prepare_batch_update()
        copy = self._reports.popleft()
        delivered, read = [], 0
        for row, future in enumerate(futures):
            new = future.has_new_token
            # Finished or evicted between scheduling and here (async batching only): the token is overshoot and is dropped.
            if future.state.status not in (RequestStatus.FINISHED, RequestStatus.PENDING):
                delivered.append(
                    Delivered(future.state.request_id, row, read if new else None, tokens[read] if new else None)
                )
            read += new
        return Step(tuple(delivered), *copy.wait())

    def _handle_critical_error(self, error: Exception, batch_processor: Any) -> None:
        self._sink.on_fatal(error)
        self.ready.set()
        if self.distributed_helper.tp_size == 1:
            super()._handle_critical_error(error, batch_processor)
            return
        # The library would tell the other ranks, which wait for this one in the middle of a layer: neither would ever go on. They
        # fail as soon as this process exits, as it is to do now.
        self._fail_all_remaining_requests(error, batch_processor)
        self.background_thread_status.record_fatal_error(error)

    def _stream(self) -> Any:
        """The stream that the batch computes on, so that table writes and report copies keep its order."""
        processor = self.batch_processor
        stream = None if processor is None else processor.inputs_and_outputs.compute_stream
        return stream_context(stream)  # a no-op for None


class _HostCopy:
    """A step's report on its way to the host. On a CPU it is the buffer itself: it is read before the next step begins."""

    def __init__(self, steering: Steering) -> None:
        wanted: dict[Any, torch.Tensor | None] = {
            "report": steering.report,
            "trace": steering.trace if steering.switches.trace else None,
            "options": steering.head.options if steering.switches.points else None,
            **steering.captured,
        }
        self._event: torch.Event | None = None
        self._tensors: dict[Any, torch.Tensor] = {name: found for name, found in wanted.items() if found is not None}
        if steering.report.is_cuda:
            for name, tensor in self._tensors.items():
                self._tensors[name] = torch.empty(tensor.shape, pin_memory=True).copy_(tensor, non_blocking=True)
            self._event = torch.Event(steering.report.device)
            self._event.record()

    def wait(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, dict[Any, torch.Tensor]]:
        if self._event is not None:
            self._event.synchronize()
        found = dict(self._tensors)
        return found.pop("report"), found.pop("trace", None), found.pop("options", None), found


def _batching_config(config: EngineConfig, *, on_gpu: bool) -> ContinuousBatchingConfig:
    return ContinuousBatchingConfig(
        page_size=config.page_size,
        num_blocks=config.cache_tokens // config.page_size,
        max_batch_tokens=config.max_batch_tokens,
        max_requests_per_batch=config.max_requests,
        scheduler_type=FAIR,
        allow_block_sharing=config.share_prefixes,  # within the bounds of `sharing.share_untouched`
        use_cuda_graph=config.cuda_graphs and on_gpu,
        use_async_batching=config.async_batching and on_gpu,
        auto_switch_to_flash=False,
    )


def _tell_cancellations(scheduled: Any, sink: Sink) -> None:
    """Tells the sink of cancelled requests, and admits others behind them.

    After an eviction the library admits nobody until a request *finishes*. A cancellation frees cache too: without this, the evicted
    request and all behind it would wait for ever once the others have been cancelled.
    """
    clear = scheduled.clear_cancelled_requests

    def clear_cancelled_requests() -> Any:
        cancelled = clear()
        for state in cancelled:
            scheduled.block_new_requests = False
            sink.on_cancelled(state.request_id)
        return cancelled

    scheduled.clear_cancelled_requests = clear_cancelled_requests


def cache_bytes_per_token(model: Any) -> int:
    """What the keys and values of one token take over all layers."""
    config = model.config.get_text_config()
    width = find_num_key_value_heads(config) * find_head_dim(config)
    return int(2 * config.num_hidden_layers * width * model.dtype.itemsize)
