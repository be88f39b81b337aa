"""The life of what answers requests: loading in the background, ready, failed, stopped."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mera_server.canaries import Watch, without
from mera_server.keys import KeyRing
from mera_server.metrics import Metrics
from mera_server.replies import ReloadReply
from mera_server.requirements import lacking
from mera_server.resolve import Limits, Plan
from mera_server.room import Room
from mera_server.running import Flights
from mera_server.settings import Settings
from merasteer.errors import EngineFailed, InvalidInput, MeraError, NotReady

if TYPE_CHECKING:
    from mera_server.catalog import Catalog
    from mera_server.loading import Serving
    from mera_server.shelf import Shelf

__all__ = ["Loader", "Runtime"]

Loader = Callable[[Settings], "Serving"]
log = logging.getLogger("mera.runtime")
_LOOK_SECONDS = 0.25  # between two looks at the generation loop


class Runtime:
    """Holds what is served, once it is there. `on_failure` is called with the error if loading fails."""

    def __init__(
        self, settings: Settings, loader: Loader, on_failure: Callable[[BaseException], None] | None = None
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.limits = Limits(
            settings.steering == "on", settings.default_task, settings.max_new_tokens_limit, settings.max_prompt_tokens
        )
        self.keys = None if settings.keys_file is None else KeyRing(settings.keys_file)
        self.flights = Flights()
        self.room = Room(lambda: self._serving)
        self.failure: BaseException | None = None
        self.canaries: Watch | None = None
        self._loader, self._on_failure = loader, on_failure
        self._serving: Serving | None = None
        self._loading: threading.Thread | None = None
        self._stopped = self._told = self._reported = False
        self._lock = threading.Lock()
        self._reading = threading.Lock()  # held while the stores are read

    def start(self) -> None:
        """Loads in a daemon thread: an interrupted start does not wait for a large model."""
        self._loading = threading.Thread(target=self._load, name="mera-loading", daemon=True)
        self._loading.start()

    def loading(self, wait: float = 0.0) -> bool:
        """Whether the thread that loads is still at it, after so many seconds at most."""
        if self._loading is not None:
            self._loading.join(wait)
        return self._loading is not None and self._loading.is_alive()

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

    async def settle(self, plans: Sequence[Plan]) -> list[Plan]:
        """The plans, once the canaries of the artifacts that they rely on have been replayed: see `Watch.settle`."""
        return list(plans) if self.canaries is None else await self.canaries.settle(plans)

    def reload(self, *, only_if_changed: bool = False) -> ReloadReply | None:
        """Serves what the stores hold now, from one request to the next; those that run keep what they began with. Blocks; slow.

        None: nothing had changed. Raises what `serving` does, and NotReady where a store cannot be read: nothing changes then.
        """
        with self._reading:
            shelf, before = self.serving().shelf, frozenset(self.serving().catalog.probes)
            if shelf is None or (only_if_changed and not shelf.changed()):
                return None
            self._read(shelf)
            if shelf.changed():  # the first reading made room for something that had none
                self._read(shelf)
            told = _difference(before, self.serving().catalog)
            log.info("reloaded: %s", told.model_dump_json())
            return told

    def _read(self, shelf: Shelf) -> None:
        catalog = shelf.read(self.serving().catalog)
        with self._lock:
            if self._stopped or self._serving is None:
                raise NotReady("server: it is stopping; ask another one")
            for digest, why in ({} if self.canaries is None else self.canaries.failed).items():
                catalog = without(catalog, digest, why)
            self._serving = replace(self._serving, catalog=catalog)
        self.metrics.catalog(catalog)

    async def watch(self) -> None:
        """Looks after keys, stores and the generation loop until it is cancelled."""
        wait = self.settings.reload_seconds
        due = time.monotonic() + wait
        while True:
            await asyncio.sleep(min(_LOOK_SECONDS, wait or _LOOK_SECONDS))
            self._look_at_engine()
            if wait and time.monotonic() >= due:
                await asyncio.to_thread(self._look_at_files)
                due = time.monotonic() + wait

    def _look_at_engine(self) -> None:
        serving = self._serving
        if serving is None or serving.engine.failure is None or self._reported:
            return
        self._reported = True
        self._tell_once(serving.engine.failure)
        if self._on_failure is not None:
            self._on_failure(EngineFailed("engine: the generation loop died; see the log and start the server again"))

    def _look_at_files(self) -> None:
        """A fault here must not end the watch."""
        try:
            if self.keys is not None:
                self.keys.refresh()
            if self._serving is not None:
                self.reload(only_if_changed=True)
        except MeraError as error:
            log.error("reload: %s", error)
        except Exception:
            log.exception("reload: it failed; what was loaded is served on")

    def ready(self) -> None:
        """Raises what keeps this server from taking requests."""
        if self.flights.draining:
            raise NotReady("server: it is stopping; ask another one")
        why = lacking(self.serving().catalog, self.settings.require, self.settings.require_certified)
        if why is not None:
            raise NotReady(why)

    def _tell_once(self, failure: BaseException) -> None:
        if not self._told:
            self._told = True
            log.error("the generation loop died: %s: %s", type(failure).__name__, failure)

    def _load(self) -> None:
        try:
            serving = self._loader(self.settings)
            self.canaries = Watch(serving.engine, self._withdraw)
            if self.settings.require_certified:
                self._require_certified(serving)
        except Exception as error:  # noqa: BLE001 - told to the operator, who asked for this start
            self.failure = error
            if self._on_failure is None:
                log.error("loading failed: %s", error)
            else:
                self._on_failure(error)
            return
        self._describe(serving)
        with self._lock:
            stopped = self._stopped
            self._serving = None if stopped else serving
        if stopped:
            serving.engine.stop()

    def _withdraw(self, digest: str, why: str) -> None:
        """An artifact does not behave here as it was tested: from now on its certificate is not this server's."""
        with self._lock:
            if self._serving is None:
                return
            catalog = without(self._serving.catalog, digest, why)
            self._serving = replace(self._serving, catalog=catalog)
        self.metrics.catalog(catalog)

    def _require_certified(self, serving: Serving) -> None:
        """Raises InvalidInput unless the certificates of the tasks' artifacts hold here, and there is one. Replays their canaries."""
        certified = {task: probe for task, probe in serving.catalog.latest.items() if probe.certified}
        watch = self.canaries
        told = {task: probe.mismatch or (watch and watch.replay(probe)) for task, probe in certified.items()}
        off = [f"{task}: {why}" for task, why in told.items() if why]
        if off or not certified:
            serving.engine.stop()
            raise InvalidInput(
                f"require-certified: {'; '.join(off) or 'no task has a certified artifact here'}; "
                "test again with mera recertify, or start without it"
            )

    def _describe(self, serving: Serving) -> None:
        """The info metrics and the gauges."""
        engine, loaded = serving.engine, serving.engine.loaded
        self.metrics.watch(
            lambda: engine.stats().running,
            lambda: engine.stats().waiting,
            lambda: engine.stats().cache_used_ratio,
            lambda: engine.stats().shared_tokens,
        )
        facts = ("architecture", "dtype", "attention", "device")
        self.metrics.model({"model": loaded.id, **{name: str(getattr(loaded, name)) for name in facts}})
        self.metrics.catalog(serving.catalog)


def _difference(before: frozenset[str], now: Catalog) -> ReloadReply:
    return ReloadReply(
        loaded=len(now.probes),
        rejected=sum(entry.status == "rejected" for entry in now.entries),
        added=sorted(now.probes.keys() - before),
        removed=sorted(before - now.probes.keys()),
        latest={task: probe.digest for task, probe in sorted(now.latest.items())},
    )
