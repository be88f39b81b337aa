"""Closed-label jobs: loading a task file, rendering prompts, resolving labels, reading and splitting rows."""

from __future__ import annotations

from merasteer.tasks.labels import Tokenizer, resolve
from merasteer.tasks.loading import builtin_names, load_task
from merasteer.tasks.prompts import fields_of, matches, render
from merasteer.tasks.rows import Row, read_rows
from merasteer.tasks.splits import check_disjoint, content_digest, make_splits

__all__ = [
    "Row",
    "Tokenizer",
    "builtin_names",
    "check_disjoint",
    "content_digest",
    "fields_of",
    "load_task",
    "make_splits",
    "matches",
    "read_rows",
    "render",
    "resolve",
]
