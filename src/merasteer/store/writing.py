"""Publishing an artifact: complete or absent, whenever the process dies.

<store>/.publish-<host>-<pid>-<random>/    artifact/ and latest are written and fsynced here, then renamed into place:
    artifact/  ->  <store>/<slug>/<task>/<digest12>/      first: from here on the artifact exists
    latest     ->  <store>/<slug>/<task>/latest           then: from here on it is the default
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from merasteer.conditions import conditions_in, differences
from merasteer.errors import BadArtifact, InvalidInput
from merasteer.store.documents import canonical, dump, parse
from merasteer.store.durable import lock, sweep, sync, temporary, write
from merasteer.store.identity import model_slug
from merasteer.store.manifest import SHORT, digest_of
from merasteer.store.reading import build, load
from merasteer.store.scanning import latest
from merasteer.store.schema import SCHEMA
from merasteer.store.tensors import decode, encode

__all__ = ["install", "publish", "unwritable"]

log = logging.getLogger("merasteer.store")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def publish(
    store: Path,
    *,
    manifest: Mapping[str, Any],
    calibration: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    default: bool = True,
) -> Path:
    """The folder of the artifact, new or already there with equal content. `latest` then names it if `default`, unless it names one that
    is certified under other conditions: that one is not taken away.

    manifest: all sections but `schema`, `digest` and `files`, which are filled in. tensors: see
    `store.tensors.check`; stored as float32.
    Equal input gives an equal digest. Several processes may publish at once.
    Raises BadArtifact for what `load` would refuse, InvalidInput where the store cannot be written.
    """
    where, files = _files(manifest, calibration, tensors)
    return install(store, where, files, default=default and not _speaks_of_others(store / where, manifest))


def install(store: Path, where: Path, files: Mapping[str, bytes], *, default: bool) -> Path:
    """The folder <store>/<where> with these files, which `unpack` took: complete or absent. `latest` names it if `default`.

    Raises BadArtifact where another artifact has its place, InvalidInput where the store cannot be written.
    """
    folder = store / where
    try:
        store.mkdir(parents=True, exist_ok=True)
        with lock(store, alone=False), temporary(store) as staging:  # nobody removes what is being published
            sweep(store)
            if not _present(folder, files):
                _place(folder, files, staging / "artifact", store)
            if default:
                write(staging / "latest", folder.name.encode() + b"\n")
                os.replace(staging / "latest", folder.parent / "latest")  # noqa: PTH105, tests count the calls
                sync(folder.parent)
    except OSError as error:
        raise unwritable(store, error) from error
    return folder


def _speaks_of_others(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether `latest` names an artifact that is certified for this model under other conditions than the new one's."""
    name = latest(folder.parent.parent.parent, folder.parent.parent.name, folder.parent.name)
    if name is None:
        return False
    try:
        present = load(folder.with_name(name[:SHORT]))
    except BadArtifact:
        return False
    new = conditions_in(manifest)
    if not present.certified or present.conditions is None or new is None:
        return False
    same_model = present.conditions.model.weights == new.model.weights
    return same_model and bool(differences(present.conditions, new))


def unwritable(store: Path, error: OSError) -> InvalidInput:
    """What a user is told when the store cannot be written."""
    remedy = (
        "free some space (mera probes gc), or give another folder" if error.errno in FULL else "give a folder that can"
    )
    return InvalidInput(f"store: {store} cannot be written ({error.strerror}); {remedy}")


def _files(
    manifest: Mapping[str, Any], calibration: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[Path, dict[str, bytes]]:
    """(<slug>/<task>/<digest12>, file name -> bytes), proved loadable."""
    probe = encode(tensors)
    measured = parse(canonical(dict(calibration)))  # tuples become lists, as they will on reading
    written = {"calibration.json": dump(measured), "probe.safetensors": probe}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in written.items()}
    facts = parse(canonical({**manifest, "schema": SCHEMA, "files": sums}))
    facts["digest"] = digest_of(facts)
    build(facts, measured, decode(probe))
    where = Path(model_slug(facts["model"]["id"])) / facts["task"]["name"] / facts["digest"][:SHORT]
    return where, {**written, "manifest.json": dump(facts)}


def _present(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Whether the artifact is there already. Damage (load refuses it) counts as absent; other valid content raises."""
    if not folder.exists():
        return False
    try:
        found = load(folder).digest
    except BadArtifact as error:
        log.warning("replacing a damaged artifact: %s", error)
        return False
    if found != parse(files["manifest.json"])["digest"]:
        raise BadArtifact(
            f"{folder.name}: another artifact has the same first {SHORT} digits; change a seed and publish again"
        )
    return True


def _place(folder: Path, files: Mapping[str, bytes], staged: Path, store: Path) -> None:
    """Write `files` durably and rename them into place; what another process renamed there meanwhile is as good."""
    staged.mkdir()
    for name, data in files.items():
        write(staged / name, data)
    sync(staged)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not _present(folder, files):
        os.rename(folder, staged.with_name("damaged"))  # noqa: PTH104, tests count the calls
    try:
        os.rename(staged, folder)  # noqa: PTH104
    except OSError:
        if not _present(folder, files):
            raise
    for changed in (folder.parent, folder.parent.parent, store):
        sync(changed)
