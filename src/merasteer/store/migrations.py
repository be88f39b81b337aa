"""Artifacts of an older schema, brought to this one as they are read. The files themselves stay as they were written.

A new schema version adds one row: STEPS[n] makes of the parts of version n those of version n + 1. Its functions are pure:
they return new values and change nothing that they are given. An artifact keeps the digest that it was written with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from merasteer.errors import BadArtifact
from merasteer.store.fields import shown
from merasteer.store.schema import SCHEMA

__all__ = ["STEPS", "Step", "migrate", "version_of"]

Part = Literal["manifest", "calibration", "tensors"]
RELEASE = re.compile(r"\d+(\.\d+){1,3}[A-Za-z0-9.]{0,20}")


def _as_it_is(part: Any) -> Any:
    return part


@dataclass(frozen=True)
class Step:
    """From one schema version to the next, part by part: parsed manifest.json, parsed calibration.json, name -> tensor."""

    manifest: Callable[[Any], Any] = _as_it_is
    calibration: Callable[[Any], Any] = _as_it_is
    tensors: Callable[[Any], Any] = _as_it_is


def _second(manifest: Any) -> Any:
    """Version 1 knew free answers to plain prompts alone, each known by one token; models by their files; and no conditions."""
    task, model = manifest["task"], manifest["model"]
    unknown = dict.fromkeys(("weights", "config", "chat_template", "end_tokens", "configuration"))
    variants = [[[token] for token in tokens] for tokens in task["variants"]]
    added = {"choose": "free", "chat": False, "system": None, "examples": [], "end": None}
    return {
        **manifest,
        "task": {**task, **added, "variants": variants},
        "model": {**model, **unknown, "files": model["weights"]},
        "runtime": {**manifest["runtime"], "device": None, "ranks": 1},
    }


STEPS: dict[int, Step] = {1: Step(manifest=_second)}


def version_of(manifest: object) -> int:
    """The schema version of a parsed manifest. Raises BadArtifact for one that this release cannot read."""
    if not isinstance(manifest, Mapping) or "schema" not in manifest:
        return SCHEMA  # `manifest.validate` says what is missing
    version = manifest["schema"]
    if type(version) is int and version > SCHEMA:
        raise BadArtifact(
            f"schema: {version} is newer than {SCHEMA}, the version this release reads; "
            f"upgrade mera-server: {_install(manifest)}"
        )
    if type(version) is int and version != SCHEMA and version not in STEPS:
        raise BadArtifact(
            f"schema: {version} is older than any version this release reads; calibrate again with mera run"
        )
    return version if type(version) is int else SCHEMA  # what is no number is left to `manifest.validate`


def migrate(part: Part, value: Any, version: int) -> Any:
    """One part of an artifact of schema `version`, as the present schema has it; the manifest says so too."""
    for older in range(version, SCHEMA):
        try:
            value = getattr(STEPS[older], part)(value)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise BadArtifact(
                f"{part}: cannot be brought from schema {older} to {older + 1} ({type(error).__name__}: "
                f"{shown(str(error))}); calibrate again with mera run"
            ) from error
    return {**value, "schema": SCHEMA} if part == "manifest" and version != SCHEMA else value


def _install(manifest: Mapping[str, Any]) -> str:
    """The command that installs the release which wrote the artifact, as far as it says which."""
    versions = manifest.get("versions")
    release = versions.get("mera-server") if isinstance(versions, Mapping) else None
    known = isinstance(release, str) and RELEASE.fullmatch(release)
    return f"pip install 'mera-server>={release}'" if known else "pip install --upgrade mera-server"
