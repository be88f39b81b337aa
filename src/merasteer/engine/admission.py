"""What is checked before a request is accepted: one that the batch cannot take would bring the library's loop down for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from merasteer.engine.config import MAX_LABELS, MAX_VARIANTS
from merasteer.engine.loading import LoadedModel
from merasteer.engine.tables import reach
from merasteer.errors import EmptyInputs, InvalidInput, MeraError, PromptTooLong
from merasteer.method.trie import begins_another
from merasteer.types import MAX_LABEL_TOKENS, GenerationRequest, Tokens

__all__ = ["check", "each", "end_tokens", "numbered", "point_of"]

Found = TypeVar("Found")


def check(request: GenerationRequest, loaded: LoadedModel, max_tokens: int) -> None:
    """Refuses what the model, the cache or the tables cannot take, naming field and remedy. `max_tokens` bounds prompt and answer."""
    if not request.prompt:
        raise EmptyInputs("inputs: the prompt has no token; give some text")
    if request.max_new_tokens is None and request.choice is None:
        raise InvalidInput("max_new_tokens: missing, and no label ends the answer; give 1 or more")
    if request.budget < 1:
        raise InvalidInput(f"max_new_tokens: {request.budget} is not positive; give 1 or more")
    new = reach(request) + 1 - len(request.prompt)
    if len(request.prompt) + new > max_tokens:
        raise PromptTooLong(
            f"inputs: {len(request.prompt)} prompt tokens and max_new_tokens {new} exceed the "
            f"{max_tokens} tokens that fit; shorten the prompt or lower max_new_tokens"
        )
    if not all(0 <= token < loaded.vocab for token in request.prompt):
        raise InvalidInput(f"inputs: a token id is outside the vocabulary of {loaded.vocab}")
    if any(not stop for stop in request.stop):
        raise InvalidInput("stop: an empty string stops everything; remove it")
    classes = _check_labels(request, loaded)
    if request.label_bias is not None and len(request.label_bias) != classes:
        raise InvalidInput(f"label_bias: {len(request.label_bias)} values for {classes} labels; give one per label")
    positions = request.policy.positions if request.policy is not None else ()
    if isinstance(positions, tuple) and any(position >= len(request.prompt) for position in positions):
        raise InvalidInput(
            f"positions: one lies beyond the prompt's {len(request.prompt)} tokens; give indices into the prompt"
        )


def _check_labels(request: GenerationRequest, loaded: LoadedModel) -> int:
    """How many labels the request has, each of which the tables can hold and the model can say."""
    choice, variants = request.choice, request.variants or ()
    if choice is not None and request.variants is not None:
        raise InvalidInput("variants: given with choice; an answer is chosen among labels or free")
    spelt = choice.variants if choice is not None else tuple(tuple((token,) for token in ids) for ids in variants)
    if len(spelt) > MAX_LABELS or any(len(spellings) > MAX_VARIANTS for spellings in spelt):
        raise InvalidInput(f"variants: at most {MAX_LABELS} labels of {MAX_VARIANTS} spellings each are supported")
    known = [tokens for spellings in spelt for tokens in spellings]
    if not all(0 <= token < loaded.vocab for tokens in known for token in tokens):
        raise InvalidInput(f"variants: a token id is outside the vocabulary of {loaded.vocab}")
    if choice is None:
        return len(spelt)
    if choice.path or choice.settled is not None:
        raise InvalidInput("choice: path and settled are found out by the engine; leave them out")
    if not all(0 < len(tokens) <= MAX_LABEL_TOKENS for tokens in known) or not all(spelt) or not spelt:
        raise InvalidInput(
            f"choice: a label has no spelling, or one of more than {MAX_LABEL_TOKENS} tokens; shorten it"
        )
    if len(set(known)) < len(known):
        raise InvalidInput("choice: two spellings are the same tokens; give each to one label")
    if choice.end is None and begins_another(known):
        raise InvalidInput(
            "choice: a spelling is the beginning of another, and no end token tells them apart; give one"
        )
    if choice.end is not None and not 0 <= choice.end < loaded.vocab:
        raise InvalidInput(f"choice: the end token is outside the vocabulary of {loaded.vocab}")
    return len(spelt)


def point_of(request: GenerationRequest, path: Tokens) -> GenerationRequest:
    """What asks about a later branching point of a request's label: the same prompt and policy, one step at the end of the path."""
    if request.choice is None:
        raise ValueError("a request without labels has no branching point")
    return GenerationRequest(
        prompt=request.prompt, max_new_tokens=1, policy=request.policy, choice=replace(request.choice, path=path)
    )


def end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """End-of-sequence tokens: those of the model's generation_config, and the tokenizer's. Negative ones stand for none.

    The model's are one or several, numbers or words of the tokenizer: "</s>", or "eos_token" for the one that it calls so. Raises
    InvalidInput for a word that is no token.
    """
    found = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    named = [found] if found is None or isinstance(found, int | float | str) else list(found)
    ids = [_number(one, loaded.tokenizer) for one in [*named, getattr(loaded.tokenizer, "eos_token_id", None)]]
    return frozenset(int(i) for i in ids if i is not None and i >= 0)


def _number(token: Any, tokenizer: Any) -> Any:
    """The number of an end token, which may be a word."""
    if not isinstance(token, str):
        return token
    vocabulary = tokenizer.get_vocab() if tokenizer is not None else {}
    word = token if token in vocabulary else getattr(tokenizer, "special_tokens_map", {}).get(token)
    if word not in vocabulary:
        raise InvalidInput(
            f"eos_token_id: {token!r} is no token of this tokenizer; give its number, or the token as the tokenizer writes it, in "
            "generation_config.json"
        )
    return int(vocabulary[word])


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
