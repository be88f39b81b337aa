"""What the soak test asks: a pool of distinct requests, drawn with a seed, and requests that must be refused.

Each is reproducible: whatever samples has a seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from merasteer.demo.corpus import TEMPLATE, message

MODEL = "mera-demo"
SPAM, DESK_A, BARE = "demo_spam", "demo_desk_a", "sms_spam"  # certified; not certified; without an artifact
MAX_BODY = 20_000  # bytes that the server is started with
Body = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Ask:
    """One request. task: whose default artifact answers it, empty without one; choices: generations that it comes to."""

    kind: str
    route: str
    body: Body
    task: str = ""
    choices: int = 1

    @property
    def content(self) -> bytes:
        return json.dumps(self.body).encode()

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass(frozen=True, eq=False)
class Refused:
    """A request that must be answered with this status and this code, every time."""

    route: str
    content: bytes
    status: int
    code: str


def pool(rng: random.Random, size: int) -> list[Ask]:
    """`size` different requests, the kinds in turn."""
    found: dict[bytes, Ask] = {}
    while len(found) < size:
        ask = KINDS[len(found) % len(KINDS)](rng)
        found.setdefault(ask.route.encode() + ask.content, ask)
    return list(found.values())


def _fields(rng: random.Random, task: str) -> dict[str, str]:
    text = message(rng.randrange(2), rng)
    return {"text": text, "desk": rng.choice("AB")} if task == SPAM else {"text": text}


def _sampling(rng: random.Random) -> Body:
    if rng.random() < 0.4:
        return {}
    drawn: Body = {"temperature": rng.choice([0.5, 1.0, 2.0]), "seed": rng.randrange(2**31)}
    return drawn | rng.choice([{}, {"top_p": 0.9}, {"top_k": 20}])


def _steering(rng: random.Random, task: str) -> Body:
    alpha = round(rng.uniform(0.02, 0.4), 3)
    overridden: list[Body] = [
        {},
        {"method": "none"},
        {"alpha": alpha},
        {"alpha": alpha, "positions": rng.choice(["all", "last", "generation", sorted(rng.sample(range(12), 3))])},
        {"alpha": alpha, "layers": sorted(rng.sample(range(4), 2)), "positions": "all"},
        {"method": "mera+bias", "alpha": alpha},
        {"method": rng.choice(["additive", "contrastive"]), "strength": round(rng.uniform(-2, 2), 2)},
        {"method": "logit_bias"},
    ]
    return {"task": task, **rng.choice(overridden)}


def _tokens(rng: random.Random) -> int:
    return rng.choice([1, 1, 3, 8, 24])


def _plain(rng: random.Random) -> Ask:
    """A prompt without a task, with stop strings and the tokens' details."""
    stop = rng.choice([None, ["."], [" you", " the"], ["never there"]])
    parameters = {"max_new_tokens": rng.choice([4, 16, 40]), "stop": stop, "details": rng.random() < 0.5}
    return Ask("plain", "/generate", {"inputs": message(1, rng)[:60], "parameters": parameters | _sampling(rng)})


def _steered(rng: random.Random, kind: str = "steered", route: str = "/generate", **more: Any) -> Ask:
    """A task's request, its policy the artifact's or overridden."""
    task = rng.choice([SPAM, SPAM, DESK_A])
    parameters = {"max_new_tokens": _tokens(rng), **_sampling(rng)}
    details = rng.choice(["none", "summary", "summary", "trace"])
    asked = {"inputs": _fields(rng, task), "parameters": parameters, "steering": _steering(rng, task), **more}
    return Ask(kind, route, {"details": details, **asked}, task)


def _default(rng: random.Random) -> Ask:
    """As the artifact says, and nothing overridden: certified, abstained for want of a certificate or of an artifact."""
    task = rng.choice([SPAM, SPAM, DESK_A, BARE])
    parameters = {"max_new_tokens": rng.choice([1, None])}
    body = {"inputs": _fields(rng, task), "parameters": parameters, "steering": {"task": task}}
    return Ask("default", "/generate", body, task)


def _stream(rng: random.Random) -> Ask:
    route = rng.choice(["/generate_stream", "/generate", "/"])
    return _steered(rng, "stream", route, stream=True)


def _compatible(rng: random.Random) -> Ask:
    return _steered(rng, "compatible", "/")


