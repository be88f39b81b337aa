"""What each command prints: answers on stdout, one line about them on stderr."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

from mera_client._client import Client
from mera_client._errors import InvalidInput
from mera_client._types import Inputs, Mera, Steering
from mera_client.cli import classify as classifying

Say = Callable[[str], None]


def generate(client: Client, options: Namespace, say: Say) -> int:
    asked: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("max_new_tokens", "temperature", "top_p", "top_k", "stop", "seed", "mera_details")
    }
    inputs, steering = _inputs(options), steering_of(options)
    if options.stream:
        return _stream(client, options, say, {"inputs": inputs, "steering": steering, **asked})
    answer = client.generate(inputs, steering=steering, **asked)
    _out(_json(asdict(answer)) if options.json else answer.generated_text)
    if not options.json:
        say(in_words(answer.mera))
    return 0


def _stream(client: Client, options: Namespace, say: Say, asked: dict[str, Any]) -> int:
    with closing(client.generate_stream(**asked)) as events:
        for event in events:
            if options.json:
                _out(json.dumps(asdict(event), ensure_ascii=False))
            else:
                _out(event.token.text, end="\n" if event.last else "")
            if event.mera is not None and not options.json:
                say(in_words(event.mera))
    return 0


def classify(client: Client, options: Namespace, say: Say) -> int:
    job = classifying.Job(
        task=options.task,
        file=options.file,
        out=options.out,
        columns=tuple(options.column),
        chunk=options.chunk,
        steering=steering_of(options),
        fresh=options.fresh,
        label=options.label,
    )
    found = classifying.run(client, job, say)
    if found is not None:
        _out(found.text)
    return 0


def probes(client: Client, options: Namespace, say: Say) -> int:
    found = client.probes()
    if options.json:
        _out(_json([probe.raw for probe in found]))
        return 0
    for probe in found:
        words = [(probe.digest or "-")[:12], probe.task or "-", probe.status or "-"]
        if probe.certified is not None:
            words += ["certified" if probe.certified else "uncertified", probe.method or "-"]
        words += [] if probe.alpha is None else [f"alpha {probe.alpha:.4g}"]
        words += [probe.reason] if probe.reason else []
        _out("  ".join(words))
    if not found:
        say("the server has no artifacts")
    return 0


def health(client: Client, options: Namespace, _say: Say) -> int:
    live, ready = client.live(), client.ready()
    if options.json:
        _out(json.dumps({"live": live, "ready": ready}))
    else:
        _out("ready" if ready else "live, not ready" if live else "no answer")
    return 0 if ready else 1


def steering_of(options: Namespace) -> Steering | None:
    """None where nothing was said about it. `classify` names the task beside it."""
    given = {name: getattr(options, name) for name in ("probe", "method", "alpha", "strength")}
    if options.run is generate:
        given["task"] = options.task
    return Steering(**given) if any(value is not None for value in given.values()) else None


def in_words(mera: Mera) -> str:
    """What steering did, in one line."""
    words = mera.decision + (f" ({mera.reason})" if mera.reason else "")
    if mera.predicted_error is not None:
        words += f", predicted error {mera.predicted_error.before:.3f} → {mera.predicted_error.after:.3f}"
    if mera.guarantee is not None:
        words += ", certified" if mera.guarantee.certified else f", not certified: {mera.guarantee.why}"
    return words


def _inputs(options: Namespace) -> Inputs:
    """The prompt (`-`: standard input), or the fields."""
    if bool(options.field) == (options.prompt is not None):
        raise InvalidInput("prompt: give either a prompt or --field NAME=VALUE, one for each field of the template")
    if options.field:
        return dict(options.field)
    prompt: str = sys.stdin.read() if options.prompt == "-" else options.prompt
    return prompt


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _out(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()
