"""Comparing an answer with the same request's answer alone, and what the server must have counted for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .asks import Ask

TOLERANCE = 1e-4  # of every float: its last bits depend on who else is in the batch
_OWN = {"id", "created"}  # of an OpenAI answer: new for each request
Parts = Sequence[Any]  # the body of a plain answer, or the events of a stream


def difference(found: Any, alone: Any, where: str = "") -> str | None:
    """Where and how two JSON values differ, None if they agree: floats within `TOLERANCE`, everything else exactly."""
    if isinstance(found, float) and isinstance(alone, float):
        same = math.isclose(found, alone, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        return None if same else f"{where}: {found} for {alone}"
    if type(found) is not type(alone):
        return f"{where}: {found!r} for {alone!r}"
    if isinstance(found, dict):
        own = _OWN if "object" in found else frozenset()
        if found.keys() != alone.keys():
            return f"{where}: {sorted(found)} for {sorted(alone)}"
        pairs = [(f"{where}.{key}", value, alone[key]) for key, value in found.items() if key not in own]
    elif isinstance(found, list):
        if len(found) != len(alone):
            return f"{where}: {len(found)} items for {len(alone)}"
        pairs = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(found, alone, strict=True))]
    else:
        return None if found == alone else f"{where}: {found!r} for {alone!r}"
    return next((told for name, one, other in pairs if (told := difference(one, other, name))), None)


def in_order(parts: Parts) -> list[Any]:
    """The events of a stream, those of each choice together: how choices take turns depends on who else is in the batch."""

    def index(part: Any) -> float:
        choices = part.get("choices") if isinstance(part, dict) else ()
        return choices[0]["index"] if choices else math.inf

    return list(parts) if len(parts) == 1 else sorted(parts, key=index)


def counted(ask: Ask, parts: Parts) -> Counter[str]:
    """What the counters of `/metrics` must grow by for this whole answer, those of requests apart."""
    total: Counter[str] = Counter()
    for told in _told(parts):
        labels = f'decision="{told["decision"]}",reason="{told["reason"] or ""}",task="{ask.task}"'
        total[f"mera_decisions_total{{{labels}}}"] += 1
    prompt, generated = _tokens(ask, parts)
    total['mera_tokens_total{kind="prompt"}'] = prompt
    total['mera_tokens_total{kind="generated"}'] = generated
    total["mera_queue_seconds_count"] = total["mera_time_to_first_token_seconds_count"] = ask.choices
    total["mera_inter_token_seconds_count"] = generated - ask.choices
    return total


def _bodies(parts: Parts) -> Iterator[Mapping[str, Any]]:
    for part in parts:
        yield from part if isinstance(part, list) else [part] if isinstance(part, dict) else []


def _told(parts: Parts) -> Iterator[Mapping[str, Any]]:
    """Everything in an answer that tells a decision, one for each generation."""
    for body in _bodies(parts):
        yield from (choice["mera"] for choice in body.get("choices", ()) if choice.get("mera"))
        yield from body.get("results", ())
        if body.get("mera"):
            yield body["mera"]


def _tokens(ask: Ask, parts: Parts) -> tuple[int, int]:
    """Prompt and generated tokens. OpenAI's usage counts a prompt once, however many choices it has."""
    last = [body for body in _bodies(parts) if body.get("usage") or body.get("details")][-1]
    if last.get("details"):
        return last["details"]["prompt_tokens"], last["details"]["generated_tokens"]
    usage = last["usage"]
    return usage["prompt_tokens"] * ask.body.get("n", 1), usage.get("completion_tokens", usage.get("generated_tokens"))
