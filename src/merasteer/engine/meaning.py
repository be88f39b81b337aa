"""What a model is, by meaning and not by its files: digests that two ways of storing one model share, and two models do not."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from merasteer.engine.loading import LoadedModel

__all__ = ["identity_facts", "tokenizer_digest"]


def identity_facts(loaded: LoadedModel) -> dict[str, Any]:
    """What an identity holds beside the hashes of files: the arguments of `merasteer.store.identify`."""
    facts = {name: getattr(loaded, name) for name in ("architecture", "layers", "width", "vocab")}
    in_weights = loaded.source is not None and loaded.source.is_file()
    return {"model_id": loaded.id, **facts, "tokenizer": tokenizer_digest(loaded.tokenizer) if in_weights else None}


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of what decides token ids. The same for two ways of storing one tokenizer."""
    return hashlib.sha256(_canonical(_tokenizer(tokenizer))).hexdigest()


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    """What decides token ids. How ids become text (the decoder) and what a caller sets (truncation, padding) are left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python: its class decides, with its vocabulary
        return {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    parts = json.loads(backend.to_str())
    model = parts["model"]
    if "merges" in model:  # older versions of the library write a pair as one string
        model["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return {
        "model": model,
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": parts["post_processor"],
        "added_tokens": sorted(parts["added_tokens"], key=lambda token: token["id"]),
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
