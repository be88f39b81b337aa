"""What a model is, by meaning and not by its files: digests that two ways of storing one model share, and two models do not.

The weights are hashed in weights.py. An attribute of the configuration that nobody has heard of counts: what does not is named here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from merasteer.conditions import Conditions
from merasteer.engine.admission import end_tokens
from merasteer.engine.loading import LoadedModel
from merasteer.engine.weights import weights_digest
from merasteer.meaning import ModelMeaning

__all__ = ["IRRELEVANT", "conditions_of", "configuration", "identity_facts", "of", "tokenizer_digest"]

# Fields of a configuration that change no answer. A test changes each, in every family.
STORED = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")  # how it was saved
RUN = ("use_cache", "output_attentions", "output_hidden_states", "chunk_size_feed_forward")
TRAINED = (  # what acts in training alone, and heads that are not this one
    "initializer_range", "attention_dropout", "hidden_dropout", "classifier_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj", "problem_type",
    "id2label", "label2id", "pretraining_tp",
)  # fmt: skip
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")  # the tokenizer and the end tokens decide
IRRELEVANT = frozenset({*STORED, *RUN, *TRAINED, *TOKENS})


def of(loaded: LoadedModel) -> ModelMeaning:
    """The meaning of a loaded model. Reads its weights, unless the cache knows these files: see `weights_digest`."""
    fields = configuration(loaded.model.config)
    config = _digest(fields)
    return ModelMeaning(
        weights=weights_digest(loaded, config),
        config=config,
        tokenizer=tokenizer_digest(loaded.tokenizer),
        chat_template=_digest(getattr(loaded.tokenizer, "chat_template", None)),
        end_tokens=_digest(sorted(end_tokens(loaded))),
        configuration=fields,
    )


def configuration(config: Any) -> dict[str, Any]:
    """The fields of a configuration that count, as JSON values; equal numbers are equal (1 and 1.0)."""
    return {name: _plain(value) for name, value in sorted(config.to_dict().items()) if name not in IRRELEVANT}


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of what decides token ids. The same for two ways of storing one tokenizer."""
    return _digest(_tokenizer(tokenizer))


def conditions_of(loaded: LoadedModel) -> Conditions:
    """What a certificate that is earned on this model, here, is bound to. Reads its weights, as `of` does."""
    return Conditions(of(loaded), loaded.dtype, loaded.device.partition(":")[0], loaded.attention, loaded.ranks)


def identity_facts(loaded: LoadedModel) -> dict[str, Any]:
    """The arguments of `merasteer.store.identify`."""
    facts = {name: getattr(loaded, name) for name in ("source", "architecture", "layers", "width", "vocab")}
    return {"model_id": loaded.id, "meaning": of(loaded), **facts}


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


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(str(inner) for inner in value)
    return str(value)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
