"""Whatever is sent: no 5xx, no hang, nothing left running, every error in the one form, every answer as OpenAPI describes it.

Schemathesis makes its requests from the OpenAPI description, hypothesis from valid bodies whose fields it replaces by anything.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import strategies as st
from mera_server.app import create_app
from mera_server.loading import Serving
from mera_server.neutral import of_body
from mera_server.openai.replies import ChatChunk, ChatReply, CompletionChunk, CompletionReply, OpenAIErrorReply
from mera_server.openai.schemas import MAX_CHOICES, ChatBody, CompletionBody
from mera_server.replies import ClassifyReply, ErrorReply, GenerateReply, StreamReply
from mera_server.schemas import ClassifyBody, GenerateBody, Parameters, Steering, Strict
from mera_server.settings import Settings
from pydantic import TypeAdapter
from schemathesis.engine import events, from_schema

from merasteer.errors import MeraError
from merasteer.types import METHODS

LONGEST = 16  # tokens that a request may ask for: many short generations, not few long ones
PATIENCE = 20.0  # seconds; the slowest answer here takes a tenth of one
MEANT = {
    ("POST /probes/reload", "allow_header_conformance")
}  # GET is allowed there: /probes/{digest} has that path too
PROMPT = 'Message: "Win a holiday for two." Is this ham or spam? Answer as desk B'


@pytest.fixture
def app(settings: Settings, serving: Serving) -> FastAPI:
    app = create_app(settings.model_copy(update={"max_new_tokens_limit": LONGEST}))
    app.state.runtime._serving = serving
    return app


@pytest.fixture(autouse=True)
def nothing_is_left(serving: Serving) -> Iterator[None]:
    yield
    deadline = time.monotonic() + PATIENCE
    while serving.engine.stats().running or serving.engine.stats().waiting:
        assert time.monotonic() < deadline, serving.engine.stats()
        time.sleep(0.01)
    assert serving.engine.failure is None


def statuses(kind: type[MeraError] = MeraError) -> dict[str, int]:
    """Code -> status of every error there is."""
    found = {kind.code: kind.status}
    for child in kind.__subclasses__():
        found |= statuses(child)
    return found


def check_error(response: Any, path: str) -> None:
    status, body = response.status_code, response.json()
    known = statuses()
    if path.startswith("/v1"):
        OpenAIErrorReply.model_validate(body)
        known = {code: 400 if native == 422 else native for code, native in known.items()}
        known["context_length_exceeded"] = known.pop("prompt_too_long")
    else:
        ErrorReply.model_validate(body)
    assert known[body["error"]["code"]] == status, body
    assert body["error"]["message"], body
    assert "\n" not in body["error"]["message"], body


# --- schemathesis: requests from the description -----------------------------------------------------------------------------------


def of_its_type(value: Any) -> bool:
    """Whether no number in it is whole and a float: JSON Schema takes 1.0 for an integer, this server does not."""
    if isinstance(value, dict | list):
        return all(of_its_type(part) for part in (value.values() if isinstance(value, dict) else value))
    return not (isinstance(value, float) and value.is_integer())


def documented_error(_context: Any, response: Any, case: Any) -> None:
    if response.status_code >= 400:
        check_error(response, case.operation.path)


def schema_is_what_is_taken(_context: Any, response: Any, case: Any) -> None:
    """What fits the schema is never refused for its form, only for what no schema can say: tasks, sizes, fields that disagree."""
    if case.meta.generation.mode.is_positive and response.status_code in (400, 422) and of_its_type(case.body):
        said = response.json()["error"]["message"]
        assert not re.search(r": (got |missing; give|unknown field)", said), (case.body, said)


@pytest.fixture
def checks() -> Iterator[None]:
    """Our own checks beside schemathesis' fourteen."""
    own = (documented_error, schema_is_what_is_taken)
    for check in own:
        schemathesis.check(check)
    yield
    for check in own:
        schemathesis.checks.CHECKS.unregister(check.__name__)


