"""Closed-label jobs: loading a task file, making prompts, resolving labels, reading, splitting and checking rows."""

from __future__ import annotations

from merasteer.tasks.chat import Tokenizer
from merasteer.tasks.checking import Check, check
from merasteer.tasks.drawing import draw_examples
from merasteer.tasks.labels import resolve
from merasteer.tasks.loading import builtin_names, load_task
from merasteer.tasks.prompting import Prompter, demonstrations
from merasteer.tasks.prompts import fields_of, matches, render
from merasteer.tasks.reading import content_digest, read_examples, remarks
from merasteer.tasks.row import Row
from merasteer.tasks.rows import read_rows
from merasteer.tasks.splits import check_disjoint, make_splits, split, unevenness

__all__ = [
    "Check",
    "Prompter",
    "Row",
    "Tokenizer",
    "builtin_names",
    "check",
    "check_disjoint",
    "content_digest",
    "demonstrations",
    "draw_examples",
    "fields_of",
    "load_task",
    "make_splits",
    "matches",
    "read_examples",
    "read_rows",
    "remarks",
    "render",
    "resolve",
    "split",
    "unevenness",
]
