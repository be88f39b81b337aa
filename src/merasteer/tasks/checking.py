"""What a run would find wrong with a task, and what its author should see before: rows, splits, one prompt, the labels' tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from merasteer.errors import BadSplits, MeraError
from merasteer.method.trie import branches
from merasteer.tasks.chat import Tokenizer
from merasteer.tasks.drawing import draw_examples
from merasteer.tasks.labels import resolve
from merasteer.tasks.prompting import Prompter, demonstrations
from merasteer.tasks.prompts import literals_of
from merasteer.tasks.reading import distinct, read_examples, remarks
from merasteer.tasks.splits import class_counts, split, unevenness
from merasteer.types import Example, ServedTask, Splits, Task, Tokens

__all__ = ["Check", "check", "shown_text"]

_FEW = 5  # places that are named where more are counted
_BRANCHES = 8  # points of decision that are shown
_TEXT = 3000  # characters of a prompt that are shown


@dataclass(frozen=True, eq=False)
class Check:
    """What was found, in lines for people; error: what a run would end with, None where it would not.

    splits and prompter are there as far as it came; the prompter only with a tokenizer.
    """

    lines: tuple[str, ...]
    error: MeraError | None = None
    splits: Splits | None = None
    prompter: Prompter | None = None


def check(task: Task, tokenizer: Tokenizer | None = None, context: int | None = None, *, least_train: int = 1) -> Check:
    """The findings, up to the first error. tokenizer, context: of the model, for what depends on it.

    least_train: training rows that a run needs.
    """
    lines: list[str] = [f"note: {note}" for note in task.notes]
    splits = prompter = None
    try:
        lines += _template(task)
        examples = read_examples(task)
        lines += [f"note: {note}" for note in remarks(task)]
        lines += _rows(task, examples)
        shown = draw_examples(task, examples)
        if tokenizer is not None:
            prompter = Prompter(resolve(task, tokenizer, demonstrations(task, shown)), tokenizer)
            lines += _labels(prompter)
            lines += _prompt(prompter, examples[0]) if examples else []
        long = _too_long(prompter, distinct(examples), context)
        lines += _lengths(long, context) if prompter is not None and context is not None else []
        places = frozenset(long)
        splits = split(task, examples, lambda example: example.where not in places)
        lines += _splits(task, splits)
        if len(splits.train) < least_train:
            raise BadSplits(
                f"task {task.name!r}: splits.train: {len(splits.train)} rows are too few for a run; give {least_train} or more"
            )
    except MeraError as error:
        return Check(tuple(lines), error, splits, prompter)
    return Check(tuple(lines), None, splits, prompter)


def shown_text(text: str) -> str:
    """The text for a terminal: what is not printable is escaped, so that no row can move the cursor; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _template(task: Task) -> Iterator[str]:
    if literals_of(task.template)[-1][-1:].isspace():
        yield (
            "warning: prompt.template ends in white space; the answer's first token then lacks the blank that it is "
            "written with: remove it"
        )


def _rows(task: Task, examples: Sequence[Example]) -> Iterator[str]:
    first_of: dict[str, int] = {}
    others = 0
    for example in examples:
        label = first_of.setdefault(example.digest, example.label)
        others += label != example.label
    repeats = len(examples) - len(first_of)
    told = f", {repeats} repeated" if repeats else ""
    told += f", {others} of these with another label than the first, which counts" if others else ""
    yield f"rows: {len(examples):,}{told}"
    counts = Counter(first_of.values())
    yield "classes: " + ", ".join(f"{label} {counts[index]:,}" for index, label in enumerate(task.labels))


def _splits(task: Task, splits: Splits) -> Iterator[str]:
    how = "in a random order" if task.splits.shuffle else "in the file's order"
    for name, counts in class_counts(splits, task.labels).items():
        classes = ", ".join(f"{label} {count:,}" for label, count in zip(task.labels, counts, strict=True))
        yield f"{name}: {sum(counts):,} rows {how} ({classes})"
    if splits.examples:
        places = ", ".join(example.where for example in splits.examples[:_FEW])
        yield f"examples: {len(splits.examples)} in front of every prompt, published with the result: {places}"
    uneven = unevenness(splits, task.labels)
    if uneven is not None:
        yield f"warning: {uneven}"


def _labels(prompter: Prompter) -> Iterator[str]:
    task, pieces = prompter.task, prompter.tokenizer.convert_ids_to_tokens
    if task.choose == "free":
        where = (
            "the first token" if task.position == "last" else f"the first of {task.max_new_tokens} tokens that is one"
        )
        yield f"answer: free; {where} of these is the answer"
    else:
        yield "answer: one of the labels, chosen where the prompt ends"
    nodes = _nodes(task)
    for label, spellings in zip(task.labels, task.variants, strict=True):
        written = " | ".join(" ".join(pieces(list(tokens))) for tokens in spellings)
        yield f"  {label}: {shown_text(written)}{_decided(spellings, nodes) if task.choose == 'labels' else ''}"
    deeper = [node for node in nodes if node]
    for node in deeper[:_BRANCHES]:
        behind, permitted = " ".join(pieces(list(node))), " or ".join(pieces(list(nodes[node])))
        yield f"  behind {shown_text(behind)}: {shown_text(permitted)}"
    if len(deeper) > _BRANCHES:
        yield f"  and {len(deeper) - _BRANCHES} more such points"


def _nodes(task: ServedTask) -> dict[Tokens, Tokens]:
    return branches((tokens for spellings in task.variants for tokens in spellings), task.end)


def _decided(spellings: Sequence[Tokens], nodes: dict[Tokens, Tokens]) -> str:
    """At which tokens a label is told from the others. One that is the beginning of another is decided behind its last."""
    depths = sorted({len(node) + 1 for node in nodes for tokens in spellings if tokens[: len(node)] == node})
    return f" (decided at token {', '.join(map(str, depths))})"


def _prompt(prompter: Prompter, example: Example) -> Iterator[str]:
    task = prompter.task
    if prompter.system_in_front:
        why = "the model's chat template takes no system turn" if task.chat else "this is no chat"
        yield f"system: in front of the first message, because {why}"
    tokens = prompter.tokens(example.prompt)
    text = prompter.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    yield f"prompt: {'chat' if task.chat else 'plain'}, {len(tokens):,} tokens ({example.where})"
    cut = " …" if len(text) > _TEXT else ""
    yield from (f"  | {line}" for line in (shown_text(text[:_TEXT]) + cut).split("\n"))


def _too_long(prompter: Prompter | None, examples: Sequence[Example], context: int | None) -> tuple[str, ...]:
    """Where the rows stand that do not fit."""
    if prompter is None or context is None:
        return ()
    return tuple(example.where for example in examples if not prompter.fits(example.prompt, context))


def _lengths(long: Sequence[str], context: int | None) -> Iterator[str]:
    if not long:
        yield f"too long: no row, for a context of {context:,} tokens"
        return
    more = f" and {len(long) - _FEW:,} more" if len(long) > _FEW else ""
    yield f"too long: {len(long):,} rows, for a context of {context:,} tokens: {', '.join(long[:_FEW])}{more}"