def explore(address: str, phases: set[str], each: int) -> tuple[Counter[tuple[str, int]], list[str]]:
    """How often each operation answered with which status, and everything that was wrong."""
    config = schemathesis.Config.from_dict(
        {
            "seed": 1,
            "workers": 1,
            "continue-on-failure": True,
            "request-timeout": PATIENCE,
            "generation": {"max-examples": each, "no-shrink": True, "database": "none"},
            "phases": {name: {"enabled": name in phases} for name in ("examples", "coverage", "fuzzing", "stateful")},
            "checks": {
                "max_response_time": PATIENCE / 2,
                "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404", "422"]},
                "negative_data_rejection": {"expected-statuses": ["400", "401", "403", "404", "405", "413", "422"]},
            },
        }
    )
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", config=config)
    counted: Counter[tuple[str, int]] = Counter()
    wrong: list[str] = []
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            wrong.append(str(getattr(event, "info", event)))
        if not isinstance(event, events.ScenarioFinished):
            continue
        for case, node in event.recorder.cases.items():
            found = event.recorder.interactions.get(case)
            answered = found.response.status_code if found is not None and found.response is not None else 0
            counted[node.value.operation.label, answered] += 1
        for made in event.recorder.checks.values():
            wrong += [
                f"{event.recorder.label}: {check.name}: {check.failure_info.failure}"
                for check in made
                if check.failure_info is not None and (event.recorder.label, check.name) not in MEANT
            ]
    return counted, wrong


@pytest.mark.usefixtures("checks")
@pytest.mark.parametrize(
    ("phases", "each", "least"),
    [
        ({"examples", "fuzzing"}, 3, 40),
        pytest.param({"examples", "coverage", "fuzzing", "stateful"}, 60, 2000, marks=pytest.mark.slow),
    ],
    ids=["few", "many"],
)
def test_the_description(address: str, phases: set[str], each: int, least: int) -> None:
    counted, wrong = explore(address, phases, each)
    assert wrong == []
    assert counted.total() >= least
    operations = {label for label, _ in counted}
    assert operations == {label for label, status in counted if status == 200}, "some operation was never served"
    assert max(status for _, status in counted) < 500
    assert min(status for _, status in counted) > 0, "a request got no answer"


def test_a_wrong_method_is_told_all_that_are_right(address: str, app: FastAPI) -> None:
    for path, methods in app.openapi()["paths"].items():
        response = httpx.put(address + path)
        check_error(response, path)
        allowed = set(response.headers["allow"].split(", ")) - {"HEAD"}
        assert (response.status_code, allowed) == (
            405,
            {name.upper() for name in methods} | ({"GET"} if f"POST {path}" in dict(MEANT) else set()),
        )


# --- hypothesis: valid bodies with anything in them --------------------------------------------------------------------------------

Strategy = st.SearchStrategy[Any]

