"""Rotary positions whose frequencies depend on how long a sequence is: per request, never by the longest one of a forward pass.

The library looks at the whole pass: `longrope` picks its short or long factors by the largest position in it, `dynamic` stretches its base
by the longest sequence that it has ever seen. Here a token gets what it would get in `generate` of its request alone:
  longrope  the long factors for a request that may come to more tokens than the original context, the short ones for every other. It is
            known when the request is admitted, and stays so. (`generate` changes over on the way, and computes all once more there.)
  dynamic   the base for the length at which its key is computed: the prompt's for its tokens, behind it the sequence's up to the token.
Every other kind depends on the position alone and is left to the library.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from merasteer.errors import SeamMissing, UnsupportedModel

__all__ = ["Rope", "check_rope", "context_of"]

PER_REQUEST = ("longrope", "dynamic")
BY_POSITION = ("default", "linear", "yarn", "llama3", "proportional")
_APART = 1 << 24  # more than any vocabulary: tokens of one group are named apart from the next one's


class Tokens(Protocol):
    """What is asked of a forward pass: the slot and the position of each token, (T,)."""

    @property
    def slot(self) -> torch.Tensor: ...
    @property
    def position(self) -> torch.Tensor: ...


def check_rope(config: Any) -> None:
    """Raises UnsupportedModel for a kind of rotary positions of which it is not known whether it looks at other requests."""
    for parameters in _stated(config).values():
        kind = parameters.get("rope_type", "default")
        if kind not in BY_POSITION + PER_REQUEST:
            raise UnsupportedModel(
                f"model: rope_type {kind!r} is not known here, and could make an answer depend on its neighbours; "
                f"use a checkpoint whose rope_parameters say one of {', '.join(BY_POSITION + PER_REQUEST)}"
            )


def context_of(config: Any) -> int:
    """The longest sequence that the configuration says the model is made for, in tokens.

    `max_position_embeddings`, unless the rope is stretched and the field is that of before: `yarn` reaches factor times the original
    context, `dynamic` factor times the field. Of `linear` the field is the stretched context (what was trained so says so), or
    `max_sequence_length` where there is one.
    """
    text = config.get_text_config()
    found = stated = int(text.max_position_embeddings)
    for parameters in _stated(config).values():
        kind, factor = parameters.get("rope_type", "default"), float(parameters.get("factor") or 0.0)
        if kind == "yarn" and factor:
            found = max(found, int(parameters["original_max_position_embeddings"] * factor))
        elif kind == "dynamic":
            found = max(found, int(stated * factor))
        elif kind == "linear":
            found = max(found, int(getattr(text, "max_sequence_length", None) or 0))
    return found


def _stated(config: Any) -> dict[str | None, Mapping[str, Any]]:
    """Parameters of the rotary positions by the kind of layer that they are for; None: for all of them."""
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None)
    if not parameters:
        return {}
    nested = text.nested_rope_parameter_keys(parameters)
    return {key: parameters[key] for key in nested if parameters[key]} if nested else {None: parameters}


@dataclass(frozen=True, eq=False)
class _Frequencies:
    """Of one kind of layer. scaling: of cosine and sine. of(prompt, reach, position), each (T,): inverse frequencies (T, d/2)."""

    scaling: float
    of: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Rope:
    """The rotary positions of one model, as far as they depend on a request; nothing where they do not. S slots, T tokens.

    prompt (S,): tokens of the request's prompt. reach (S,): the most tokens that its keys can be of.
    """

    def __init__(self, model: Any, slots: int) -> None:
        self._modules: dict[Any, dict[str | None, _Frequencies]] = {}
        self._short: list[int] = []  # the original contexts, where there are two sets of factors
        self._own: list[int] = []  # the original contexts, where every length has frequencies of its own
        self.prompt, self.reach = (torch.zeros(slots, dtype=torch.long, device=model.device) for _ in range(2))
        stated = {key: found for key, found in _stated(model.config).items() if found["rope_type"] in PER_REQUEST}
        for module in model.modules() if stated else ():
            if hasattr(module, "rope_type") and hasattr(module, "max_seq_len_cached"):
                self._modules[module] = {key: self._of(module, key, found) for key, found in stated.items()}

    def _of(self, module: Any, layer: str | None, stated: Mapping[str, Any]) -> _Frequencies:
        prefix = "" if layer is None else f"{layer}_"
        held = getattr(
            module, f"{prefix}original_inv_freq"
        )  # (d/2,), of the model's dtype where that was changed afterwards
        original = held.float()
        scaling = getattr(module, f"{prefix}attention_scaling")
        if stated["rope_type"] == "longrope":
            border = int(stated["original_max_position_embeddings"])
            self._short.append(border)
            long, _ = ROPE_INIT_FUNCTIONS["longrope"](module.config, held.device, seq_len=border + 1, layer_type=layer)
            far = long.to(held.dtype).float()

            def by_reach(_prompt: torch.Tensor, reach: torch.Tensor, _position: torch.Tensor) -> torch.Tensor:
                return torch.where(reach[:, None] > border, far, original)

            return _Frequencies(scaling, by_reach)
        border, factor = int(module.config.max_position_embeddings), float(stated["factor"])
        self._own.append(border)
        width = 2 * original.shape[0]
        exponent = torch.arange(0, width, 2, device=original.device).float() / width

        def by_length(prompt: torch.Tensor, _reach: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            length = torch.maximum(prompt, position + 1)[:, None]
            stretch = (factor * length / border - (factor - 1)).clamp_min(1.0) ** (width / (width - 2))
            return torch.where(length > border, 1.0 / (stated["rope_theta"] * stretch) ** exponent, original)

        return _Frequencies(scaling, by_length)

    def assign(self, slot: int, prompt: int, reach: int) -> None:
        """Writes a request's row: the tokens of its prompt, and the most that its keys can be of. Between two passes only."""
        if self._modules:
            self.prompt[slot], self.reach[slot] = prompt, reach

    def shares(self, prompt: int) -> bool:
        """Whether others can have the keys of a prompt of so many tokens: not where they are of this very length."""
        return all(prompt <= border for border in self._own)

    def named(self, tokens: list[int], reach: int) -> list[int]:
        """The tokens as sharing is to know them: requests with different factors never have one in common."""
        group = sum(reach > border for border in self._short)
        return [token - group * _APART for token in tokens] if group else tokens

    @contextmanager
    def attached(self, current: Callable[[], Tokens | None]) -> Iterator[None]:
        """Inside, the model's rotary positions are per request while `current` names a pass; other passes stay the library's own.

        Mutates the modules' `forward`, which is as it was afterwards, whatever happens. Raises SeamMissing where the library's is another.
        """
        try:
            for module, layers in self._modules.items():
                module.forward = self._forward(module, layers, current)
            yield
        finally:
            for module in self._modules:
                module.__dict__.pop("forward", None)

    def _forward(
        self, module: nn.Module, layers: Mapping[str | None, _Frequencies], current: Callable[[], Tokens | None]
    ) -> Callable[..., Any]:
        plain, own = module.forward, inspect.unwrap(type(module).forward)  # behind the library's update by the pass

        def forward(x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> Any:
            tokens, frequencies = current(), layers.get(layer_type)
            if tokens is None or frequencies is None:
                return plain(x, position_ids, *(() if layer_type is None else (layer_type,)))
            slot = tokens.slot
            inverse = frequencies.of(self.prompt[slot], self.reach[slot], tokens.position)
            return _turned(own, x, position_ids, layer_type, inverse[None], frequencies.scaling)

        for layer, frequencies in layers.items():
            _check_arithmetic(own, layer, frequencies, self.prompt.device)
        return forward


def _turned(own: Any, x: Any, position_ids: Any, layer: str | None, inverse: torch.Tensor, scaling: float) -> Any:
    """Cosine and sine by the family's own arithmetic. inverse: (1, T, d/2) in the place of its (d/2,)."""
    prefix, given = ("", ()) if layer is None else (f"{layer}_", (layer,))
    values = {f"{prefix}inv_freq": inverse, f"{prefix}attention_scaling": scaling}
    return own(SimpleNamespace(**values), x, position_ids, *given)


def _check_arithmetic(own: Any, layer: str | None, frequencies: _Frequencies, device: torch.device) -> None:
    """Raises SeamMissing unless a family's arithmetic gives the same with frequencies per token as with one set."""
    position = torch.arange(2, device=device)
    inverse = frequencies.of(position * 0, position * 0, position)
    try:
        x = torch.zeros(1, 2, 1, device=device)
        one, many = (
            _turned(own, x, position[None], layer, by, frequencies.scaling) for by in (inverse[0], inverse[None])
        )
        same = all(map(torch.equal, one, many))
    except (AttributeError, RuntimeError, TypeError):
        same = False
    if not same:
        raise SeamMissing(
            f"{own.__qualname__}: its rotary positions cannot be given per token; install the version that constraints.txt pins"
        )
