"""Loading a causal language model and its tokenizer, from a folder, a GGUF file or a hub, ready for the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merasteer.engine.checkpoints import check_folder, check_loaded, check_weights, quiet
from merasteer.engine.gguf import is_gguf, open_gguf
from merasteer.engine.gguf_tokenizer import end_token_ids, tokenizer_of
from merasteer.engine.hub import fetch, first_line
from merasteer.engine.layers import ARCHITECTURES, decoder_layers, family_of
from merasteer.engine.placement import LARGER, DeviceMap, check_group, check_placement, target_of
from merasteer.engine.rope import check_rope, context_of
from merasteer.errors import InvalidInput, MeraError, UnsupportedModel

__all__ = ["LoadedModel", "architecture_of", "load_model", "model_name", "source_of", "wrap_model"]

REPORT = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # all of it is looked at, and nothing ignored
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in evaluation mode, its tokenizer, and the facts that artifacts are checked against.

    source: the folder of its files, or the GGUF file (None for a model made in memory). context: the longest sequence, in tokens.
    ranks: processes that hold a part each.
    """

    model: Any
    tokenizer: Any
    id: str
    source: Path | None
    architecture: str
    layers: int
    width: int
    vocab: int
    context: int
    dtype: str
    attention: str
    device: str
    ranks: int = 1


def load_model(
    id_or_dir: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: DeviceMap | None = None,
    tensor_parallel: int = 1,
) -> LoadedModel:
    """The model named by a local folder, a GGUF file or a hub id. Remote code is never run.

    dtype: auto (float32 on a CPU, the checkpoint's elsewhere) | float32 | bfloat16 | float16. device: auto | cpu | cuda[:n].
    device_map: in place of device, where accelerate puts the weights: auto | balanced | balanced_low_0 | sequential, a device, or
    a device per module. The engine runs on one device, so a map that spreads or offloads the model is an error.
    tensor_parallel: into how many parts the library's plan cuts the weights, one per process of a group (torchrun); each process
    then loads its own part.
    Raises UnsupportedModel where the architecture is not in the hook table, InvalidInput where it cannot be loaded.
    """
    from transformers.distributed import DistributedConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    target = target_of(device, device_map)
    if tensor_parallel > 1:
        check_group(tensor_parallel, device_map)
        target = target_of(device, None)
    weights = _dtype(dtype, target)
    source = source_of(id_or_dir)
    try:
        parts = {"distributed_config": DistributedConfig(tp_size=tensor_parallel)} if tensor_parallel > 1 else {}
        with quiet():
            read = _from_gguf if is_gguf(source) else _from_folder
            model, tokenizer = read(source, dtype=weights, device_map=device_map, **parts)
        check_placement(model, device_map)
        model = model if device_map is not None or tensor_parallel > 1 else model.to(target)
    except MeraError:
        raise
    except torch.OutOfMemoryError as error:
        raise InvalidInput(
            f"model: {str(id_or_dir)!r} does not fit into the memory of {target}; {LARGER}, or --device cpu"
        ) from error
    except Exception as error:
        remedy = "give a folder or repository that holds config.json, safetensors and a tokenizer"
        remedy = "use its safetensors checkpoint" if is_gguf(source) else remedy
        raise InvalidInput(f"model: {str(id_or_dir)!r} cannot be loaded ({first_line(error)}); {remedy}") from error
    return wrap_model(model, tokenizer, model_name(id_or_dir), source)


def model_name(id_or_dir: str | Path) -> str:
    """The id that a model has once it is loaded: a folder's name, a GGUF file's without its suffix, a hub id as it is."""
    path = Path(id_or_dir)
    if is_gguf(path):
        return path.stem
    return path.resolve().name if path.is_dir() else str(id_or_dir)


def source_of(id_or_dir: str | Path) -> Path:
    """The folder or the GGUF file that a model is read from; a hub's is fetched."""
    path, name = Path(id_or_dir), str(id_or_dir)
    if is_gguf(path) or path.is_dir():
        return path
    if path.is_file():
        raise InvalidInput(
            f"model: {name!r} is a file; give a model folder, a .gguf file or a hub id such as owner/name"
        )
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise InvalidInput(f"model: no such folder {name!r}; give a model folder or a hub id such as owner/name")
    return fetch(name)


def _from_folder(folder: Path, **how: Any) -> tuple[Any, Any]:
    """A folder's model and tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_folder(folder)
    architecture_of(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    check_weights(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, use_safetensors=True, **REPORT, **how
    )
    check_loaded(str(folder), info)
    return model, tokenizer


def _from_gguf(path: Path, **how: Any) -> tuple[Any, Any]:
    """A GGUF file's model and tokenizer. The model is made from its configuration, so nothing in it counts as quantised."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig

    file = open_gguf(path)
    config = file.config()
    architecture_of(config)
    tokenizer = tokenizer_of(path.name, file.metadata)
    ends = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=end_token_ids(file.metadata), pad_token_id=config.pad_token_id
    )
    model, info = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None,
        config=config,
        state_dict=file.state_dict(config),
        generation_config=ends,
        trust_remote_code=False,
        use_safetensors=True,
        **REPORT,
        **how,
    )
    check_loaded(path.name, info)
    return model, tokenizer


def wrap_model(model: Any, tokenizer: Any, model_id: str, source: Path | None = None) -> LoadedModel:
    """A model that is already in memory, as the engine takes it. Sets evaluation mode and freezes the parameters."""
    family_of(model)
    check_rope(model.config)
    model.eval().requires_grad_(False)
    config = model.config.get_text_config()
    if len(decoder_layers(model)) != config.num_hidden_layers:
        raise UnsupportedModel(
            f"model: {type(model).__name__} has {len(decoder_layers(model))} blocks, its config {config.num_hidden_layers}"
        )
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        id=model_id,
        source=source,
        architecture=type(model).__name__,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        vocab=config.vocab_size,
        context=context_of(config),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=str(model.config._attn_implementation),
        device=str(model.device),
        ranks=getattr(model, "_tp_size", None) or 1,
    )


def architecture_of(config: Any) -> str:
    """The name of the model's class. Raises UnsupportedModel for what is not in our tables, before any weights are read."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    name = found.__name__ if found is not None else (config.architectures or [type(config).__name__])[0]
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"model: architecture {name} is not in the hook table; use one of {', '.join(sorted(ARCHITECTURES))} "
            "or add a row to merasteer/engine/layers.py"
        )
    check_rope(config)
    return str(name)


def _dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in _DTYPES:
        raise InvalidInput(f"dtype: {dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]