def _classify(rng: random.Random) -> Ask:
    task = rng.choice([SPAM, DESK_A])
    inputs: list[Any] = [_fields(rng, task) for _ in range(rng.randint(2, 6))]
    if task == DESK_A:
        inputs[0] = inputs[0]["text"]
    steering = {name: value for name, value in _steering(rng, task).items() if name != "task"}
    return Ask("classify", "/classify", {"task": task, "inputs": inputs, "steering": steering}, task, len(inputs))


def _completion(rng: random.Random) -> Ask:
    """OpenAI's completion, of one prompt or two, one choice or two; every second one is streamed."""
    task = rng.choice([SPAM, ""])
    n = rng.choice([1, 1, 2])
    prompts = [TEMPLATE.format(**_fields(rng, SPAM)) for _ in range(rng.choice([1, 1, 2]))]
    sampling = _sampling(rng)
    body = {
        "model": f"{MODEL}:{task}" if task else MODEL,
        "prompt": prompts if len(prompts) > 1 else prompts[0],
        "n": n,
        "max_tokens": _tokens(rng),
        "logprobs": rng.choice([None, 0] if sampling or task else [None, 0, 1]),
        "details": rng.choice(["none", "summary"]),
        **sampling,
        **_streamed(rng),
    }
    return Ask("completion", "/v1/completions", body, task, n * len(prompts))


def _chat(rng: random.Random) -> Ask:
    task = rng.choice([SPAM, DESK_A])
    fields = _fields(rng, task)
    content = TEMPLATE.format(**{"desk": "A", **fields})
    body = {
        "model": f"{MODEL}:{task}",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": _tokens(rng),
        "steering": {name: value for name, value in _steering(rng, task).items() if name != "task"},
        **_sampling(rng),
        **_streamed(rng),
    }
    return Ask("chat", "/v1/chat/completions", body, task)


def _streamed(rng: random.Random) -> Body:
    return rng.choice([{}, {"stream": True, "stream_options": {"include_usage": True}}])


KINDS: list[Callable[[random.Random], Ask]] = [
    *(_plain, _steered, _default, _stream, _classify, _completion, _chat, _stream, _steered, _compatible)
]

_OK: Body = {"inputs": "Desk A."}


def _refused(status: int, code: str, route: str, body: Body | bytes) -> Refused:
    return Refused(route, body if isinstance(body, bytes) else json.dumps(body).encode(), status, code)


REFUSED = [
    _refused(400, "not_json", "/generate", b'{"inputs": "x'),
    _refused(400, "not_json", "/v1/completions", b"\xff\xfe"),
    _refused(400, "not_json", "/classify", b""),
    _refused(422, "invalid_input", "/generate", {"inputs": 7}),
    _refused(422, "invalid_input", "/generate", {**_OK, "parameters": {"max_new_tokens": "4"}}),
    _refused(422, "invalid_input", "/generate_stream", {**_OK, "parameters": {"temperature": -1}}),
    _refused(422, "invalid_input", "/generate", {**_OK, "steering": {"task": SPAM, "positions": [0, 900]}}),
    _refused(422, "invalid_input", "/classify", {"task": DESK_A, "inputs": ["a", {"text": 3}]}),
    _refused(422, "unknown_field", "/generate", {**_OK, "parametres": {}}),
    _refused(400, "unsupported", "/v1/completions", {"model": MODEL, "prompt": "x", "min_p": 0.1}),
    _refused(422, "unsupported", "/generate", {**_OK, "parameters": {"best_of": 3}}),
    _refused(
        400,
        "unsupported",
        "/v1/chat/completions",
        {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "presence_penalty": 1},
    ),
    _refused(422, "empty_inputs", "/", {"inputs": ""}),
    _refused(422, "alpha_required", "/generate", {**_OK, "steering": {"task": DESK_A, "layers": [0]}}),
    _refused(422, "prompt_too_long", "/generate", {"inputs": "word " * 2_000}),
    _refused(
        400, "context_length_exceeded", "/v1/completions", {"model": MODEL, "prompt": "x " * 300, "max_tokens": 900}
    ),
    _refused(404, "unknown_task", "/generate", {**_OK, "steering": {"task": "nobody"}}),
    _refused(404, "unknown_task", "/classify", {"task": "../nobody", "inputs": ["a"]}),
    _refused(404, "unknown_probe", "/generate", {**_OK, "steering": {"probe": "0" * 64}}),
    _refused(404, "unknown_model", "/v1/completions", {"model": "gpt", "prompt": "x"}),
    _refused(413, "too_large", "/generate", b'{"inputs": "' + b"x" * MAX_BODY + b'"}'),
]
