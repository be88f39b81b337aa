"""`mera probes verify --model`: the canaries of certified artifacts replayed on a model, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["replay"]


def replay(stores: Sequence[Path], model: str, dtype: str, device: str, prefix: str) -> dict[str, tuple[str, bool]]:
    """Digest -> what is told, and whether the artifact is off here; of those that are certified for this model.

    Where other conditions were tested nothing is replayed, and nothing is off: there the certificate says nothing.
    """
    from mera_server.canaries import Watch
    from mera_server.catalog import probe_of
    from mera_server.shelf import identity_of
    from merasteer.engine import Engine, conditions_of, load_model
    from merasteer.store import scan

    loaded = load_model(model, dtype=dtype, device=device)
    identity, here = identity_of(loaded), conditions_of(loaded)
    artifacts = [entry.artifact for entry in scan(stores, identity) if (entry.digest or "").startswith(prefix)]
    found: dict[str, tuple[str, bool]] = {}
    with Engine(loaded) as engine:
        watch = Watch(engine, lambda *_: None)
        for artifact in artifacts:
            if artifact is None or not artifact.certified:
                continue
            probe = probe_of(artifact, here, frozenset())
            if probe.mismatch is not None:
                found[artifact.digest] = (f"other conditions: {probe.mismatch}", False)
                continue
            engine.register(artifact.digest, artifact.vectors)
            off = watch.replay(probe)
            found[artifact.digest] = (off or "canaries pass", off is not None)
            engine.unregister(artifact.digest)
    return found
