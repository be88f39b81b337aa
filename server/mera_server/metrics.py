"""The Prometheus metrics of one app, in its own registry: several apps in one process never meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from importlib.metadata import version
from itertools import pairwise

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from mera_server.catalog import Catalog, Probe
from mera_server.replies import MeraReply
from merasteer.errors import Cancelled, NonFinite
from merasteer.types import Generation

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PROBE = ("task", "probe", "certified", "alpha", "caution")
_MODEL = ("model", "architecture", "dtype", "attention", "device", "version")
_PROMPT = (8.0, 32.0, 128.0, 512.0, 2048.0, 8192.0, 32768.0, 131072.0)
_GENERATED = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)
_SHARES = tuple(tenth / 10 for tenth in range(1, 11))


class Metrics:
    """Everything that `/metrics` shows. Methods are called from the event loop only."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def histogram(
            name: str, about: str, labels: tuple[str, ...] = (), buckets: tuple[float, ...] = _SECONDS
        ) -> Histogram:
            return Histogram(name, about, labels, registry=registry, buckets=buckets)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=registry)

        self._requests = counter("mera_requests_total", "Answers on inference routes.", "route", "status")
        self._decisions = counter(
            "mera_decisions_total", "What was decided for each answer.", "task", "decision", "reason"
        )
        self._steered = counter("mera_steered_tokens_total", "Positions at which some layer was moved.", "task")
        self._tokens = counter("mera_tokens_total", "Tokens read and generated.", "kind")
        self._error = histogram("mera_predicted_error", "The probe's predicted error.", ("task", "when"), _SHARES)
        self._duration = histogram(
            "mera_request_duration_seconds", "From the request's first byte to the answer's last.", ("outcome",)
        )
        self._prompts = histogram("mera_prompt_tokens", "Tokens of a prompt.", buckets=_PROMPT)
        self._lengths = histogram("mera_generated_tokens", "Tokens of an answer.", buckets=_GENERATED)
        self._finished = counter("mera_finished_total", "Why answers ended.", "reason")
        self._shared = counter("mera_prefix_cache_hit_tokens_total", "Prompt tokens that others had computed already.")
        self._shared_so_far: Callable[[], float] = lambda: 0.0
        self._shared_told = 0.0
        self._first = histogram("mera_time_to_first_token_seconds", "From submission to the first token.")
        self._between = histogram("mera_inter_token_seconds", "Between two tokens of one answer.")
        self._queue = histogram("mera_queue_seconds", "From submission to the first forward pass.")
        self._running = Gauge("mera_requests_running", "Requests in the batch.", registry=registry)
        self._waiting = Gauge("mera_requests_waiting", "Requests queued behind the batch.", registry=registry)
        self._cache = Gauge(
            "mera_cache_used_ratio", "Share of the KV cache that running requests hold.", registry=registry
        )
        self._probe = Gauge("mera_probe_info", "The artifacts that are served.", _PROBE, registry=registry)
        self._rejected = Gauge("mera_probes_rejected", "Artifacts in the stores that are refused.", registry=registry)
        self._calibration = Gauge(
            "mera_calibration_predicted_error",
            "Mean predicted error over the calibration rows of the default artifact.",
            ("task",),
            registry=registry,
        )
        self._bound = Gauge(
            "mera_certified_gain_lower_bound",
            "Gain of accuracy that the default artifact's certificate guarantees here.",
            ("task",),
            registry=registry,
        )
        self._non_finite = counter("mera_non_finite_total", "Generations that failed because a number was not finite.")
        self._model = Gauge("mera_model_info", "The model that is served.", _MODEL, registry=registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """One answer on an inference route, errors included."""
        self._requests.labels(route, str(status)).inc()
        self._duration.labels(_outcome(status)).observe(seconds)

    def generation(self, generation: Generation, mera: MeraReply) -> None:
        """One generation that was answered with `mera`."""
        task = mera.task or ""
        self._decisions.labels(task, mera.decision, mera.reason or "").inc()
        self._steered.labels(task).inc(mera.steering.steered_tokens)
        self._tokens.labels("prompt").inc(generation.prompt_tokens)
        self._tokens.labels("generated").inc(len(generation.tokens))
        self._prompts.observe(generation.prompt_tokens)
        self._lengths.observe(len(generation.tokens))
        self._finished.labels(generation.finish_reason).inc()
        if mera.predicted_error is not None:
            self._error.labels(task, "before").observe(mera.predicted_error.before)
            self._error.labels(task, "after").observe(mera.predicted_error.after)
        times = generation.token_times
        self._queue.observe(max(0.0, generation.started_at - generation.queued_at))
        if times:
            self._first.observe(max(0.0, times[0] - generation.queued_at))
        for earlier, later in pairwise(times):
            self._between.observe(later - earlier)

    def ended(self, future: Future[Generation]) -> None:
        """A generation has ended, in whatever way. Any thread."""
        if not future.cancelled() and isinstance(future.exception(), NonFinite):
            self._non_finite.inc()

    def watch(
        self,
        running: Callable[[], float],
        waiting: Callable[[], float],
        cache: Callable[[], float],
        shared: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """What is read from the engine at each scrape: gauges, and the shared tokens so far."""
        self._shared_so_far = shared
        self._running.set_function(running)
        self._waiting.set_function(waiting)
        self._cache.set_function(cache)

    def model(self, facts: Mapping[str, str]) -> None:
        self._model.labels(**facts, version=version("mera-server")).set(1)

    def catalog(self, catalog: Catalog) -> None:
        """What is served from now on. From the thread that read it; a scrape meanwhile may see an artifact that has just left."""
        probes, latest = catalog.probes.values(), catalog.latest.items()
        bounds = {(task,): p.certificate.lower_bound for task, p in latest if p.guaranteed}
        errors = {(task,): p.calibration_error for task, p in latest}
        _show(self._probe, {_facts(probe): 1.0 for probe in probes})
        _show(self._bound, {labels: bound for labels, bound in bounds.items() if bound is not None})
        _show(self._calibration, {labels: error for labels, error in errors.items() if error is not None})
        self._rejected.set(sum(entry.status == "rejected" for entry in catalog.entries))

    def text(self) -> bytes:
        """The plain text exposition."""
        shared = self._shared_so_far()
        self._shared.inc(max(0.0, shared - self._shared_told))
        self._shared_told = shared
        return generate_latest(self.registry)


def _outcome(status: int) -> str:
    """In which of the histograms of durations a request is: refusals are quick, and would make answers look so."""
    if status < 400:
        return "answered"
    return "failed" if status >= 500 else "cancelled" if status == Cancelled.status else "refused"


def _facts(probe: Probe) -> tuple[str, ...]:
    alpha = "" if probe.alpha is None else f"{probe.alpha:.6g}"
    return probe.task.name, probe.digest, str(probe.guaranteed).lower(), alpha, probe.caution or ""


def _show(gauge: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
    """The gauge's samples from now on: those that left are gone, not 0."""
    for labels, value in values.items():
        gauge.labels(*labels).set(value)
    stale = {
        tuple(sample.labels[name] for name in gauge._labelnames) for one in gauge.collect() for sample in one.samples
    }
    for labels in stale - values.keys():
        gauge.remove(*labels)