TEXT = st.text(st.characters(), max_size=12)  # lone surrogates, controls and all
WORDS = st.sampled_from(["", " ", "desk", "Win a holiday", "\n", "é", "日本", "\u2028", "<|eos|>", "{text}", PROMPT])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from([2**63, 2**70, -1, 0, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
POSITIONS = st.sampled_from(["generation", "all", "last"]) | st.lists(st.integers(0, 30), min_size=1, max_size=4)
NULL = st.none()


def listed(body: str) -> dict[str, Strategy]:
    """The table's fields of a body, each with the values that it takes."""
    return {
        name: ANYTHING if row.takes is None else st.sampled_from([None, *row.takes])
        for row in of_body(body)
        for name in row.fields
    }


def number(low: float, high: float) -> Strategy:
    """Numbers of the range, its ends and the smallest ones among them."""
    return st.floats(low, high) | st.sampled_from([low, high, 5e-324, 1e-30])


PARAMETERS: dict[str, Strategy] = {
    "max_new_tokens": st.integers(1, 4) | st.just(LONGEST + 1),
    "temperature": number(0, 100),
    "top_p": st.floats(0.01, 1) | number(0, 1),
    "top_k": st.integers(-1, 800) | st.just(2**31 - 1),
    "stop": st.lists(TEXT | WORDS, max_size=3),
    "seed": st.integers(0, 2**63 - 1),
    "return_full_text": st.booleans(),
    "details": st.booleans(),
    "do_sample": st.booleans(),
    "ignore_eos": st.booleans(),
}
STEERING: dict[str, Strategy] = {
    "task": st.sampled_from(["demo_spam", "demo_desk_a", "sms_spam", "demo_spam", "mmlu_high_school", "../demo_spam"]),
    "probe": st.sampled_from(["e", "e009", "12c42c2c", "0" * 64]),
    "method": st.sampled_from(METHODS),
    "alpha": st.floats(0.01, 0.99) | number(0, 1),
    "positions": POSITIONS,
    "layers": st.lists(st.integers(0, 4), min_size=1, max_size=4),
    "strength": number(-1e4, 1e4),
}
WORD = TEXT | WORDS
SAID = st.sampled_from([PROMPT, PROMPT.replace("B", "A"), "Once upon a time", "é\u2028日本"]) | WORD
FILLED = st.fixed_dictionaries({"desk": WORD, "text": WORD})
FIELDS = FILLED | st.fixed_dictionaries({"text": WORD}, optional={"b": WORD})
DETAILS = st.sampled_from(["none", "summary", "trace"])
MODEL = st.sampled_from(["mera-demo", "mera-demo:demo_spam", "mera-demo:demo_desk_a", "mera-demo:sms_spam", "gpt"])
COMMON: dict[str, Strategy] = {
    "max_tokens": st.integers(1, 4) | st.just(LONGEST + 1),
    "n": st.integers(1, 3) | st.just(MAX_CHOICES + 1),
    **{name: PARAMETERS[name] for name in ("temperature", "top_p", "top_k", "seed", "ignore_eos")},
    "stop": TEXT | PARAMETERS["stop"],
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries(
        {}, optional={"include_usage": st.booleans(), "continuous_usage_stats": st.booleans(), **listed("StreamOptions")}
    ),
    "details": DETAILS,
    "user": TEXT,
}  # fmt: skip
CONTENT = SAID | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": SAID}), min_size=1, max_size=2)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | TEXT, "content": CONTENT},
    optional={"name": TEXT, **listed("Message")},
)
IDS = st.lists(st.integers(0, 720), min_size=1, max_size=8)


def spoilt(valid: Strategy) -> Strategy:
    """Mostly `valid`, now and then anything."""
    return st.integers(0, 99).flatmap(lambda drawn: {17: ANYTHING, 18: ANYTHING, 19: NULL, 20: NULL}.get(drawn, valid))


def body(required: Mapping[str, Strategy], optional: Mapping[str, Strategy], most: int = 4) -> Strategy:
    """Objects of the required and a few of the optional fields, each mostly valid; now and then one too few or too many."""
    known = {name: spoilt(valid) for name, valid in {**optional, **required}.items()}

    def of(chosen: set[str]) -> Strategy:
        return st.fixed_dictionaries({name: known[name] for name in sorted(chosen)})

    some = st.sets(st.sampled_from(sorted(optional)), max_size=most) if optional else st.just(set())
    whole = some.flatmap(lambda chosen: of(chosen | set(required)))
    extra = st.builds(lambda made, more: made | more, whole, st.dictionaries(TEXT, ANYTHING, min_size=1, max_size=1))
    spoils = {17: extra, 18: some.flatmap(of), 19: ANYTHING}
    return st.integers(0, 99).flatmap(lambda drawn: spoils.get(drawn, whole))


OVERRIDES = {name: valid for name, valid in STEERING.items() if name != "task"}
OVERRIDDEN = body({}, OVERRIDES)
STEERED = body({"task": STEERING["task"]}, {}) | body({"task": STEERING["task"]}, OVERRIDES) | body({}, STEERING)
GENERATE = body(
    {"inputs": SAID | FIELDS},
    {
        "parameters": body({}, PARAMETERS | listed("Parameters")),
        "steering": STEERED,
        "details": DETAILS,
        "stream": st.booleans(),
        **listed("GenerateBody"),
    },
)
CLASSIFY = body(
    {
        "task": STEERING["task"],
        "inputs": st.one_of(st.lists(kind, min_size=1, max_size=3) for kind in (FILLED, FILLED, SAID, SAID | FIELDS)),
    },
    {"steering": OVERRIDDEN},
)
COMPLETION = body(
    {"model": MODEL, "prompt": SAID | IDS | st.lists(SAID, max_size=3) | st.lists(IDS, max_size=2)},
    {
        **COMMON,
        "steering": STEERED,
        "echo": st.booleans(),
        "logprobs": st.integers(0, 2),
        **listed("CompletionBody"),
    },
)
CHAT = body(
    {"model": MODEL, "messages": st.lists(MESSAGE, min_size=1, max_size=2)},
    {
        **listed("ChatBody"),
        **COMMON,
        "steering": STEERED,
        "max_completion_tokens": st.integers(1, LONGEST),
        "continue_final_message": st.booleans(),
        "add_generation_prompt": st.booleans(),
        "response_format": st.just({"type": "text"}) | ANYTHING,
        "logprobs": st.booleans(),
        "top_logprobs": st.integers(0, 2),
        "inputs": FIELDS,
        "metadata": st.dictionaries(TEXT, TEXT, max_size=2),
        "safety_identifier": TEXT,
        "prompt_cache_key": TEXT,
    },
)

ROUTES: dict[str, tuple[Strategy, Any, Any]] = {  # route -> its bodies, its answer, its events
    "/generate": (GENERATE, GenerateReply, StreamReply),
    "/generate_stream": (GENERATE, None, StreamReply),
    "/": (GENERATE, list[GenerateReply], StreamReply),
    "/classify": (CLASSIFY, ClassifyReply, None),
    "/v1/completions": (COMPLETION, CompletionReply, CompletionChunk),
    "/v1/chat/completions": (CHAT, ChatReply, ChatChunk),
}


def test_every_field_is_fuzzed() -> None:
    native = {"inputs", "parameters", "steering", "details", "stream", "task"}
    openai = {
        "model",
        "prompt",
        "messages",
        "steering",
        "echo",
        "logprobs",
        "max_completion_tokens",
        "continue_final_message",
        "add_generation_prompt",
        "response_format",
    }
    openai |= {"top_logprobs", "metadata", "safety_identifier", "prompt_cache_key"}
    told: dict[type[Strict], set[str]] = {
        Parameters: {*PARAMETERS, *listed("Parameters")},
        Steering: set(STEERING),
        GenerateBody: {*native, *listed("GenerateBody")},
        ClassifyBody: native,
        CompletionBody: {*COMMON, *openai, *listed("CompletionBody")},
        ChatBody: {*COMMON, *openai, "inputs", *listed("ChatBody")},
    }
    assert not {(model.__name__, name) for model, names in told.items() for name in set(model.model_fields) - names}


def no_constant(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


def check_answer(response: httpx.Response, answer: Any, event: Any) -> None:
    """The answer's form; of a stream, that of each event."""
    assert response.headers["x-request-id"]
    if response.status_code != 200:
        assert response.status_code in (400, 404, 413, 422), response.text
        check_error(response, response.request.url.path)
        return
    if not response.headers["content-type"].startswith("text/event-stream"):
        json.loads(response.content, parse_constant=no_constant)
        TypeAdapter(answer).validate_json(response.content)
        return
    *told, rest = response.content.decode().split("\n\n")
    assert rest == ""
    if event is not StreamReply:
        assert told.pop() == "data: [DONE]"
    assert told
    for line in told:
        begin = "data:" if event is StreamReply else "data: "
        assert line.startswith(begin + "{"), line
        assert line.isascii()
        json.loads(line.removeprefix(begin), parse_constant=no_constant)
        event.model_validate_json(line.removeprefix(begin))


@pytest.fixture
def send(address: str) -> Iterator[Callable[[str, bytes], httpx.Response]]:
    with httpx.Client(base_url=address, timeout=PATIENCE) as client:
        yield lambda route, raw: client.post(route, content=raw)


@pytest.mark.parametrize("cases", [30, pytest.param(900, marks=pytest.mark.slow)], ids=["few", "many"])
@pytest.mark.parametrize("route", ROUTES)
def test_bodies(send: Callable[[str, bytes], httpx.Response], route: str, cases: int) -> None:
    made, answer, event = ROUTES[route]
    served: Counter[int] = Counter()

    @hypothesis.settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(made)
    def check(body: Any) -> None:
        response = send(route, json.dumps(body).encode())
        check_answer(response, answer, event)
        served[response.status_code] += 1

    check()
    assert served.total() >= cases
    assert served[200] >= cases / 20, served  # it reaches the engine, and not only the parser
