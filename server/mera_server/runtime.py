"""The life of what answers requests: loading in the background, ready, failed, stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from mera_server.metrics import Metrics
from mera_server.resolve import Limits
from mera_server.settings import Settings
from merasteer.errors import EngineFailed, NotReady

if TYPE_CHECKING:
    from mera_server.loading import Serving

__all__ = ["Loader", "Runtime"]

Loader = Callable[[Settings], "Serving"]
log = logging.getLogger("mera.runtime")


class Runtime:
    """Holds what is served, once it is there. `on_failure` is called with the error if loading fails."""

    def __init__(
        self, settings: Settings, loader: Loader, on_failure: Callable[[BaseException], None] | None = None
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.limits = Limits(settings.steering == "on", settings.default_task, settings.max_new_tokens_limit)
        self.failure: BaseException | None = None
        self._loader, self._on_failure = loader, on_failure
        self._serving: Serving | None = None
        self._stopped = self._told = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Loads in a daemon thread: an interrupted start does not wait for a large model."""
        threading.Thread(target=self._load, name="mera-loading", daemon=True).start()

    def stop(self) -> None:
        """Stops the engine. Blocks until its loop has ended."""
        with self._lock:
            self._stopped = True
            serving, self._serving = self._serving, None
        if serving is not None:
            serving.engine.stop()

    def serving(self) -> Serving:
        """What answers requests. Raises NotReady while loading, EngineFailed once the loop has died."""
        serving = self._serving
        if self.failure is not None:
            raise EngineFailed("server: the model could not be loaded; see the log and start it again")
        if serving is None:
            raise NotReady("server: the model is loading or the server is stopping; ask /health/ready and try again")
        if serving.engine.failure is not None:
            self._tell_once(serving.engine.failure)
            raise EngineFailed("engine: the generation loop died; see the log and restart the server")
        return serving

    def _tell_once(self, failure: BaseException) -> None:
        if not self._told:
            self._told = True
            log.error("the generation loop died: %s: %s", type(failure).__name__, failure)

    def _load(self) -> None:
        try:
            serving = self._loader(self.settings)
        except Exception as error:  # noqa: BLE001 - told to the operator, who asked for this start
            self.failure = error
            if self._on_failure is None:
                log.error("loading failed: %s", error)
            else:
                self._on_failure(error)
            return
        self._describe(serving)
        with self._lock:
            if not self._stopped:
                self._serving = serving
                return
        serving.engine.stop()

    def _describe(self, serving: Serving) -> None:
        """The info metrics and the gauges."""
        engine, loaded = serving.engine, serving.engine.loaded
        self.metrics.watch(
            lambda: engine.stats().running, lambda: engine.stats().waiting, lambda: engine.stats().cache_used_ratio
        )
        facts = ("architecture", "dtype", "attention", "device")
        self.metrics.model({"model": loaded.id, **{name: str(getattr(loaded, name)) for name in facts}})
        for probe in serving.catalog.probes.values():
            self.metrics.probe(probe.task.name, probe.digest, probe.guaranteed, probe.alpha)
