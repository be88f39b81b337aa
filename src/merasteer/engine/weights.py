"""One digest of a checkpoint's weights: names, shapes and values as the checkpoint holds them, whatever they are stored in.

Values are hashed in float32, which holds every value of bfloat16 and float16: a checkpoint that was only stored in another of the three is
the same model. They are read from the files, not from the loaded model, which may hold a cast, one rank's part or another layout.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from merasteer.engine.checkpoints import BENIGN, weight_files
from merasteer.engine.gguf import open_gguf
from merasteer.engine.loading import LoadedModel

__all__ = ["cache_file", "weights_digest"]

SCHEME = "1"  # of the digest: another one changes all of them
BLOCK = 2**22  # elements that are converted and hashed at a time
REMEMBERED = 256

_known: dict[str, str] = {}
Tensors = Iterable[tuple[str, torch.Tensor]]  # one at a time: a checkpoint may be larger than the memory


def weights_digest(loaded: LoadedModel, config: str) -> str:
    """The digest of the checkpoint that a model was loaded from (of the model itself where it was made in memory).

    config: the digest of its configuration, which decides the layout. Kept by path, size, times and inode of the files, in this process and
    in `cache_file()`, so that a checkpoint is read once.
    """
    if loaded.source is None:
        return _combined(loaded, loaded.model.state_dict().items())
    is_file = loaded.source.is_file()
    files = [loaded.source] if is_file else weight_files(loaded.source)
    key = _key(files, f"{SCHEME} {loaded.architecture} {config}")
    if key not in _known:
        before = _remembered()
        if key not in before:
            before[key] = _combined(
                loaded, open_gguf(files[0]).tensors_of(loaded.model.config) if is_file else _of_safetensors(files)
            )
            _remember(before)
        _known[key] = before[key]
    return _known[key]


def cache_file() -> Path:
    """Where digests are kept between processes: $MERA_CACHE, or the user's cache folder."""
    folder = os.environ.get("MERA_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mera-server"
    return Path(folder).expanduser() / "weights.json"


def _combined(loaded: LoadedModel, tensors: Tensors) -> str:
    """The digest of all tensors, by the names of the model's class, sorted."""
    found = {
        _name(loaded.model, name): _line(value)
        for name, value in tensors
        if not any(re.search(known, name) for known in BENIGN)
    }
    for alias, source in loaded.model.all_tied_weights_keys.items():
        if alias in found and found[alias] == found.get(source):  # the same tensor, stored twice
            del found[alias]
    return hashlib.sha256("".join(f"{name} {found[name]}\n" for name in sorted(found)).encode()).hexdigest()


def _line(tensor: torch.Tensor) -> str:
    """Shape and digest of the values."""
    digest = hashlib.sha256()
    kind = ""
    wide = tensor.is_floating_point() and not (
        tensor.dtype == torch.float64 and not torch.equal(tensor.float().double(), tensor)
    )
    if not wide:
        kind = f" {str(tensor.dtype).removeprefix('torch.')}"
    for block in tensor.detach().cpu().contiguous().reshape(-1).split(BLOCK):  # type: ignore[no-untyped-call]
        values = block.float() if wide else block
        digest.update(values.view(torch.uint8).numpy())
    return f"{'x'.join(str(size) for size in tensor.shape)}{kind} {digest.hexdigest()}"


def _name(model: Any, name: str) -> str:
    """The tensor's name in the model's own class; a checkpoint of the trunk alone leaves its prefix out."""
    tops = {top for top, _ in model.named_children()}
    return name if name.split(".", 1)[0] in tops else f"{model.base_model_prefix}.{name}"


def _of_safetensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no mapping
                yield name, file.get_tensor(name)


def _key(files: list[Path], more: str) -> str:
    marks = []
    for path in files:
        found = path.stat()
        marks.append(
            f"{path.resolve()} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_dev} {found.st_ino}"
        )
    return hashlib.sha256("\n".join([more, *marks]).encode()).hexdigest()


def _remembered() -> dict[str, str]:
    try:
        kept = json.loads(cache_file().read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in kept.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember(digests: dict[str, str]) -> None:
    """Writes the newest digests; where the folder cannot be written they are computed again next time."""
    path = cache_file()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(dict(list(digests.items())[-REMEMBERED:])), encoding="utf-8")
        beside.replace(path)
