"""What a model answers when nothing makes it choose a label: whether its free answers are labels at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from merasteer.engine import LoadedModel
from merasteer.pipeline.batch import generations, running
from merasteer.pipeline.progress import Bars
from merasteer.tasks import Prompter
from merasteer.types import Example, Generation, GenerationRequest, ServedTask

__all__ = ["ROWS", "begins_with_one", "free_answers"]

ROWS = 50
TOKENS = 8  # of an answer: enough for a label and what surrounds it
COMMONEST = 5


def free_answers(
    loaded: LoadedModel, served: ServedTask, prompter: Prompter, examples: Sequence[Example]
) -> tuple[float, list[tuple[str, float]]]:
    """The share of the first 50 examples whose unsteered, free, greedy answer begins with a label, and the commonest first tokens.

    The label need not be the right one. Tokens with their shares, commonest first; "" is an answer that ends at once.
    """
    prompts = [prompter.tokens(example.prompt) for example in examples[:ROWS]]
    if not prompts:
        return 0.0, []
    requests = [GenerationRequest(prompt, max(1, min(TOKENS, loaded.context - len(prompt)))) for prompt in prompts]
    longest = max(len(request.prompt) + request.budget for request in requests)
    with running(loaded, longest) as engine, Bars().bar("free answers", len(requests)) as bar:
        found = list(generations(engine, requests, bar))
    spellings = {str(loaded.tokenizer.decode(list(tokens))).strip() for label in served.variants for tokens in label}
    share = sum(begins_with_one(answer.text, spellings) for answer in found) / len(found)
    first = Counter(_first(answer, loaded) for answer in found)
    return share, [(text, count / len(found)) for text, count in first.most_common(COMMONEST)]


def begins_with_one(text: str, spellings: set[str]) -> bool:
    """Whether the text begins with one of the spellings as a whole word, white space before it aside.

    >>> begins_with_one(" Spam.", {"Spam"}), begins_with_one("Spammer", {"Spam"})
    (True, False)
    """
    answer = text.lstrip()
    return any(answer.startswith(one) and not answer[len(one) : len(one) + 1].isalnum() for one in spellings)


def _first(answer: Generation, loaded: LoadedModel) -> str:
    return str(loaded.tokenizer.decode(list(answer.tokens[:1])))
