"""From a folder to an Artifact, everything verified. Whatever is wrong is one BadArtifact, never another exception."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from merasteer.errors import BadArtifact
from merasteer.store import certificate, manifest, tensors
from merasteer.store.documents import parse
from merasteer.store.fields import one_line
from merasteer.store.identity import ModelIdentity, require_same
from merasteer.store.schema import FILES
from merasteer.types import Artifact

__all__ = ["build", "load"]

LIMITS = {
    "manifest.json": 2**26,
    "calibration.json": 2**26,
    "probe.safetensors": 2**31,
}  # bytes; far above any honest file


def load(folder: Path, model: ModelIdentity | None = None) -> Artifact:
    """The artifact in `folder`, made for `model` (None: any). Raises BadArtifact with one line: where, what, remedy."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100, the folder's own name counts, not where a link leads
    try:
        return _load(folder, model)
    except BadArtifact as error:
        where = f"{folder.parent.name}/{folder.name}"  # no absolute path: reasons are shown over HTTP
        raise BadArtifact(one_line(f"{where}: {error}")) from error


def _load(folder: Path, model: ModelIdentity | None) -> Artifact:
    found = _json(folder, "manifest.json", manifest.validate)
    digest = manifest.digest_of(found)
    if found["digest"] != digest:
        raise BadArtifact(
            "manifest.json: digest: does not match the content, the file was edited; restore it or publish again"
        )
    if folder.name != digest[: manifest.SHORT]:
        raise BadArtifact(
            f"manifest.json: digest: belongs in a folder named {digest[: manifest.SHORT]}; rename the folder back"
        )
    if model is not None:
        _named("manifest.json", require_same, found["model"], model)
    content = {name: _read(folder, name) for name in FILES}
    for name, data in content.items():
        if hashlib.sha256(data).hexdigest() != found["files"][name]:
            raise BadArtifact(
                f"{name}: its sha256 is not the manifest's, the file was cut or edited; copy or publish it again"
            )
    calibration = _named("calibration.json", parse, content["calibration.json"])
    probe = _named("probe.safetensors", tensors.decode, content["probe.safetensors"])
    return build(found, calibration, probe)


def build(found: Any, calibration: Any, probe: dict[str, Any]) -> Artifact:
    """The artifact that three parsed files make. Raises BadArtifact, naming the file, where they disagree."""
    checked = _named("manifest.json", manifest.validate, found)
    _named("calibration.json", certificate.validate, calibration)
    _named("manifest.json", certificate.agree, checked, calibration)
    _named("probe.safetensors", tensors.check, probe, checked)
    return Artifact(manifest=found, calibration=calibration, **probe)


def _json(folder: Path, name: str, validate: Any) -> Any:
    return _named(name, validate, _named(name, parse, _read(folder, name)))


def _named(name: str, function: Any, *arguments: Any) -> Any:
    """What `function` returns; its BadArtifact gets the file's name in front."""
    try:
        return function(*arguments)
    except BadArtifact as error:
        raise BadArtifact(f"{name}: {error}") from error


def _read(folder: Path, name: str) -> bytes:
    """The file's bytes, read once, so that what is hashed is what is parsed. Regular files inside the folder only."""
    path = folder / name
    try:
        if path.resolve(strict=True).parent != folder.resolve(strict=True):
            raise BadArtifact(f"{name}: is a link that leads out of the folder; put the file itself there")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadArtifact(f"{name}: is not a regular file; copy or publish the artifact again")
        if status.st_size > LIMITS[name]:
            raise BadArtifact(
                f"{name}: {status.st_size} bytes exceed the limit of {LIMITS[name]}; publish the artifact again"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadArtifact(f"{name}: is missing; copy or publish the artifact again") from error
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError on Python 3.11
        raise BadArtifact(
            f"{name}: cannot be read ({getattr(error, 'strerror', None) or 'a loop of links'}); check it"
        ) from error
