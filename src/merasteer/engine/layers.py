"""The one table of where activations are read and moved (docs/structure.md, "adding a model").

`residual` is the output of the decoder block; `mlp_input` is what enters the MLP; `reference` is the output of the module named
`post_attention_layernorm`, whatever that is in the family (Llama and Qwen2: it feeds the MLP, so it equals `mlp_input`).
An architecture that is not listed is refused when the model is loaded, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from merasteer.errors import InvalidInput, UnsupportedModel
from merasteer.types import HookPoint

__all__ = ["ARCHITECTURES", "Family", "Site", "decoder_layers", "family_of", "site"]

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Site:
    """A module inside a decoder block ("" is the block itself) and the side of it that is read and moved."""

    module: str
    side: Side


@dataclass(frozen=True)
class Family:
    """Where the decoder blocks are, and the site of each hook point that exists."""

    layers: str
    sites: dict[HookPoint, Site]


def _family(layers: str, reference: bool = True) -> Family:
    sites: dict[HookPoint, Site] = {"residual": Site("", "output"), "mlp_input": Site("mlp", "input")}
    if reference:
        sites["reference"] = Site("post_attention_layernorm", "output")
    return Family(layers, sites)


ARCHITECTURES: dict[str, Family] = {
    "LlamaForCausalLM": _family("model.layers"),
    "Qwen2ForCausalLM": _family("model.layers"),
    "Qwen3ForCausalLM": _family("model.layers"),
    "MistralForCausalLM": _family("model.layers"),
    "Phi3ForCausalLM": _family("model.layers"),
    "GraniteForCausalLM": _family("model.layers"),
    "SmolLM3ForCausalLM": _family("model.layers"),
    # Here the reference point is the normed attention output, before it is added to the residual.
    "Gemma2ForCausalLM": _family("model.layers"),
    "Gemma3ForCausalLM": _family("model.layers"),
    "Olmo2ForCausalLM": _family("model.layers"),  # and the MLP is given the raw residual
    "GPTNeoXForCausalLM": _family("gpt_neox.layers"),  # parallel residual: the MLP does not see the attention
    "GPT2LMHeadModel": _family("transformer.h", reference=False),
}


def family_of(model: nn.Module) -> Family:
    """The table's row for a model. Raises UnsupportedModel naming the architectures that are known."""
    architecture = type(model).__name__
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"model: architecture {architecture} is not in the hook table; use one of {', '.join(sorted(ARCHITECTURES))} "
            "or add a row to merasteer/engine/layers.py"
        )
    return ARCHITECTURES[architecture]


def decoder_layers(model: nn.Module) -> Sequence[nn.Module]:
    """The decoder blocks, first to last."""
    layers = model.get_submodule(family_of(model).layers)
    return list(layers.children())


def site(model: nn.Module, hook_point: HookPoint) -> Site:
    """Where a hook point sits inside each block. Raises InvalidInput where the family has none."""
    sites = family_of(model).sites
    if hook_point not in sites:
        raise InvalidInput(f"hook_point: {type(model).__name__} has no {hook_point!r}; use one of {', '.join(sites)}")
    return sites[hook_point]
