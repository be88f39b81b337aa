"""From a folder to an Artifact, everything verified. Whatever is wrong is one BadArtifact, never another exception."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from merasteer.errors import BadArtifact
from merasteer.store import certificate, manifest, migrations, tensors
from merasteer.store.documents import parse
from merasteer.store.fields import one_line
from merasteer.store.identity import ModelIdentity, require_same
from merasteer.store.schema import FILES
from merasteer.types import Artifact

__all__ = ["LIMITS", "build", "contents", "load", "unpack"]

LIMITS = {
    "manifest.json": 2**26,
    "calibration.json": 2**26,
    "probe.safetensors": 2**31,
}  # bytes; far above any honest file


def load(folder: Path, model: ModelIdentity | None = None) -> Artifact:
    """The artifact in `folder`, made for `model` (None: any). Raises BadArtifact with one line: where, what, remedy."""
    folder = _absolute(folder)
    return unpack(folder.parent.name, folder.name, lambda name: _read(folder, name), model)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of an artifact's three files, not yet verified. Raises BadArtifact for what cannot be read."""
    return {name: _read(_absolute(folder), name) for name in LIMITS}


def unpack(task: str, name: str, read: Callable[[str], bytes], model: ModelIdentity | None = None) -> Artifact:
    """The artifact filed as <task>/<name>, `read` giving its files: verified as written, then brought to this schema.

    Its digest stays the one it was written with. Raises BadArtifact as `load` does.
    """
    try:
        return _unpack(name, read, model)
    except BadArtifact as error:  # no absolute path: reasons are shown over HTTP
        raise BadArtifact(one_line(f"{task}/{name}: {error}")) from error


def _unpack(folder: str, read: Callable[[str], bytes], model: ModelIdentity | None) -> Artifact:
    written = _named("manifest.json", parse, read("manifest.json"))
    version = _named("manifest.json", migrations.version_of, written)
    found = _named("manifest.json", manifest.validate, migrations.migrate("manifest", written, version))
    digest = manifest.digest_of(written)
    if found["digest"] != digest:
        raise BadArtifact(
            "manifest.json: digest: does not match the content, the file was edited; restore it or publish again"
        )
    if folder != digest[: manifest.SHORT]:
        raise BadArtifact(
            f"manifest.json: digest: belongs in a folder named {digest[: manifest.SHORT]}; rename the folder back"
        )
    if model is not None:
        _named("manifest.json", require_same, found["model"], model)
    content = {name: read(name) for name in FILES}
    for name, data in content.items():
        if hashlib.sha256(data).hexdigest() != found["files"][name]:
            raise BadArtifact(
                f"{name}: its sha256 is not the manifest's, the file was cut or edited; copy or publish it again"
            )
    calibration = _named("calibration.json", parse, content["calibration.json"])
    probe = _named("probe.safetensors", tensors.decode, content["probe.safetensors"])
    return build(
        found,
        migrations.migrate("calibration", calibration, version),
        migrations.migrate("tensors", probe, version),
    )


def build(found: Any, calibration: Any, probe: dict[str, Any]) -> Artifact:
    """The artifact that three parsed files make. Raises BadArtifact, naming the file, where they disagree."""
    checked = _named("manifest.json", manifest.validate, found)
    _named("calibration.json", certificate.validate, calibration)
    _named("manifest.json", certificate.agree, checked, calibration)
    _named("probe.safetensors", tensors.check, probe, checked)
    return Artifact(manifest=found, calibration=calibration, **probe)


def _absolute(folder: Path) -> Path:
    return Path(os.path.abspath(folder))  # noqa: PTH100, the folder's own name counts, not where a link leads


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
