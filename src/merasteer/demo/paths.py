"""Where the built-in demo lies inside the installed package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["MODEL", "WORD", "data_dir", "model_dir", "named", "store_dir", "tasks_dir"]


MODEL = "mera-demo"  # the folder's name is the model's id
WORD = "demo"  # names the built-in model wherever a model is named


def data_dir() -> Path:
    """The folder that holds `mera-demo/`, `tasks/` and `store/`."""
    return Path(str(files("merasteer.demo"))) / "data"


def model_dir() -> Path:
    """The built-in model with its tokenizer, as `from_pretrained` reads it."""
    return data_dir() / MODEL


def tasks_dir() -> Path:
    """The task files of the demo with their rows beside them."""
    return data_dir() / "tasks"


def named(model: str) -> str:
    """The folder of the built-in model for the word `demo`; any other name as it stands (a folder of that name is `./demo`)."""
    return str(model_dir()) if model == WORD else model


def store_dir() -> Path:
    """The read-only artifact store of the demo."""
    return data_dir() / "store"
