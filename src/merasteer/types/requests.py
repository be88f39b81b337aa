"""What the engine is asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from merasteer.types.names import AnswerPosition, Tokens
from merasteer.types.steering import Policy

__all__ = ["GenerationRequest", "LabelChoice", "Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature None or 0 is greedy, and then nothing else counts."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return not self.temperature


@dataclass(frozen=True)
class LabelChoice:
    """The answer is one of these labels: variants[c] are the spellings of label c as token sequences (docs/method.md, choosing a label).

    end: the token that competes where one spelling is the beginning of another. The engine's own: settled, what is decided on the way of
    each spelling behind the first token, as a log-probability; path, the tokens that lead to the branching point that is asked about.
    """

    variants: tuple[tuple[Tokens, ...], ...]
    end: int | None = None
    settled: tuple[tuple[float, ...], ...] | None = None
    path: Tokens = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest spelling."""
        return max(len(tokens) for spellings in self.variants for tokens in spellings)


@dataclass(frozen=True)
class GenerationRequest:
    """One request to the engine.

    max_new_tokens: None ends with the label of `choice`. choice: the answer is one of its labels, chosen at the last prompt position;
    what follows it is free and unsteered. variants (token ids per class): of a free answer, asks for class probabilities at `position`.
    label_bias: added where the answer is chosen, one per class: to the class scores of `choice`, or to the logits of each class's
    variants; the class probabilities are then those behind the bias. acts: a free answer's policy acts where its first so many tokens
    are chosen; None: on all that is generated. ignore_eos: an end token ends nothing; the answer has max_new_tokens or a stop string.
    """

    prompt: Tokens
    max_new_tokens: int | None = None
    policy: Policy | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    choice: LabelChoice | None = None
    variants: tuple[tuple[int, ...], ...] | None = None
    position: AnswerPosition = "last"
    label_bias: tuple[float, ...] | None = None
    acts: int | None = None
    logprobs: bool = False
    trace: bool = False
    ignore_eos: bool = False

    @property
    def budget(self) -> int:
        """The most tokens that may be generated."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return 1 if self.choice is None else self.choice.longest
