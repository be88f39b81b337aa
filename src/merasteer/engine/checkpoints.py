"""What is wrong with a checkpoint, told before and after the library has loaded it: each in one line that says what to do.

The library fills a tensor that is missing with random numbers and drops one that it has no place for, with a warning. Both are another
model than the one that was trained, so both are refused here, by name.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from merasteer.errors import InvalidInput, UnsupportedModel

__all__ = ["BENIGN", "check_folder", "check_loaded", "check_pointer", "check_weights", "quiet", "weight_files"]

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
POINTER = b"version https://git-lfs"

# Tensors that older versions of the library stored and that follow from the configuration: never a part of the model.
BENIGN = (
    r"(^|\.)rotary_emb\.inv_freq$",  # of every family with rotary positions
    r"(^|\.)rotary_emb\.(cos|sin)_cached$",
    r"(^|\.)position_ids$",
    r"(^|\.)(attn|attention)\.(masked_)?bias$",  # GPT-2, GPT-NeoX: the causal mask
)
WRAPPERS = {  # what a training script put around a model, as it shows in the names of the tensors
    "base_model.model.": "an adapter's wrapper; save what merge_and_unload() returns",
    "_orig_mod.": "torch.compile's wrapper; save model._orig_mod",
    "module.": "the wrapper of data-parallel training; save model.module",
}


def check_folder(folder: Path) -> None:
    """Raises InvalidInput for what can be seen from the files alone: nothing is loaded."""
    name = str(folder)
    has_config = (folder / "config.json").is_file()
    found = sorted(path.name for path in folder.glob("*.gguf"))
    if found and not has_config:
        raise InvalidInput(f"model: {name!r} holds GGUF files; name one, such as {str(folder / found[0])!r}")
    if (folder / "adapter_config.json").is_file():
        raise InvalidInput(
            f"model: {name!r} holds an adapter{_base_of(folder)}; merge it into its model (merge_and_unload) and save that"
        )
    if not has_config:
        raise InvalidInput(f"model: {name!r} holds no config.json; give a folder as save_pretrained writes it")
    for path in (folder / "config.json", *_vocabularies(folder)):
        _check_file(path)


def check_weights(folder: Path) -> None:
    """Raises InvalidInput unless the folder's weights are safetensors, all there and whole, with a tokenizer beside them."""
    for path in weight_files(folder):
        _check_file(path)
        _check_safetensors(path)
    if not _vocabularies(folder):
        raise InvalidInput(
            f"model: {str(folder)!r} holds no tokenizer; save it beside the weights (tokenizer.save_pretrained), "
            "or copy it from the model that this one was made of"
        )


def weight_files(folder: Path) -> list[Path]:
    """The files that the library reads a folder's weights from. Raises InvalidInput where one is missing."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    present = {path.name for path in folder.glob("*.safetensors") if path.is_file()}
    if (folder / INDEX).is_file():
        _check_file(folder / INDEX)
        wanted = sorted(_shards(folder / INDEX))
        missing = [shard for shard in wanted if shard not in present]
        if missing:
            raise InvalidInput(
                f"model: {str(folder)!r} lacks {_some(missing)} of its {len(wanted)} files; download it again, whole"
            )
        return [folder / shard for shard in wanted]
    if present:
        raise InvalidInput(
            f"model: {str(folder)!r} holds {_some(sorted(present))} but neither {SINGLE} nor {INDEX}, which says what is where; "
            "download it again, whole"
        )
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise InvalidInput(
            f"model: {str(folder)!r} holds its weights as pickles ({_some(pickles)}), which can run code and are not read; "
            "convert it to safetensors: load it where you trust it, and save_pretrained"
        )
    raise InvalidInput(f"model: {str(folder)!r} holds no weights; give a folder with {SINGLE}")


def check_loaded(name: str, info: Mapping[str, Any]) -> None:
    """Raises UnsupportedModel naming the tensors that the checkpoint lacks, has too many, or in another shape.

    info: the library's report of a load (`output_loading_info`). Weights that are tied to others are not missing there.
    """
    missing = sorted(info["missing_keys"])
    unexpected = sorted(key for key in info["unexpected_keys"] if not any(re.search(known, key) for known in BENIGN))
    _check_wrapped(name, unexpected)
    told = []
    if missing:
        told.append(f"lacks {_some(missing)}")
    if unexpected:
        told.append(f"holds {_some(unexpected)}, for which this architecture has no place")
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        key, stored, wanted = mismatched[0]
        shapes = f"{_shape(stored)} where the configuration says {_shape(wanted)}"
        told.append(f"has {_some([key for key, *_ in mismatched])} in another shape ({key}: {shapes})")
    told += [str(message).splitlines()[0] for message in info["error_msgs"][:1]]
    if told:
        raise UnsupportedModel(
            f"model: {name!r} {'; '.join(told)}; it would be another model: give the checkpoint whole, with its own config.json"
        )


def _check_wrapped(name: str, unexpected: Collection[str]) -> None:
    adapted = [key for key in unexpected if ".lora_" in key or ".base_layer." in key]
    if adapted:
        raise UnsupportedModel(
            f"model: {name!r} holds an adapter that is not merged ({_some(adapted)}); save what merge_and_unload() returns"
        )
    prefixes = Counter(prefix for key in unexpected for prefix in WRAPPERS if key.startswith(prefix))
    if prefixes:
        prefix, count = prefixes.most_common(1)[0]
        raise UnsupportedModel(
            f"model: the names of {count} tensors of {name!r} begin with {prefix!r}: {WRAPPERS[prefix]}, or take the prefix off"
        )


def check_pointer(name: str, start: bytes) -> None:
    """Raises InvalidInput where a file is what git keeps in the place of one that it was told to keep elsewhere."""
    if start.startswith(POINTER):
        raise InvalidInput(f"model: {name!r} is a git-LFS pointer, not the file itself; run git lfs pull")


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, the library warns of nothing: what matters of a load is an error here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_file(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(len(POINTER))
    if not start:
        raise InvalidInput(f"model: {str(path)!r} is empty; download it again")
    check_pointer(str(path), start)


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: Any = json.loads(file.read(length)) if 2 <= length <= size - 8 else None
        ends = [facts["data_offsets"][1] for key, facts in header.items() if key != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise InvalidInput(f"model: {str(path)!r} is no safetensors file, or damaged; download it again") from error
    if whole > size:
        raise InvalidInput(f"model: {str(path)!r} is cut off ({size} of {whole} bytes); download it again")


def _shards(index: Path) -> set[str]:
    try:
        return {str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"model: {str(index)!r} is damaged: it holds no weight_map; download it again") from error


def _vocabularies(folder: Path) -> list[Path]:
    return [path for pattern in VOCABULARIES for path in sorted(folder.glob(pattern)) if path.is_file()]


def _base_of(folder: Path) -> str:
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" to {base!r}" if base else ""


def _shape(shape: Any) -> str:
    return "×".join(str(size) for size in shape)


def _some(names: list[str]) -> str:
    """A few of the names, and how many there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown}, … ({len(names)} in all)"
