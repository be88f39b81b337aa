"""What a certificate is bound to, as one value: the model by meaning, where it runs, and how it is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from merasteer.meaning import ModelMeaning
from merasteer.meaning import differences as in_meaning

__all__ = ["Conditions", "conditions_in", "differences"]

RUNTIME = {"dtype": "dtype", "device": "device", "attention": "attention", "ranks": "tensor-parallel ranks"}


@dataclass(frozen=True)
class Conditions:
    """Equal where a certificate that was earned under the one speaks of the other.

    model: without its chat template where the task is no chat. dtype, device ("cpu", "cuda"), attention, ranks: where it runs. The
    versions of the libraries are noted in the manifest; whether they matter is decided by the canaries.
    """

    model: ModelMeaning
    dtype: str
    device: str
    attention: str
    ranks: int = 1

    def plain(self) -> Conditions:
        """The same for a task that uses no chat template."""
        return replace(self, model=replace(self.model, chat_template=""))

    def runtime(self) -> dict[str, Any]:
        """The manifest's `runtime` section."""
        return {name: getattr(self, name) for name in RUNTIME}


def conditions_in(manifest: Mapping[str, Any]) -> Conditions | None:
    """Those that an artifact was made under; None for one from before they were kept."""
    model, runtime = manifest["model"], manifest["runtime"]
    if model["config"] is None or runtime["device"] is None:
        return None
    parts = ("weights", "config", "tokenizer", "chat_template", "end_tokens", "configuration")
    found = Conditions(ModelMeaning(**{name: model[name] for name in parts}), **runtime)
    return found if manifest["task"]["chat"] else found.plain()


def differences(tested: Conditions, here: Conditions) -> tuple[str, ...]:
    """What differs, one phrase each; empty where the certificate speaks of both."""
    here = here if tested.model.chat_template else here.plain()
    places = [
        f"{words} {getattr(tested, name)} then, {getattr(here, name)} here"
        for name, words in RUNTIME.items()
        if getattr(tested, name) != getattr(here, name)
    ]
    return (*in_meaning(tested.model, here.model), *places)
