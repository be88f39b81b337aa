"""The answer as a choice among labels, per request inside the batch (docs/method.md, choosing a label).

A label has spellings, each a sequence of tokens; all of them make a trie. A spelling's score is the sum, over the branching points on its
way, of the log-probability of its token among those permitted there; a label's is that of its best spelling. The first branching point
is the end of the prompt: it is evaluated where the answer is chosen. Others behind it (nearly always none) are evaluated beforehand, as
requests of their own whose prompt goes on to that point; what they say is `LabelChoice.settled`. The label is chosen first, then the
tokens of its best spelling are forced one after the other.

Shapes: S slots, R requests with a new token, C labels, M spellings, F tokens of a spelling, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from merasteer.engine.config import MAX_LABELS, MAX_VARIANTS
from merasteer.engine.sampling import Draws
from merasteer.method.trie import branches
from merasteer.types import MAX_LABEL_TOKENS, GenerationRequest, LabelChoice, Tokens

__all__ = ["ChoiceTable", "Chosen", "points", "settled", "spelling"]

_NOWHERE = 2**30  # a position that no token reaches, and that may be added to


@dataclass(frozen=True, eq=False)
class Chosen:
    """What a pass found out for the rows at a branching point, `here` (R,); the others hold no meaning.

    scores (R, C): the labels', behind the bias. best (R,): the chosen spelling, C-major. changed (R,): whether the bias, or a label probe,
    changed the label.
    options (R, C·M): log-probability of each spelling's token among those permitted at the point.
    """

    here: torch.Tensor
    scores: torch.Tensor
    best: torch.Tensor
    changed: torch.Tensor
    options: torch.Tensor


class ChoiceTable:
    """One row per slot: what the labels' spellings are at the point where its request chooses, and the tokens that are forced then.

    token (S, C, M) -1 where none; first (S, C, M) marks one spelling of each token; settled (S, C, M) is added to a spelling's score;
    sequence (S, C, M, F) all its tokens; bias (S, C). at (S,): the position whose logits choose; origin (S,): where the answer begins.
    forced (S, F): the answer's tokens once it is chosen, -1 before and behind.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        shape = (slots, MAX_LABELS, MAX_VARIANTS)
        self.token = torch.full(shape, -1, dtype=torch.long, device=device)
        self.first = torch.zeros(shape, dtype=torch.bool, device=device)
        self.settled = torch.zeros(shape, device=device)
        self.sequence = torch.full((*shape, MAX_LABEL_TOKENS), -1, dtype=torch.int32, device=device)
        self.bias = torch.zeros(slots, MAX_LABELS, device=device)
        self.at = torch.full((slots,), _NOWHERE, dtype=torch.long, device=device)
        self.origin = torch.full((slots,), _NOWHERE, dtype=torch.long, device=device)
        self.forced = torch.full((slots, MAX_LABEL_TOKENS), -1, dtype=torch.int32, device=device)

    def assign(self, slot: int, request: GenerationRequest) -> None:
        """Writes a request's row."""
        choice = request.choice
        if choice is None:
            return
        laid = _laid_out(choice.variants, choice.end, choice.path)
        self.token[slot], self.first[slot], self.sequence[slot] = laid
        for label, values in enumerate(choice.settled or ()):
            self.settled[slot, label, : len(values)] = torch.tensor(values)
        if request.label_bias is not None and not choice.path:
            self.bias[slot, : len(request.label_bias)] = torch.tensor(request.label_bias)
        self.at[slot] = len(request.prompt) + len(choice.path) - 1
        self.origin[slot] = len(request.prompt) if not choice.path else _NOWHERE

    def clear(self, slot: int) -> None:
        """Turns a slot off."""
        self.at[slot] = self.origin[slot] = _NOWHERE
        self.settled[slot] = self.bias[slot] = 0.0
        self.forced[slot] = -1

    def choose(
        self,
        logits: torch.Tensor,
        slots: torch.Tensor,
        position: torch.Tensor,
        draws: Draws,
        said: torch.Tensor | None = None,
    ) -> Chosen:
        """Scores the labels of the rows at their branching point, and forces the best spelling of the label that is chosen there.

        logits (R, V); slots (R,); position (R,) of the tokens whose logits these are; said (R,): the label in place of the one of the
        largest score, -1 where none is. Mutates `forced`.
        """
        token = self.token[slots].flatten(1)  # (R, C·M)
        there, here = token >= 0, position == self.at[slots]
        value = logits.gather(1, token.clamp_min(0)).masked_fill(~there, -torch.inf)
        permitted = value.masked_fill(~self.first[slots].flatten(1), -torch.inf)
        options = value - permitted.logsumexp(-1, keepdim=True)
        spelt = (options + self.settled[slots].flatten(1)).view(-1, MAX_LABELS, MAX_VARIANTS)
        plain, spelling = spelt.max(-1)  # (R, C)
        scores = plain + self.bias[slots]
        label = draws.pick(scores, slots, position + 1)
        if said is not None:
            label = torch.where(said >= 0, said, label)
        best = label * MAX_VARIANTS + spelling.gather(1, label[:, None])[:, 0]
        self._force(slots, best, here & (self.origin[slots] == position + 1))
        changed = draws.pick(plain, slots, position + 1) != label
        return Chosen(here, scores, best, changed, options)

    def _force(self, slots: torch.Tensor, best: torch.Tensor, here: torch.Tensor) -> None:
        sequence = self.sequence.flatten(1, 2)[slots, best]  # (R, F)
        self.forced.index_put_((slots,), torch.where(here[:, None], sequence, self.forced[slots]))

    def ends(self, slots: torch.Tensor) -> torch.Tensor:
        """The position behind the last that chooses a token of the label, (R,), where it is chosen; far away elsewhere."""
        tokens = (self.forced[slots] >= 0).sum(-1)
        return torch.where(tokens > 0, self.origin[slots] - 1 + tokens, _NOWHERE)

    def due(self, slots: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The token that the label has next, (R,), -1 where it has none; position (R,) of the tokens whose logits choose."""
        place = position + 1 - self.origin[slots]
        inside = (place >= 0) & (place < MAX_LABEL_TOKENS)
        token = self.forced[slots].gather(1, place.clamp(0, MAX_LABEL_TOKENS - 1)[:, None])[:, 0].long()
        return torch.where(inside, token, -1)


def points(choice: LabelChoice) -> tuple[Tokens, ...]:
    """The branching points behind the first, as the tokens that lead there, short ones first."""
    return _points(choice.variants, choice.end)


@lru_cache(maxsize=256)
def _points(variants: tuple[tuple[Tokens, ...], ...], end: int | None) -> tuple[Tokens, ...]:
    found = branches((tokens for spellings in variants for tokens in spellings), end)
    return tuple(sorted((path for path in found if path), key=lambda path: (len(path), path)))


def settled(choice: LabelChoice, options: dict[Tokens, Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Of each spelling, what the branching points behind the first add to its score. options: path -> log-probabilities, C-major."""

    def added(label: int, index: int, tokens: Tokens) -> float:
        at = label * MAX_VARIANTS + index
        return sum(found[at] for path, found in options.items() if tokens[: len(path)] == path)

    return tuple(
        tuple(added(label, index, tokens) for index, tokens in enumerate(spellings))
        for label, spellings in enumerate(choice.variants)
    )


def spelling(choice: LabelChoice, best: int) -> tuple[int, Tokens]:
    """The label and the tokens of a chosen spelling, by its place in C-major order."""
    label, index = divmod(best, MAX_VARIANTS)
    return label, choice.variants[label][index]


@lru_cache(maxsize=256)
def _laid_out(
    variants: tuple[tuple[Tokens, ...], ...], end: int | None, path: Tokens
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """token, first (C, M) at the point where `path` leads, and sequence (C, M, F)."""
    token = torch.full((MAX_LABELS, MAX_VARIANTS), -1, dtype=torch.long)
    first = torch.zeros(MAX_LABELS, MAX_VARIANTS, dtype=torch.bool)
    sequence = torch.full((MAX_LABELS, MAX_VARIANTS, MAX_LABEL_TOKENS), -1, dtype=torch.int32)
    seen: set[int] = set()
    for label, spellings in enumerate(variants):
        for index, tokens in enumerate(spellings):
            sequence[label, index, : len(tokens)] = torch.tensor(tokens)
            if tokens[: len(path)] != path:
                continue
            following = tokens[len(path)] if len(tokens) > len(path) else end
            if following is None:
                raise ValueError("a spelling is the beginning of another, and there is no end token")
            token[label, index], first[label, index] = following, following not in seen
            seen.add(following)
    return token, first, sequence
