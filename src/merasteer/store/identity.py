"""Which model an artifact belongs to: hashes of its weights and tokenizer, and the folder name made of its id."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merasteer.errors import BadArtifact, InvalidInput, UnsupportedModel
from merasteer.store.schema import ModelSection

__all__ = ["SLUG", "ModelIdentity", "identify", "model_slug", "require_same"]

SLUG = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,149}")  # it becomes a folder

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
_hashes: dict[tuple[str, int, int], str] = {}


@dataclass(frozen=True)
class ModelIdentity:
    """A model as artifacts know it. weights: file name -> sha256. id is a name only: equality of content decides."""

    id: str
    architecture: str
    layers: int
    width: int
    vocab: int
    weights: Mapping[str, str]
    tokenizer: str

    @property
    def slug(self) -> str:
        return model_slug(self.id)

    def manifest(self) -> dict[str, Any]:
        """The manifest's `model` section."""
        return {**vars(self), "weights": dict(self.weights)}


def identify(
    source: Path, *, model_id: str, architecture: str, layers: int, width: int, vocab: int, tokenizer: str | None = None
) -> ModelIdentity:
    """Identity of the model in the folder or GGUF file `source`. Hashes every *.safetensors there and the tokenizer's files, or the
    one file, each once per process unless its size or time changes. tokenizer: its digest, which a GGUF file needs because the
    tokenizer has no file of its own. The id of a local folder is its name: no path enters an artifact.

    Raises UnsupportedModel where there are no safetensors weights or no tokenizer.
    """
    try:
        if source.is_file():
            weights, parts = {source.name: _sha256(source)}, {}
        else:
            weights = {path.name: _sha256(path) for path in sorted(source.glob("*.safetensors")) if path.is_file()}
            parts = {name: _sha256(source / name) for name in sorted(TOKENIZER_FILES) if (source / name).is_file()}
    except OSError as error:
        raise UnsupportedModel(f"model: {source} cannot be read ({error.strerror}); check its permissions") from error
    if not weights:
        raise UnsupportedModel(
            f"model: {source} holds no *.safetensors; save it with save_pretrained, which writes them"
        )
    if parts:
        tokenizer = hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in parts.items()).encode()).hexdigest()
    if tokenizer is None:
        raise UnsupportedModel(f"model: {source} holds no tokenizer; save the tokenizer beside the weights")
    return ModelIdentity(_name(model_id), architecture, layers, width, vocab, weights, tokenizer)


def model_slug(model_id: str) -> str:
    """A safe folder name: "owner/name" -> "owner--name", a local folder -> its last part; other characters -> "-"."""
    slug = re.sub(r"[^A-Za-z0-9._-]", "-", _name(model_id).replace("/", "--")).lstrip(".")[:150]
    if not slug:
        raise InvalidInput(
            f"model: {model_id!r} has no name to file artifacts under; give a hub id or a folder with a name"
        )
    return slug


def require_same(made_for: ModelSection, model: ModelIdentity) -> None:
    """Raise BadArtifact unless the artifact was made for this model. Ids may differ: content decides."""
    remedy = "; serve the model it was made for, or calibrate again with mera run"
    for name in ("architecture", "layers", "width", "vocab"):
        theirs, ours = made_for[name], getattr(model, name)
        if theirs != ours:
            raise BadArtifact(f"model.{name}: made for {theirs}, this model has {ours}{remedy}")
    if made_for["weights"] != dict(model.weights):
        raise BadArtifact(f"model.weights: made for other weights than this model's{remedy}")
    if made_for["tokenizer"] != model.tokenizer:
        raise BadArtifact(f"model.tokenizer: made for another tokenizer than this model's{remedy}")


def _name(model_id: str) -> str:
    try:
        local = model_id.startswith(("/", ".", "~")) or model_id.count("/") > 1 or Path(model_id).is_dir()
        return Path(os.path.abspath(Path(model_id).expanduser())).name if local else model_id  # noqa: PTH100, symlinks stay
    except (OSError, RuntimeError, ValueError):  # too long for a path, nobody's home, a null byte: a name and no folder
        return model_id


def _sha256(path: Path) -> str:
    """Hex digest of a file's content; links are followed (a hub cache is made of links)."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        with path.open("rb") as file:
            _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[key]
