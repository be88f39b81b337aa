"""Which model an artifact belongs to: what it means (`merasteer.meaning`), and the folder name made of its id."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from merasteer.errors import BadArtifact, InvalidInput, UnsupportedModel
from merasteer.meaning import ModelMeaning
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
    """A model as artifacts know it. id is a name only: meaning decides. source: its folder or file, where it has one.

    The hashes of its files tell artifacts of schema 1 whether they were made for it; nobody else asks for them.
    """

    id: str
    architecture: str
    layers: int
    width: int
    vocab: int
    meaning: ModelMeaning
    source: Path | None = field(default=None, compare=False)

    @property
    def slug(self) -> str:
        return model_slug(self.id)

    def manifest(self) -> dict[str, Any]:
        """The manifest's `model` section."""
        names = ("id", "architecture", "layers", "width", "vocab")
        return {**{name: getattr(self, name) for name in names}, **asdict(self.meaning)}


def identify(
    *,
    source: Path | None,
    meaning: ModelMeaning,
    model_id: str,
    architecture: str,
    layers: int,
    width: int,
    vocab: int,
) -> ModelIdentity:
    """The identity of a loaded model. The id of a local folder is its name: no path enters an artifact."""
    return ModelIdentity(_name(model_id), architecture, layers, width, vocab, meaning, source)


def file_hashes(source: Path | None) -> tuple[dict[str, str], str]:
    """Of the weight files by name, and one of the tokenizer's files; each file is hashed once per process unless it changes."""
    if source is None or not source.is_dir():
        return {}, ""
    try:
        weights = {path.name: _sha256(path) for path in sorted(source.glob("*.safetensors")) if path.is_file()}
        parts = {name: _sha256(source / name) for name in sorted(TOKENIZER_FILES) if (source / name).is_file()}
    except OSError as error:
        raise UnsupportedModel(f"model: {source} cannot be read ({error.strerror}); check its permissions") from error
    return weights, hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in parts.items()).encode()).hexdigest()


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
        wanted, ours = made_for[name], getattr(model, name)
        if wanted != ours:
            raise BadArtifact(f"model.{name}: made for {wanted}, this model has {ours}{remedy}")
    weights: Any = model.meaning.weights
    theirs: Any = made_for["weights"]
    tokenizer = model.meaning.tokenizer
    if theirs is None:  # of schema 1, which knew files
        theirs, (weights, tokenizer) = made_for.get("files"), file_hashes(model.source)
    if theirs != weights:
        raise BadArtifact(f"model.weights: made for other weights than this model's{remedy}")
    if made_for["tokenizer"] != tokenizer:
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
