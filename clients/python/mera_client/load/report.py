"""Samples -> figures -> words. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from mera_client.load.drive import NOT_SENT, Load, Run, Sample

POINTS = (50, 90, 99)


def percentile(values: Sequence[float], point: float) -> float:
    """The smallest value that at least `point` percent of the values do not exceed.

    >>> percentile([3, 1, 2, 4], 50), percentile([3, 1, 2, 4], 51), percentile([7], 99)
    (2, 3, 7)
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * point / 100) - 1)]


def figures(run: Run, load: Load) -> dict[str, Any]:
    """Everything that was measured, as JSON holds it. Rates per second of the whole run; latencies in seconds, of answers alone."""
    names = dict.fromkeys(sample.name for sample in run.samples)
    each = {name: _of([sample for sample in run.samples if sample.name == name], run.seconds) for name in names}
    return {
        "load": asdict(load),
        "seconds": run.seconds,
        "interrupted": run.interrupted,
        **_of(run.samples, run.seconds),
        "mix": each,
    }


def _of(samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
    answered = [sample for sample in samples if sample.error is None]
    decisions = Counter(decision for sample in answered for decision in sample.decisions)
    judged = decisions.total()

    def rate(count: float) -> float:
        return count / seconds if seconds > 0 else 0.0

    return {
        "requests": len(samples),
        "answered": len(answered),
        "not_sent": sum(sample.error == NOT_SENT for sample in samples),
        "errors": dict(Counter(sample.error for sample in samples if sample.error not in (None, NOT_SENT))),
        "messages": {sample.error: sample.message for sample in reversed(samples) if sample.message},
        "requests_per_second": rate(len(answered)),
        "inputs_per_second": rate(sum(sample.inputs for sample in answered)),
        "tokens_per_second": rate(sum(sample.tokens for sample in answered)),
        "latency": _spread(sample.seconds for sample in answered),
        "first_token": _spread(sample.first for sample in answered if sample.first is not None),
        "between_tokens": _spread(gap for sample in answered for gap in sample.gaps),
        "decisions": {name: {"count": n, "rate": n / judged} for name, n in decisions.most_common()},
    }


def _spread(values: Iterable[float]) -> dict[str, float] | None:
    """None where nothing was measured."""
    found = list(values)
    if not found:
        return None
    points = {f"p{point}": percentile(found, point) for point in POINTS}
    return {**points, "mean": sum(found) / len(found), "max": max(found)}


def in_words(found: dict[str, Any]) -> str:
    """The figures as lines for people: everything, then each entry of the mix where there are several."""
    lines = [f"{found['requests']} requests in {found['seconds']:.2f} s" + (", interrupted" * found["interrupted"])]
    lines += _lines(found)
    if len(found["mix"]) > 1:
        for name, part in found["mix"].items():
            lines += [f"{name}: {part['requests']} requests", *(f"  {line}" for line in _lines(part))]
    return "\n".join(lines)


def _lines(part: dict[str, Any]) -> Iterable[str]:
    yield (
        f"answered        {part['answered']}: {part['requests_per_second']:.1f} requests/s, "
        f"{part['inputs_per_second']:.1f} inputs/s, {part['tokens_per_second']:.1f} tokens/s"
    )
    failed = {**part["errors"], **({NOT_SENT: part["not_sent"]} if part["not_sent"] else {})}
    for code, count in failed.items():
        message = part["messages"].get(code)
        yield f"not answered    {count} {code}" + (f", the first: {message}" if message else "")
    for name in ("latency", "first_token", "between_tokens"):
        if part[name] is not None:
            points = "  ".join(f"{point} {1000 * value:.1f}" for point, value in part[name].items())
            yield f"{name.replace('_', ' '):15} {points} ms"
    if part["decisions"]:
        shares = ", ".join(f"{name} {100 * of['rate']:.1f} %" for name, of in part["decisions"].items())
        yield f"decisions       {shares}"
