"""What is checked before a request is accepted: one that the batch cannot take would bring the library's loop down for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from merasteer.engine.config import MAX_LABELS, MAX_VARIANTS
from merasteer.engine.loading import LoadedModel
from merasteer.errors import EmptyInputs, InvalidInput, MeraError, PromptTooLong
from merasteer.types import GenerationRequest

__all__ = ["check", "each", "end_tokens", "numbered"]

Found = TypeVar("Found")


def check(request: GenerationRequest, loaded: LoadedModel, max_tokens: int) -> None:
    """Refuses what the model, the cache or the tables cannot take, naming field and remedy. `max_tokens` bounds prompt and answer."""
    if not request.prompt:
        raise EmptyInputs("inputs: the prompt has no token; give some text")
    if request.max_new_tokens < 1:
        raise InvalidInput(f"max_new_tokens: {request.max_new_tokens} is not positive; give 1 or more")
    total = len(request.prompt) + request.max_new_tokens
    if total > max_tokens:
        raise PromptTooLong(
            f"inputs: {len(request.prompt)} prompt tokens and max_new_tokens {request.max_new_tokens} exceed the "
            f"{max_tokens} tokens that fit; shorten the prompt or lower max_new_tokens"
        )
    if not all(0 <= token < loaded.vocab for token in request.prompt):
        raise InvalidInput(f"inputs: a token id is outside the vocabulary of {loaded.vocab}")
    if any(not stop for stop in request.stop):
        raise InvalidInput("stop: an empty string stops everything; remove it")
    variants = request.variants or ()
    if len(variants) > MAX_LABELS or any(len(ids) > MAX_VARIANTS for ids in variants):
        raise InvalidInput(f"variants: at most {MAX_LABELS} labels of {MAX_VARIANTS} token variants each are supported")

    if request.label_bias is not None and len(request.label_bias) != len(variants):
        raise InvalidInput(
            f"label_bias: {len(request.label_bias)} values for {len(variants)} labels; give one per label"
        )
    positions = request.policy.positions if request.policy is not None else ()
    if isinstance(positions, tuple) and any(position >= len(request.prompt) for position in positions):
        raise InvalidInput(
            f"positions: one lies beyond the prompt's {len(request.prompt)} tokens; give indices into the prompt"
        )


def end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """End-of-sequence tokens: the model's own list and the tokenizer's."""
    configured = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(
        int(i) for i in [*ids, getattr(loaded.tokenizer, "eos_token_id", None)] if i is not None and i >= 0
    )


def numbered(number: int, error: MeraError) -> MeraError:
    """The error of one of several requests, with its number."""
    return type(error)(f"requests[{number}]: {error}")


def each(
    requests: Sequence[GenerationRequest],
    do: Callable[[GenerationRequest], Found],
    named: Callable[[int, MeraError], MeraError],
) -> list[Found]:
    """What `do` says of each request. Raises the first error, as it is to be named."""
    found = []
    for number, request in enumerate(requests):
        try:
            found.append(do(request))
        except MeraError as error:
            raise named(number, error) from None
    return found
